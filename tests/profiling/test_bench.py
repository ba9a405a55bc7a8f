"""Benchmarks count correctly, and their numbers agree with each other; no speed is tested."""

import dataclasses
import json
import runpy
from unittest import mock

import jax
import numpy as np
import pytest
from helpers.support import experiment

from transformer_jax import config as config_lib
from transformer_jax.cli import main
from transformer_jax.config import resolve
from transformer_jax.data import load_data
from transformer_jax.display.tables import print_benchmark
from transformer_jax.efficiency import timing
from transformer_jax.errors import ConfigError
from transformer_jax.profiling import (
    bench_attention_result,
    bench_decode,
    bench_train_result,
    step_parts,
)
from transformer_jax.profiling.bench_attention import bench_attention
from transformer_jax.profiling.bench_train import bench_train
from transformer_jax.profiling.bench_train_result import TrainBench
from transformer_jax.profiling.cost_report import cost_report
from transformer_jax.schema import DataConfig, DecodeConfig, ExperimentConfig, TrainConfig
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import make_program


@pytest.fixture(scope='module')
def config(tiny, tmp_path_factory) -> ExperimentConfig:
    data = DataConfig(
        task='number_words(limit=120, held_out=10)',
        vocab_size=70,
        batching='buckets(lengths=(8, 24))',
        cache_dir=str(tmp_path_factory.mktemp('cache')),
    )
    model = tiny(encoder_layers=1, decoder_layers=1)
    return ExperimentConfig(
        model=model,
        data=data,
        train=TrainConfig(batch_tokens=192, accumulate=1),
        decode=DecodeConfig(beam=2),
    )


@pytest.fixture(scope='module')
def data(config, tmp_path_factory):
    return load_data(
        resolve(config).pipeline,
        Workdir(tmp_path_factory.mktemp('run')).tokenizer_path,
        lambda line: None,
        ('train',),
    )


@pytest.fixture(scope='module')
def result(config, data) -> TrainBench:
    return bench_train(config, data.steps_per_epoch, lambda line: None, matmul_size=64)


@pytest.mark.slow
def test_an_epochs_padding_and_tokens_are_the_plans(data, result):
    assert result.padding == pytest.approx(1 - data.plan.fill) == result.epoch_padding
    assert result.tokens == data.train.lengths[:, 1].sum()
    assert result.tokens_per_second == pytest.approx(
        result.tokens / (result.loop_seconds * result.steps)
    )


@pytest.mark.slow
def test_every_shape_is_compiled_and_counted_as_inspect_counts(config, data, result):
    assert tuple((shape.rows, shape.length) for shape in result.shapes) == data.shapes
    assert sum(shape.steps for shape in result.shapes) == result.steps == data.steps_per_epoch
    described = {(cost.rows, cost.length): cost.flops for cost in cost_report(config).steps}
    for shape in result.shapes:
        assert shape.flops == described[shape.rows, shape.length] > 0
        assert shape.compile_seconds > 0
        assert 0 < shape.temporary_bytes <= result.temporary_bytes
    flops = sum(shape.steps * shape.flops for shape in result.shapes)
    assert result.peak_share == pytest.approx(
        flops / (result.steps * result.bare_seconds) / result.peak_flops
    )


@pytest.mark.slow
def test_times_agree_with_each_other(result):
    assert 0 < result.data_wait < 1
    assert result.loop_over_bare == pytest.approx(result.loop_seconds / result.bare_seconds)
    assert tuple(result.parts) == step_parts.PARTS
    assert min(result.parts.values()) >= 0
    assert sum(result.parts.values()) > 0
    assert result.parts_shape in [(shape.rows, shape.length) for shape in result.shapes]


@pytest.mark.slow
@pytest.mark.parametrize('task', ['induction(length=14)', 'parity(length=14)'])
def test_language_models_and_classifiers_are_measured_too(task, config):
    changed = runpy.run_path('configs/generated.py')['get_config'](task)
    changed.update_from_flattened_dict(
        {
            'train.batch_tokens': 128,
            'model.d_model': 16,
            'model.encoder_layers': 1,
            'model.decoder_layers': 1,
            'data.cache_dir': config.data.cache_dir,
        }
    )
    result = bench_train(config_lib.from_config_dict(changed), 2, lambda line: None, matmul_size=64)
    assert 0 <= result.padding < 1
    assert result.shapes[0].steps == 2
    assert min(result.parts.values()) >= 0


@pytest.mark.slow
def test_parts_add_up_to_the_step(config, data, monkeypatch):
    """Given the time of each program, the parts are the differences, times the microbatches."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    program = make_program(resolve(config))
    batch = next(data.train_iterator(program.partitioner.local_rows, program.rows_multiple))
    clock = iter([1.0, 2.0, 7.0, 8.0, 19.0] * step_parts.ROUNDS)
    monkeypatch.setattr(step_parts, 'seconds', lambda program: next(clock))
    parts = step_parts.time_step_parts(config, program, batch)
    assert parts == dict(zip(step_parts.PARTS, [2.0, 4.0, 8.0, 2.0, 3.0], strict=True))


@pytest.mark.parametrize('method', bench_decode.METHODS)
def test_every_hypothesis_is_as_long_as_it_is_forced_to_be(config, method):
    program = make_program(resolve(config))
    decode = bench_decode.forced_decoder(
        config, program, program.init_state().params, method, 8, 3, 6
    )
    np.testing.assert_array_equal((np.asarray(decode()) > 0).sum(axis=1), 6)


@pytest.mark.parametrize(
    ('changes', 'length'),
    [
        ({}, 24),
        ({'kind': 'decoder_only', 'scan_layers': True, 'decoder_layers': 2}, 23),
    ],
)
def test_the_time_of_a_token_is_the_median_over_all_tokens(changes, length, monkeypatch):
    model = {f'model__{key}': value for key, value in changes.items()}
    clock, decoded = [3.0, 1.0, 2.0], []

    def seconds(decode):
        decoded.append((np.asarray(decode()) > 0).sum(axis=1).tolist())
        return clock[len(decoded) - 1]

    monkeypatch.setattr(bench_decode, 'seconds', seconds)
    found = bench_decode.seconds_per_token(resolve(experiment(**model)))
    assert decoded == 3 * [16 * [length]]
    assert found == pytest.approx(2.0 / (16 * length))


def test_a_line_is_found_in_times_that_lie_on_one():
    times = bench_decode.fit(
        (16, 32, 64), [0.5 + 0.01 * 16, 0.5 + 0.01 * 32, 0.5 + 0.01 * 64], rows=4
    )
    assert (times.seconds_per_step, times.constant_seconds, times.r_squared) == pytest.approx(
        (0.01, 0.5, 1)
    )
    assert times.tokens_per_second[0] == pytest.approx(4 * 16 / 0.66)
    assert bench_decode.fit((16, 32, 64), [1.0, 4.0, 16.0], rows=4).exponent == pytest.approx(2)


def test_the_peak_is_of_all_devices_and_the_best_of_ten(monkeypatch):
    clock = iter([4.0] * 9 + [2.0])
    monkeypatch.setattr(timing, 'seconds', lambda program: next(clock))
    assert timing.matmul_peak('float32', 32) == 2 * jax.device_count() * 32**3 / 2


@pytest.mark.slow
def test_both_results_are_one_json_object_or_tables(config, result, capsys):
    decoded = bench_decode.bench_decode(config, 16, 8, lambda line: None)
    for made, tables in ((result, bench_train_result.tables), (decoded, bench_decode.tables)):
        print_benchmark(made, tables(made), as_json=True)
        assert json.loads(capsys.readouterr().out).keys() == dataclasses.asdict(made).keys()
        print_benchmark(made, tables(made), as_json=False)
        assert made.machine['devices'] in capsys.readouterr().out
    assert [times.lengths for times in decoded.methods.values()] == [(2, 4, 8, 16)] * 2
    token = 2 * 4 * config.model.d_model  # key and value; sources have 2 tokens, there are 2 beams
    assert decoded.state_bytes == {
        'greedy': tuple(token * (length + 2) for length in (2, 4, 8, 16)),
        'beam': tuple(token * (2 * length + 2) for length in (2, 4, 8, 16)),
    }


@pytest.mark.parametrize(
    ('kind', 'needed', 'prompt'), [('encoder_decoder', 128, 0), ('decoder_only', 16 + 128, 16)]
)
def test_positions_that_end_before_the_output_are_refused(
    config, monkeypatch, kind, needed, prompt
):
    """Those of a decoder-only model must reach over the prompt too."""

    def bench(reach):
        model = dataclasses.replace(config.model, kind=kind, position=f'learned(max_len={reach})')
        bench_decode.bench_decode(
            dataclasses.replace(config, model=model), 128, 8, lambda line: None
        )

    monkeypatch.setattr(bench_decode, 'METHODS', ())  # Nothing is measured.
    monkeypatch.setattr(bench_decode, 'make_program', mock.Mock())
    bench(needed)
    for reach in (needed - 1, 100):
        line = rf'--longest=128 .*max_len={reach}.*which reach to {reach - prompt} here'
        with pytest.raises(ConfigError, match=line):
            bench(reach)


def test_commands_of_two_words(capsys):
    assert main(['bench', 'decode', '--help']) == 0
    assert '--longest' in capsys.readouterr().out
    assert main(['bench', 'nothing']) == 2
    assert 'bench train' in capsys.readouterr().err


@pytest.fixture(scope='module')
def attention() -> bench_attention_result.AttentionBench:
    kinds = (
        'softmax',
        'softmax(mask=window(16))',
        'linear(chunk=32)',
        'linformer(length={T}, rank=8)',
    )
    return bench_attention(
        kinds,
        ('dense', 'chunked', 'blocked'),
        (1024, 4096),
        bench_attention_result.Sizes(1, 2, 1, 8),
        lambda line: None,
        timed=False,
    )


@pytest.mark.slow
def test_memory_grows_as_the_engines_promise(attention):
    slopes = {
        (slope['attention'], slope['engine']): slope['temporary_bytes']
        for slope in attention.slopes
        if slope['direction'] == bench_attention_result.PASSES[-1]
    }
    # Softmax has dense and chunked, with a window blocked too, and two kinds have no choice.
    assert len(slopes) == 2 + 3 + 1 + 1
    for (_, engine), slope in slopes.items():
        assert slope > 1.9 if engine == 'dense' else slope < 1.15


@pytest.mark.slow
def test_a_points_flops_are_those_of_its_products(attention):
    flops = {
        (p.engine, p.length): p.flops
        for p in attention.points
        if p.attention == 'softmax' and p.direction == bench_attention_result.PASSES[0]
    }
    assert flops['dense', 1024] == 2 * 2 * 2 * 1024**2 * 8  # two products of 2 heads


@pytest.mark.slow
def test_the_table_and_the_picture_hold_every_kind(attention, tmp_path):
    print_benchmark(attention, bench_attention_result.tables(attention), as_json=False)
    assert bench_attention_result.draw(attention, tmp_path / 'slopes.png').stat().length > 10_000
    with pytest.raises(ConfigError, match='none of them can do'):
        bench_attention(['softmax'], ['blocked'], [64], attention.sizes, lambda line: None)
    with pytest.raises(ConfigError, match='needs an NVIDIA GPU'):
        bench_attention(['softmax'], ['cudnn'], [64], attention.sizes, lambda line: None)

"""`inspect` against formulas, XLA's own counts, and the states of two runs."""

import dataclasses
import io
import json
import math
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import rich.console
from helpers.build import build_model, dummy_batch

from transformer_jax import config as config_lib
from transformer_jax.config import resolve
from transformer_jax.efficiency.flops import forward_flops, matmul_flops
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.profiling import inspect
from transformer_jax.profiling.cost_report import GROWTH, cost_report
from transformer_jax.schema import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    ModelConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step
from transformer_jax.training.programs import make_program

TINY = ModelConfig(encoder_layers=1, decoder_layers=2, d_model=16, d_ff=32, num_heads=2)


def experiment(
    model=TINY, vocab_size=64, batching='buckets(lengths=(8, 16))', mesh=(1, 1, 1), **train
):
    return ExperimentConfig(
        model=model,
        data=DataConfig(vocab_size=vocab_size, batching=batching),
        train=TrainConfig(**{'batch_tokens': 128} | train),
        parallel=ParallelConfig(mesh=MeshConfig(*mesh)),
    )


def printed(function, *args):
    console = rich.console.Console(file=io.StringIO(), width=160)
    function(*args, console)
    return console.file.getvalue()


@pytest.fixture(scope='module')
def base():
    return cost_report(
        experiment(
            ModelConfig(), vocab_size=37_000, batching='packed(length=64)', batch_tokens=25_000
        )
    )


def test_parameters_of_the_papers_base_model(base):
    V, D, F, L = 37_000, 512, 2048, 6
    attention, ffn, norm = 4 * D * D, 2 * D * F + F + D, 2 * D
    embedding = V * D
    layers = L * (attention + ffn + 2 * norm) + L * (2 * attention + ffn + 3 * norm)
    assert sum(p.count for p in base.parameters if p.is_embedding) == embedding
    assert sum(p.count for p in base.parameters) == embedding + layers


def test_flops_of_the_papers_base_model(base):
    V, D, F, L, T = 37_000, 512, 2048, 6, 64
    projections, mixing, ffn = 4 * 2 * D * D, 2 * 2 * T * D, 2 * 2 * D * F
    per_token = L * (3 * (projections + mixing) + 2 * ffn) + 2 * D * V
    [cost] = base.steps
    assert (cost.rows, cost.length) == (25_000 // 64, 64)
    assert cost.flops_per_token == 3 * per_token


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'num_kv_heads': 1, 'head_dim': 24, 'value_dim': 40},
        {'norm_placement': 'pre', 'tie_embeddings': 'none'},
    ],
)
def test_forward_flops_are_those_that_xla_counts(changes):
    config = dataclasses.replace(TINY, d_model=128, d_ff=512, num_heads=4, **changes)
    model = build_model(config, 500)
    batch = dummy_batch(8, 32)
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.PRNGKey(0), batch)['params'])
    compiled = (
        jax.jit(lambda params, batch: model.apply({'params': params}, batch))
        .lower(params, batch)
        .compile()
    )
    # XLA also counts softmax, norms and additions.
    ratio = forward_flops(model, params, 8, 32) / compiled.cost_analysis()['flops']
    assert 0.95 < ratio <= 1


def test_products_in_loops_and_branches_are_counted():
    once = 2 * 3**3

    def flops(function):
        return matmul_flops(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((3, 3), np.float32)))

    assert flops(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=5)[0]) == 5 * once
    assert (
        flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda b: b @ b @ b, lambda b: b, a)) == 2 * once
    )
    assert flops(jax.checkpoint(jax.jit(lambda a: a @ a))) == once
    assert flops(jax.vmap(lambda a_S: a_S @ a_S)) == 2 * 3 * 3


def test_estimated_memory_bounds_what_xla_allocates():
    model_config = dataclasses.replace(TINY, decoder_layers=1, d_model=64, d_ff=256, num_heads=4)
    config = experiment(model_config, batching='packed(length=32)', batch_tokens=1024)
    model = build_model(config.model, config.data.vocab_size)
    report = cost_report(config)
    [cost], memory = report.steps, report.memory()
    state = nn.meta.unbox(jax.eval_shape(lambda: train_state.init_state(resolve(config), model)))
    train = jax.jit(
        lambda state, batch: step.train_step(model, resolve(config), state, batch), donate_argnums=0
    )
    allocated = train.lower(state, dummy_batch(cost.rows, cost.length)).compile().memory_analysis()
    estimate = memory['gradients'] + memory['activations, at most']
    assert estimate / 2 < allocated.temp_size_in_bytes <= estimate
    resident = memory['parameters'] + memory['optimizer state']
    batch_and_scalars = allocated.argument_size_in_bytes - resident
    assert 0 < batch_and_scalars < 40 * cost.rows * cost.length


def test_bytes_per_device_on_a_mesh_that_is_not_there():
    whole = cost_report(experiment())
    cut = cost_report(experiment(mesh=(2, 2, 2)))
    assert cut.mesh == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2}
    parts = {
        'target_embedding.table': 4,
        'decoder_1.cross.queries.query.kernel': 4,
        'encoder_0.ffn.in_kernel': 4,
        'encoder_0.ffn.in_bias': 2,
        'encoder_0.ffn.out_bias': 1,
        'decoder_0.ffn_connection.norm.scale': 1,
    }
    by_path = {p.path: p for p in cut.parameters}
    for path, pieces in parts.items():
        assert by_path[path].bytes_per_device * pieces == 4 * by_path[path].count
    for p in cut.parameters:
        pieces = math.prod(cut.mesh[axis] for axes in p.cut_over for axis in axes)
        assert p.bytes_per_device * pieces == 4 * math.prod(p.shape)
    adam_count = 4
    assert cut.optimizer_bytes == 2 * cut.memory()['parameters'] + adam_count
    assert cut.gradient_bytes == cut.memory()['parameters'] < whole.memory()['parameters'] / 3
    for one, eight in zip(whole.steps, cut.steps, strict=True):
        assert (one.flops, 4 * eight.activation_bytes) == (
            eight.flops,
            pytest.approx(one.activation_bytes, rel=0.2),
        )


def test_the_mesh_takes_its_devices_from_the_config_or_the_flag():
    assert cost_report(experiment(mesh=(-1, 4, 1)), 512).mesh == {
        'data': 128,
        'fsdp': 4,
        'context': 1,
        'tensor': 1,
    }
    assert cost_report(experiment(mesh=(-1, 1, 1))).mesh['data'] == jax.device_count()
    with pytest.raises(ConfigError, match=r'needs 8 devices, there are 4'):
        cost_report(experiment(mesh=(2, 2, 2)), 4)
    with pytest.raises(ConfigError, match=r'decoder_0\.attention\.keys.*heads'):
        cost_report(experiment(mesh=(1, 1, 4)))


def test_accumulation_pads_rows_and_keeps_two_gradients():
    one, four = (
        cost_report(experiment(batching='packed(length=16)', accumulate=n)) for n in (1, 3)
    )
    assert (one.steps[0].rows, four.steps[0].rows) == (8, 9)
    assert four.gradient_bytes == 2 * one.gradient_bytes
    assert four.steps[0].activation_bytes < one.steps[0].activation_bytes / 2


def test_tables_show_every_parameter_and_shape():
    text = printed(inspect.inspect_config, experiment(mesh=(-1, 2, 2)), 8)
    assert 'data 2 × fsdp 2 × context 1 × tensor 2 = 8 devices' in text
    assert 'encoder_*.ffn.in_kernel' in text
    assert 'float32[16, 32]' in text
    assert 'embed/fsdp mlp/tensor' in text
    report = cost_report(experiment())
    for number in (
        sum(p.count for p in report.parameters),
        64 * 16,
        *(cost.rows for cost in report.steps),
    ):
        assert f' {number:,} ' in text


def test_the_decoding_state_is_shown():
    model = dataclasses.replace(TINY, decoder_layers=4, decoder_attention='3*softmax, linear')
    text = printed(inspect.inspect_config, experiment(model), 1)
    assert 'decoding state of one sequence of 16 tokens after a source of as many' in text
    lines = {line.split('  ')[0].strip(): line for line in text.splitlines()}
    cache = 2 * 16 * 16 * 4  # keys and values, tokens, d_model, float32
    assert lines['decoder_0 … decoder_2'].count(f'{cache / 1024:.2f} KiB') == 2  # and the source
    assert f'{4 * 2 * 8 * 9} B' in lines['decoder_3']  # of 2 heads of 8
    assert f'{7 * cache / 1024 + 4 * 144 / 1024:.2f} KiB' in lines['all layers']
    assert text.rstrip().splitlines()[-1].split()[-2:] == ['7.00', 'MiB']  # at 8,192 tokens


def test_a_classifier_has_no_decoding():
    model = dataclasses.replace(TINY, kind='classifier')
    config = experiment(model, vocab_size=19, batching='buckets(lengths=(32,))')
    task = dataclasses.replace(config.data, task='listops(min_length=8, max_length=24)')
    text = printed(inspect.inspect_config, dataclasses.replace(config, data=task), 1)
    assert "decoding state: no decoding, model.kind='classifier' predicts a class" in text


def make_workdir(path, seed, data, mesh=(-1, 1, 1)):
    """Save two steps of a run on all devices; the numbers in its state depend on `seed`."""
    config = experiment(mesh=mesh)
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
    abstract = make_program(resolve(config)).abstract
    random = np.random.default_rng(seed)
    checkpoints = Checkpoints(path / 'checkpoints', keep=2)
    for number in (1, 2):
        values = jax.tree.map(lambda a: (99 * random.random(a.shape)).astype(a.dtype), abstract)
        state = jax.tree.map(lambda value, a: jax.device_put(value, a.sharding), values, abstract)
        checkpoints.save(number, state, {'data': data, 'best': {'step': 1}})
    checkpoints.wait()
    return path


@pytest.mark.slow
def test_runs_that_ended_alike_print_the_same_line(tmp_path):
    def line(name, *args):
        text = printed(inspect.inspect_workdir, make_workdir(tmp_path / name, *args))
        assert 'newest  step 2' in text
        assert 'best    step 1' in text
        return text.splitlines()[-1]

    line_a = line('a', 0, {'next': 5}, (2, 2, 2))
    assert re.fullmatch('sha256 [0-9a-f]{64}  step 2', line_a)
    assert line('b', 0, {'next': 5}, (-1, 1, 1)) == line_a
    assert line('c', 1, {'next': 5}) != line_a
    assert line('d', 0, {'next': 6}) != line_a


def test_a_run_on_many_devices_is_inspected_where_they_are_not(tmp_path):
    path = make_workdir(tmp_path / 'run', 0, {'next': 5}, (2, 2, 2))
    text = json.loads((path / 'config.json').read_text())
    text['parallel']['mesh'] = {'data': 64, 'fsdp': 1, 'tensor': 1}
    (path / 'config.json').write_text(json.dumps(text))
    assert '  step 2' in printed(inspect.inspect_workdir, path)


def test_a_damaged_newest_step_is_passed_over_and_left_alone(tmp_path):
    path = make_workdir(tmp_path / 'run', 0, {'next': 5})
    meta = path / 'checkpoints' / '2' / 'meta.json'
    meta.write_text(meta.read_text().replace('5', '6'))
    before = sorted((file, file.read_bytes()) for file in path.rglob('*') if file.is_file())
    assert printed(inspect.inspect_workdir, path).endswith('  step 1\n')
    assert sorted((file, file.read_bytes()) for file in path.rglob('*') if file.is_file()) == before


def test_what_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'config\.json'):
        inspect.inspect_workdir(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(config_lib.to_dict(experiment())))
    with pytest.raises(WorkdirError, match='no checkpoint'):
        inspect.inspect_workdir(tmp_path)


@pytest.mark.slow
def test_growth_is_quadratic_for_softmax_and_linear_for_linear_attention():
    def grown(**changes):
        model = dataclasses.replace(experiment().model, **changes)
        return cost_report(dataclasses.replace(experiment(), model=model)).growth

    for attention, power in (('softmax', 2), ('linear', 1)):
        costs = grown(attention=attention)
        assert [cost.length for cost in costs] == list(GROWTH)
        slope = math.log2(costs[-1].activation_bytes / costs[-2].activation_bytes)
        assert slope == pytest.approx(power, abs=0.1)
    assert [cost.length for cost in grown(position='learned(max_len=1024)')] == [512, 1024]

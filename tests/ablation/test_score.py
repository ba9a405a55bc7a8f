"""Scores and costs of real runs."""

import contextlib
import functools
import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers.support import quiet
from helpers.tiny_ablation import BASE, METRICS, plan
from sacrebleu.metrics import BLEU

from transformer_jax.ablation import Metric, state_bytes
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import ablate
from transformer_jax.config import resolve
from transformer_jax.data.tokenizers import BytePairs
from transformer_jax.errors import Stopped
from transformer_jax.inference.head_sums import PROBES
from transformer_jax.inference.probes import probe
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.profiling import measure
from transformer_jax.storage.paths import absolute_path
from transformer_jax.training import programs
from transformer_jax.training.signals import StopSignals


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """Train one variant with one seed; return (root, log)."""
    root, lines = tmp_path_factory.mktemp('root'), []
    ablate(plan(root, {'base': {}}, seeds=1), lines.append)
    return root, lines


def open_last(root):
    return TrainedRun(root / 'base/0', 'last', quiet, {})


@pytest.mark.slow
def test_a_result_tells_quality_and_cost(real):
    root, lines = real
    [run] = load_results(root)['runs']
    evaluations = json.loads((root / 'base/0/evaluations.json').read_text())
    assert run['scores'] == {
        'test exact_match': evaluations[0]['exact_match'],
        'validation loss': evaluations[1]['loss'],
    }
    assert run['params'] > run['non_embedding_params'] > 1000
    assert run['memory_bytes'] > 12 * run['params']  # Adam's state and the gradient
    assert run['flops'] > run['params']
    config = plan(root, {'base': {}}, seeds=1).settings[0].config
    assert run['state_bytes'] == state_bytes(config, run['state_length'])
    assert run['state_length'] == resolve(config).batching.row_lengths()[-1]
    assert (run['steps'], run['step'], run['folder']) == (4, 4, 'base')
    assert 0 < run['step_seconds'] < run['wall_seconds']
    assert 0 < run['step_spread'] < math.inf  # Clocks tell the steps of a real run apart.
    assert 0 < run['mfu'] < 1
    assert 0 < run['goodput'] < 1
    assert 'host' not in run['machine']
    assert lines[-1].startswith('1 of 1 runs done')
    assert any(line.startswith('base/0: step 4/4: loss') for line in lines)


@pytest.mark.slow
def test_seeds_side_by_side_are_the_runs_alone(real, tmp_path):
    stopped = functools.partial(plan, tmp_path, {'base': {}}, seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, 'received', lambda self, now: signal.SIGTERM * (now == 3))
        with pytest.raises(Stopped):
            ablate(stopped(), quiet)
    lines = []
    ablate(plan(tmp_path, {'base': {}}, seeds=3), lines.append)
    assert 'base/0-1: resumed after step 3' in lines
    alone, found = load_results(real[0])['runs'][0], load_results(tmp_path)['runs']
    assert [run['side_by_side'] for run in found] == [2, 2, 1]
    for run in found:
        events = list(
            map(
                json.loads,
                (tmp_path / f'base/{run["seed"]}/metrics.jsonl').read_text().splitlines(),
            )
        )
        shares = [
            event['seconds'] * event['steps_per_second'] for event in events
        ]  # a line is a step
        assert shares == pytest.approx(4 * [1 / run['side_by_side']])
        assert run['wall_seconds'] == sum(event['seconds'] for event in events)
    assert len({run['step_seconds'] for run in found}) == 1  # of the setting
    for label, score in alone['scores'].items():
        assert found[0]['scores'][label] == pytest.approx(score, abs=1e-4)
    losses = {run['scores']['validation loss'] for run in found}
    assert len(losses) == 3
    assert {key: found[0][key] for key in ('params', 'flops', 'memory_bytes', 'step')} == {
        key: alone[key] for key in ('params', 'flops', 'memory_bytes', 'step')
    }


@pytest.mark.slow
def test_the_time_of_a_step_is_a_metric(real, monkeypatch):
    root, _ = real
    made = plan(root, {'base': {}}, (*METRICS, Metric('step_seconds')), seeds=1)
    assert made.lacks(made.trials[0]) == 'its step_seconds is not measured'
    monkeypatch.setattr(score_lib, 'TrainedRun', None)  # nothing is evaluated again
    score_lib.score(made.trials[0], made.experiment.metrics, quiet)
    result = json.loads((root / 'base/0/result.json').read_text())
    assert result['scores']['step_seconds'] == result['step_seconds'] > 0
    assert not made.lacks(made.trials[0])


@pytest.mark.slow
def test_a_row_is_tried_once_and_a_timed_run_every_time(real, tmp_path, monkeypatch):
    root, tried = shutil.copytree(real[0], tmp_path / 'root'), []

    def trial(components, tokenizer):
        tried.append(components.config.train.seed)
        assert (tokenizer / 'tokenizer.json').exists()
        return measure.StepMeasurement(1.0, 0.25 * len(tried), 3, 0.5 * len(tried))

    monkeypatch.setattr(measure, 'measure_step', trial)
    monkeypatch.setattr(score_lib, '_tried', {})
    monkeypatch.setattr(score_lib, 'TrainedRun', None)
    made = plan(root, BASE, seeds=1)
    for metrics, times in (
        (METRICS, 1),
        (METRICS, 1),
        ((*METRICS, Metric('step_seconds')), 2),
        ((Metric('step_seconds'),), 3),
    ):
        score_lib.score(made.trials[0], metrics, quiet)
        assert len(tried) == times
        result = json.loads((root / 'base/0/result.json').read_text())
        assert (result['step_seconds'], result['memory_bytes']) == (0.25 * times, 3)
        assert result['step_spread'] == 0.5 * times
    assert result['scores']['step_seconds'] == 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    ('clock', 'median'), [([9, 0.2, 0.3, 0.1, 0.5, 7], 0.25), ([9, *51 * [1e-3], 7], 1e-3)]
)
def test_a_trial_compiles_once_and_times_until_it_is_enough(
    real, tmp_path, monkeypatch, clock, median
):
    traced, left = [], list(clock)

    def counted(*args):
        traced.append(args)
        return original(*args)

    def seconds(function):
        jax.block_until_ready(function())
        return left.pop(0)

    original = programs.train_step
    monkeypatch.setattr(programs, 'train_step', counted)
    monkeypatch.setattr(measure, 'seconds', seconds)
    monkeypatch.setattr(BytePairs, 'train', None)  # the tokenizer is not learned anew
    config = plan(tmp_path, BASE).trials[0].config
    found = measure.measure_step(resolve(config), absolute_path(real[0]) / 'base/0/tokenizer')
    assert found.step_seconds == pytest.approx(median)
    assert len(traced) == 1
    assert left in ([7], [1e-3, 7])  # it stops after a second, or 50 steps


@pytest.mark.slow
def test_a_trial_under_pmap(real, tmp_path):
    config = plan(tmp_path, BASE, **{'parallel.mode': 'pmap'}).trials[0].config
    found = measure.measure_step(resolve(config), absolute_path(real[0]) / 'base/0/tokenizer')
    assert found.step_seconds > 0
    assert found.memory_bytes > 12 * measure.model_size(resolve(config)).params


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'seed': 1},
        {'scores': ['test exact_match']},
        {'scores': {'test exact_match': 'nan', 'validation loss': 1.0}},
        {'examples': None},
        {'lengths': 3},
        {'checkpoints': {'validation loss': [4]}},
        {'checkpoints': []},
    ],
)
def test_only_a_sound_score_of_this_run_is_taken_over(real, tmp_path, monkeypatch, changes):
    class Evaluated(Exception):
        pass

    def trained(*args):
        raise Evaluated

    root = shutil.copytree(real[0], tmp_path / 'root')
    path = root / 'base/0/result.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    monkeypatch.setattr(score_lib, 'TrainedRun', trained)
    monkeypatch.setattr(score_lib, '_costs', lambda run, anew: {})
    with pytest.raises(Evaluated) if changes else contextlib.nullcontext():
        score_lib.score(plan(root, BASE).trials[0], METRICS, quiet)


@pytest.mark.slow
def test_bleu_of_a_length_is_that_of_its_sentences(real, tmp_path, monkeypatch):
    root, evaluated = shutil.copytree(real[0], tmp_path / 'root'), []
    evaluate = TrainedRun.evaluate
    monkeypatch.setattr(
        TrainedRun, 'evaluate', lambda self, split: evaluated.append(split) or evaluate(self, split)
    )
    metrics = (Metric('bleu'), *(Metric('bleu', length=length) for length in (7, 9, 24)))
    made = plan(root, {'base': {}}, metrics, seeds=1)
    score_lib.score(made.trials[0], metrics, quiet)
    assert evaluated == ['test']  # translated once
    result = json.loads((root / 'base/0/result.json').read_text())
    hypotheses = (root / 'base/0' / result['examples']['test bleu']).read_text().splitlines()
    trained = open_last(root)
    texts = trained.data.text('test')
    pairs = zip(texts.source, texts.target, strict=True)
    sizes = np.array([1 + max(map(len, trained.data.tokenizer.encode(pair))) for pair in pairs])
    for low, high in ((0, 7), (7, 9), (9, 24)):
        own = np.flatnonzero((sizes > low) & (sizes <= high))
        assert len(own) > 1
        expected = BLEU(tokenize=trained.config.evaluate.bleu_tokenize, force=True).corpus_score(
            [hypotheses[number] for number in own], [[texts.target[number] for number in own]]
        )
        assert result['scores'][f'test bleu at {high}'] == pytest.approx(expected.score)


@pytest.mark.slow
def test_the_time_of_a_decoded_token_is_a_metric(real, tmp_path, monkeypatch):
    root = shutil.copytree(real[0], tmp_path / 'root')
    made = plan(root, {'base': {}}, (*METRICS, Metric('decode_seconds')), seeds=1)
    assert made.lacks(made.trials[0]) == 'its decode_seconds is not measured'
    monkeypatch.setattr(score_lib, 'TrainedRun', None)  # nothing is evaluated again
    score_lib.score(made.trials[0], made.experiment.metrics, quiet)
    result = json.loads((root / 'base/0/result.json').read_text())
    assert result['scores']['decode_seconds'] > 0
    assert not made.lacks(made.trials[0])


@pytest.mark.slow
def test_a_new_metric_is_scored_without_training(real, monkeypatch):
    root, _ = real
    before = (root / 'base/0/metrics.jsonl').read_text(), load_results(root)['runs'][0]['scores']
    metrics = (
        *METRICS,
        Metric('bleu'),
        Metric('bleu', length=6),
        Metric('accuracy', 'validation', length=12),
        Metric('accuracy', length=24),
        *(Metric(probe, 'validation', 'last') for probe in PROBES),
    )
    made = plan(root, {'base': {}}, metrics, seeds=1)
    assert 'bleu is not measured' in made.lacks(made.trials[0])
    ablate(made, quiet)
    [run] = load_results(root)['runs']
    assert before == (
        (root / 'base/0/metrics.jsonl').read_text(),
        {label: run['scores'][label] for label in before[1]},
    )
    assert 0 <= run['scores']['validation accuracy at 12'] <= 1
    assert run['lengths'] == {'validation': [12], 'test': [6, 24]}
    [probed] = probe(open_last(root), 'validation', 4)['checkpoints']
    for name in PROBES:
        mean = np.mean([row[name] for row in probed['sites']])
        assert run['scores'][f'validation {name}'] == pytest.approx(mean)
    hypotheses = (root / 'base/0' / run['examples']['test bleu']).read_text().splitlines()
    sentences = json.loads((root / 'base/0/sentences.json').read_text())
    assert (
        len(sentences['test bleu']) == len(sentences['test exact_match']) == len(hypotheses) == 20
    )
    totals = np.array(sentences['test bleu']).sum(0).tolist()
    bleu = BLEU.compute_bleu(totals[:4], totals[4:8], totals[8], totals[9], smooth_method='exp')
    assert bleu.score == pytest.approx(run['scores']['test bleu'])
    assert np.mean(sentences['test exact_match']) == run['scores']['test exact_match']


@pytest.mark.parametrize('seeds', [1, 2])
def test_an_untrained_model_is_scored(tmp_path, seeds):
    """With `train.steps=0`, alone and side by side."""
    parts = ('', 'encoder_0/ffn', 'decoder_0/ffn')
    metrics = (
        Metric('logit_std', 'validation'),
        *(Metric('gradient_norm', 'validation', part=part) for part in parts),
    )
    changes = {'train.steps': 0, 'data.batching': 'packed(24)'}
    made = plan(tmp_path, BASE, metrics, seeds=seeds, **changes)
    ablate(made, quiet)
    runs = load_results(tmp_path)['runs']
    assert [run['side_by_side'] for run in runs] == seeds * [seeds]
    for run in runs:
        whole, encoder, decoder = (run['scores'][str(metric)] for metric in metrics[1:])
        assert whole > math.hypot(encoder, decoder) > 0
        assert (run['step'], {*map(tuple, run['checkpoints'].values())}) == (0, {(0,)})
    assert len({run['scores']['validation logit_std'] for run in runs}) == seeds
    assert not any(map(made.lacks, made.trials))

"""The loop: what it writes, when it stops, what it refuses, and that every way to lay it out learns
the same.
"""

import io
import json
import shutil

import jax
import num2words
import numpy as np
import pytest
import rich.console
from etils import epath
from helpers.support import events, experiment, fingerprint, losses, quiet, stop_at

from transformer_jax import config as config_lib
from transformer_jax.config import resolve
from transformer_jax.data.tokenizers import BytePairs
from transformer_jax.display.evaluations import evaluation_table
from transformer_jax.efficiency.profile import Window
from transformer_jax.efficiency.time_spent import TimeSpent, read_stretches
from transformer_jax.errors import ConfigError, DataError, Diverged
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.profiling.inspect import inspect_workdir
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import make_program
from transformer_jax.training.recording import Recording
from transformer_jax.training.train import train


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """(workdir, remarks, best) of a run with evaluations."""
    workdir, remarks = tmp_path_factory.mktemp('run'), []
    best = train(experiment(evaluate__every=5, checkpoint__average=2), workdir, remarks.append)
    return workdir, remarks, best


def saved(workdir) -> list[int]:
    return Checkpoints(workdir / 'checkpoints', keep=1, read_only=True).valid_steps()


def host_params(workdir, step: int) -> list[np.ndarray]:
    trained = TrainedRun(workdir, str(step), quiet, {})
    return [np.asarray(leaf) for leaf in jax.tree.leaves(trained.params)]


# --- What a run leaves ----------------------------------------------------------------------------


def test_the_workdir_tells_the_whole_run(run):
    workdir, remarks, best = run
    assert [event['step'] for event in events(workdir, 'train')] == list(range(1, 13))
    assert {
        'loss',
        'nll',
        'accuracy',
        'tokens',
        'grad_norm',
        'learning_rate',
        'tokens_per_second',
        'data_wait',
        'tokens_per_second_per_device',
        'model_flops_per_second',
        'mfu',
        'step_seconds_p50',
        'step_seconds_p90',
        'step_seconds_p99',
        'compile_seconds',
        'memory_peak_bytes',
        'goodput',
    } <= events(workdir, 'train')[0].keys()
    assert [event['step'] for event in events(workdir, 'validation')] == [
        5,
        10,
        12,
    ]  # and after the last step
    assert {'loss', 'perplexity', 'bleu', 'chrf', 'exact_match'} <= events(workdir, 'validation')[
        0
    ].keys()
    (record,) = json.loads((workdir / 'run.json').read_text())
    assert record['exit'] == 'done'
    assert record['engines'] == {'encoder': 'dense', 'decoder': 'dense', 'cross': 'dense'}
    assert 'engines: encoder dense; decoder dense; cross dense' in remarks
    assert {path.name for path in workdir.iterdir()} >= {
        'config.json',
        'tokenizer',
        'events',
        'checkpoints',
    }
    assert any('step 10: validation loss' in remark for remark in remarks)
    lowest = min(events(workdir, 'validation'), key=lambda event: event['loss'])
    assert best == {'step': lowest['step'], 'metric': 'loss', 'value': lowest['loss']}


def test_the_record_of_the_time_covers_the_whole_run(run):
    spent = TimeSpent(read_stretches(epath.Path(run[0] / 'times.jsonl')))
    assert (spent.starts, spent.between) == (1, 0.0)
    assert {'setup', 'compile', 'wait', 'evaluate', 'save', 'steps'} <= spent.seconds.keys()
    assert min(spent.seconds.values()) >= 0
    assert 0 < events(run[0], 'train')[-1]['goodput'] < 1


def test_inspect_shows_where_the_time_went(run):
    text = io.StringIO()
    inspect_workdir(run[0], rich.console.Console(file=text))
    *_, last = text.getvalue().splitlines()
    assert 's in 1 start, goodput ' in text.getvalue()
    assert 'scoring the validation split' in text.getvalue()
    assert last.startswith('sha256 ')


def test_a_profile_is_written_and_told(tmp_path):
    remarks = []
    recording = Recording(Window(2, 4))
    train(experiment(train__steps=5), tmp_path, remarks.append, recording=recording)
    assert {path.suffix for path in (tmp_path / 'profile').rglob('*.*')} == {'.pb', '.gz'}
    head = next(index for index, line in enumerate(remarks) if 'largest operations' in line)
    assert any('dot' in line or 'fusion' in line for line in remarks[head + 1 : head + 11])
    assert any(f'xprof --logdir={tmp_path}/profile' in line for line in remarks)
    train(experiment(train__steps=5), tmp_path, remarks.append, recording=recording)
    assert 'no profile: the run goes on after step 5, and --profile begins after step 2' in remarks


def test_a_profile_outside_of_the_run_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(
        ConfigError, match=r'--profile=10:13 is no part of a run of train\.steps=12 steps'
    ):
        train(experiment(), tmp_path / 'w', quiet, recording=Recording(Window(10, 13)))
    assert not (tmp_path / 'w' / 'config.json').exists()


def test_learning_rate_and_tokens_are_those_of_the_step(run):
    first, *_, last = events(run[0], 'train')
    assert first['learning_rate'] == pytest.approx(0.003 / 4)
    assert last['learning_rate'] < events(run[0], 'train')[4]['learning_rate']
    assert 0 < first['tokens'] <= 512


def test_the_model_learns(run):
    assert losses(run[0])[-1] < losses(run[0])[0] - 0.3


def test_retention_keeps_the_newest_and_the_best(run):
    workdir, _, best = run
    assert {8, 10, 12} | {best['step']} == set(
        saved(workdir)
    )  # checkpoint.keep is 3; every 4, and each new best


def test_a_finished_run_does_nothing_more(run):
    workdir, _, best = run
    before = fingerprint(workdir), (workdir / 'metrics.jsonl').read_text()
    assert train(experiment(evaluate__every=5, checkpoint__average=2), workdir, quiet) == best
    assert (fingerprint(workdir), (workdir / 'metrics.jsonl').read_text()) == before


def test_a_kernel_that_is_not_here_cannot_train_and_binds_nothing(tmp_path):
    with pytest.raises(
        ConfigError, match=r"model\.engine='splash' needs a TPU.*set model\.engine=auto"
    ):
        train(experiment(model__engine='splash'), tmp_path, quiet)
    with Workdir(tmp_path).open_for_training(config_lib.to_dict(experiment())):
        pass


# --- Evaluation from the checkpoint alone ---------------------------------------------------------


def test_evaluation_needs_the_workdir_alone(run):
    workdir, _, best = run
    result = TrainedRun(workdir, 'last', quiet, {}).evaluate('validation').scores
    assert result['loss'] == pytest.approx(events(workdir, 'validation')[-1]['loss'], rel=1e-6)
    assert (result['steps'], result['direction'], result['sentences']) == ([12], 'en-de', 20)
    assert 'version' in result['bleu_signature']
    assert json.loads((workdir / 'evaluations.json').read_text())[-1] == result
    assert 'exact_match' in evaluation_table(result)
    assert TrainedRun(workdir, '', quiet, {}).steps == (best['step'],)


def test_what_a_kernel_trained_is_evaluated_where_there_is_none_and_says_so(run, tmp_path):
    workdir, remarks = tmp_path / 'copy', []
    shutil.copytree(run[0], workdir)
    path = workdir / 'config.json'
    path.write_text(path.read_text().replace('"engine": "auto"', '"engine": "splash"'))
    assert TrainedRun(workdir, 'last', remarks.append, {}).config.model.engine == 'auto'
    assert any(
        remark.startswith("model.engine='splash' is not on this machine") for remark in remarks
    )


def test_averaging_takes_the_newest(run):
    workdir, *_ = run
    trained = TrainedRun(workdir, 'avg:2', quiet, {})
    assert trained.steps == (12, 10)
    for mean, a, b in zip(
        jax.tree.leaves(trained.params), host_params(workdir, 12), host_params(workdir, 10)
    ):
        np.testing.assert_allclose(np.asarray(mean), (a.astype(np.float64) + b) / 2, atol=1e-7)
    with pytest.raises(ConfigError, match='avg:9: 9 intact checkpoints are needed and 3 exist'):
        TrainedRun(workdir, 'avg:9', quiet, {})


def test_another_tokenizer_is_refused(run, tmp_path):
    workdir, *_ = run
    for name in ('config.json', 'checkpoints'):
        (tmp_path / name).symlink_to(workdir / name)
    words = [num2words.num2words(n) for n in range(300)]  # without the German ones
    BytePairs.train(words, 90).save(epath.Path(tmp_path / 'tokenizer'))
    with pytest.raises(
        DataError, match=r'holds the tokenizer .* but the checkpoint was trained with'
    ):
        TrainedRun(tmp_path, 'last', quiet, {})


# --- Early stopping -------------------------------------------------------------------------------

# A learning rate of 0 never beats its first evaluation.
PATIENT = {'optim__learning_rate': 0.0, 'evaluate__every': 2, 'evaluate__patience': 2}


@pytest.mark.parametrize('interrupted', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_patience_ends_a_run_for_good(tmp_path, interrupted):
    config = experiment(**PATIENT)
    if interrupted:  # the failed evaluation at step 4 is remembered
        stop_at(5, config, tmp_path)
    best = train(config, tmp_path, quiet)
    assert (best['step'], saved(tmp_path)[-1]) == (2, 6)
    before = (tmp_path / 'metrics.jsonl').read_text()
    assert train(config, tmp_path, quiet) == best
    assert (tmp_path / 'metrics.jsonl').read_text() == before
    assert saved(tmp_path)[-1] == 6


# --- Numbers that are not finite ------------------------------------------------------------------

HUGE = 1e15  # the first update is finite, the scores of attention after it are not


def test_a_run_that_diverges_stops_and_keeps_its_checkpoints(tmp_path):
    config = experiment(optim__learning_rate=HUGE, checkpoint__every=1)
    with pytest.raises(
        Diverged, match=r'step 2: loss nan.*not finite.*optim\.learning_rate'
    ) as stop:
        train(config, tmp_path, quiet)
    assert stop.value.exit_code == 4
    assert saved(tmp_path) == [
        1
    ]  # which may still have been under way when the loss of step 2 was read
    assert all(np.isfinite(leaf).all() for leaf in host_params(tmp_path, 1))
    assert json.loads((tmp_path / 'run.json').read_text())[0]['exit'].startswith('Diverged')


def test_steps_that_are_not_finite_may_be_skipped_and_are_counted(tmp_path):
    remarks = []
    train(
        experiment(optim__learning_rate=HUGE, train__on_nonfinite='skip'), tmp_path, remarks.append
    )
    skipped = [event['step'] for event in events(tmp_path, 'skipped')]
    assert skipped == list(range(2, 13))
    assert sum('not applied' in remark for remark in remarks) == len(skipped)
    trained = TrainedRun(tmp_path, 'last', quiet, {})
    _, state, _ = Checkpoints(tmp_path / 'checkpoints', keep=1, read_only=True).restore(
        make_program(resolve(trained.config)).abstract
    )
    assert (int(state.step), int(state.skipped)) == (12, len(skipped))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


# --- Ways to lay a step out -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """The losses of a run without dropout."""
    workdir = tmp_path_factory.mktemp('plain')
    train(experiment(model__dropout=0.0), workdir, quiet)
    return losses(workdir)


@pytest.mark.slow
def test_microbatches_change_nothing(plain, tmp_path):
    train(experiment(model__dropout=0.0, train__accumulate=2), tmp_path, quiet)
    np.testing.assert_allclose(losses(tmp_path), plain, rtol=1e-4)


@pytest.mark.slow
def test_pmap_changes_nothing_and_evaluates_and_resumes(plain, tmp_path):
    config = experiment(model__dropout=0.0, parallel__mode='pmap', evaluate__every=5)
    stop_at(7, config, tmp_path)
    train(config, tmp_path, quiet)
    np.testing.assert_allclose(losses(tmp_path), plain, rtol=1e-4)
    assert np.isfinite([event['loss'] for event in events(tmp_path, 'validation')]).all()


@pytest.mark.slow
def test_packed_rows_train_and_evaluate(tmp_path):
    train(experiment(data__batching='packed(length=48)', evaluate__every=12), tmp_path, quiet)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert events(tmp_path, 'train')[0]['tokens'] > 256  # over half of the 480 slots
    assert np.isfinite(events(tmp_path, 'validation')[0]['loss'])


def test_epochs_are_a_clock_too(tmp_path):
    config = experiment(
        data__max_train_examples=105,
        checkpoint__every=0,
        checkpoint__every_epochs=1,
        evaluate__every_epochs=2,
    )
    train(config, tmp_path, quiet)
    assert saved(tmp_path) == [5, 10, 12]  # 5 steps of 21 rows are an epoch
    assert [event['step'] for event in events(tmp_path, 'validation')] == [10, 12]

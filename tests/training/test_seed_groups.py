"""Groups of seeds: each member is the run that it would have been alone, in what it learns and in
the files that it leaves.
"""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from helpers.support import (
    events,
    experiment,
    fingerprint,
    finish,
    flags,
    losses,
    quiet,
    start,
    stop_at,
)
from test_distributed import pair

from transformer_jax import config as config_lib
from transformer_jax.config import resolve
from transformer_jax.errors import ConfigError, Diverged, WorkdirError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_checkpoints import open_checkpoints
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import programs, seed_groups
from transformer_jax.training.programs import make_program
from transformer_jax.training.seed_groups import seed_configs
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train import train, train_group

RUN = {'train__steps': 20, 'evaluate__every': 7, 'checkpoint__average': 2}  # with dropout


def in_folder(path, *members, name='.') -> SeedGroup:
    """The group of some members of a folder; by default the folder is its own workdir."""
    return SeedGroup(absolute_path(path), name, members)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The workdirs of seeds 0 and 1, each trained alone."""
    folder = tmp_path_factory.mktemp('alone')
    for seed in (0, 1):
        train(experiment(train__seed=seed, **RUN), folder / str(seed), quiet)
    return folder


@pytest.fixture(scope='module')
def group(tmp_path_factory):
    """The workdir of both as a group, on two halves of the devices."""
    folder = tmp_path_factory.mktemp('group')
    train(experiment(train__num_seeds=2, **RUN), folder, quiet)
    return folder


def column(workdir, name, split='train'):
    return [event[name] for event in events(workdir, split)]


def trace(workdir) -> list[tuple]:
    """The steps, splits and losses of metrics.jsonl, without times."""
    return [(event['step'], event['split'], event['loss']) for event in events(workdir)]


# --- A member is the run alone --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('seed', ['0', '1'])
def test_a_seed_learns_as_it_does_alone(alone, group, seed):
    assert len(losses(group / seed)) == 20
    np.testing.assert_allclose(losses(group / seed), losses(alone / seed), atol=1e-4)
    assert column(group / seed, 'tokens') == column(
        alone / seed, 'tokens'
    )  # its own order of the data
    for name in ('step', 'loss', 'bleu'):
        np.testing.assert_allclose(
            column(group / seed, name, 'validation'),
            column(alone / seed, name, 'validation'),
            atol=1e-4,
        )


@pytest.mark.slow
def test_the_seeds_are_different_runs(group):
    assert column(group / '0', 'tokens') != column(group / '1', 'tokens')
    assert abs(losses(group / '0')[0] - losses(group / '1')[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('seed', ['0', '1'])
def test_the_folder_of_a_seed_is_a_workdir(alone, group, seed):
    read = [Workdir(folder / seed).read_config() for folder in (alone, group)]
    assert read[0] == read[1]
    assert json.loads((group / 'config.json').read_text())['train']['num_seeds'] == 2
    (record,) = json.loads((group / seed / 'run.json').read_text())
    assert record['exit'] == 'done'
    assert (group / seed / 'curves.png').exists()
    assert not (group / seed / 'checkpoints').exists()


@pytest.mark.slow
@pytest.mark.parametrize('choice', ['', 'last', 'avg:2', '14'])
def test_its_checkpoints_are_those_of_the_run_alone(alone, group, choice):
    one, other = (TrainedRun(folder / '1', choice, quiet, {}) for folder in (alone, group))
    assert one.steps == other.steps
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_it_is_evaluated_through_its_folder(alone, group):
    one, other = (
        TrainedRun(folder / '1', 'best', quiet, {}).evaluate('test').scores
        for folder in (alone, group)
    )
    for name in ('loss', 'accuracy', 'bleu', 'exact_match'):
        assert one[name] == pytest.approx(other[name], abs=1e-4)
    assert json.loads((group / '1' / 'evaluations.json').read_text())[-1]['steps'] == list(
        one['steps']
    )


@pytest.mark.slow
def test_a_group_is_stopped_and_goes_on_as_if_it_had_not_been(group, tmp_path):
    config = experiment(train__num_seeds=2, **RUN)
    for now in (5, 16):  # Between the checkpoints.
        stop_at(now, config, tmp_path)
    train(config, tmp_path, quiet)
    for seed in ('0', '1'):
        assert fingerprint(tmp_path / seed) == fingerprint(group / seed)  # Bit by bit.
        assert trace(tmp_path / seed) == trace(group / seed)


@pytest.mark.rare
def test_one_device_is_eight(group, tmp_path):
    finish(start('train', f'--workdir={tmp_path}', *flags(train__num_seeds=2, **RUN)))
    for seed in ('0', '1'):
        np.testing.assert_allclose(losses(tmp_path / seed), losses(group / seed), atol=1e-4)


@pytest.mark.rare
def test_two_processes_are_one(group, tmp_path):
    for process in pair(tmp_path, train__num_seeds=2, **RUN | {'model__dropout': 0.1}):
        finish(process)
    for seed in ('0', '1'):
        np.testing.assert_allclose(losses(tmp_path / seed), losses(group / seed), atol=1e-4)
        assert column(tmp_path / seed, 'bleu', 'validation') == column(
            group / seed, 'bleu', 'validation'
        )
    assert (
        TrainedRun(tmp_path / '1', 'best', quiet, {}).steps
        == TrainedRun(group / '1', 'best', quiet, {}).steps
    )


# --- Numbers that differ, and runs that end -------------------------------------------------------

SETTINGS = (
    {'optim__learning_rate': 1e30},
    {'model__dropout': 0.3, 'train__label_smoothing': 0.0},
    {'train__seed': 1, 'optim__learning_rate': 0.001, 'optim__weight_decay': 0.5},
)
FOLDERS = ('huge', 'other-0', 'other-1')


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    """(workdir, records, traces) of a group of three runs, of which the first diverges."""
    folder, traced = tmp_path_factory.mktemp('varied'), []

    def counted(*args):
        traced.append(args)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        original = programs.seed_step
        patch.setattr(programs, 'seed_step', counted)
        records = train_group(
            [experiment(**setting) for setting in SETTINGS], in_folder(folder, *FOLDERS), quiet
        )
    return folder, records, len(traced)


@pytest.mark.slow
@pytest.mark.parametrize('index', [1, 2])
def test_other_numbers_need_no_other_program(varied, tmp_path, index):
    folder, _, traces = varied
    assert traces == 1
    train(experiment(**SETTINGS[index]), tmp_path, quiet)
    np.testing.assert_allclose(losses(folder / FOLDERS[index]), losses(tmp_path), atol=1e-4)
    assert Workdir(folder / FOLDERS[index]).read_config() == Workdir(tmp_path).read_config()


@pytest.mark.slow
def test_what_diverges_stops_alone(varied):
    folder, records, _ = varied
    assert [bool(record.failed) for record in records] == [True, False, False]
    assert len(losses(folder / 'huge')) < 2
    assert len(losses(folder / 'other-1')) == 12
    assert 'Diverged: step' in json.loads((folder / 'huge' / 'run.json').read_text())[0]['exit']
    with pytest.raises(ConfigError, match='no checkpoint yet'):
        TrainedRun(folder / 'huge', 'last', quiet, {})
    before = trace(folder / 'other-1')
    configs = [experiment(**setting) for setting in SETTINGS]
    again = train_group(configs, in_folder(folder, *FOLDERS), quiet)
    assert (again, trace(folder / 'other-1')) == (records, before)  # Nothing is left to do.


@pytest.mark.slow
def test_a_seed_that_diverged_is_an_error_at_the_end(monkeypatch, tmp_path):
    members = seed_configs(experiment(train__num_seeds=2, train__steps=3))
    wild = config_lib.replace(
        members[1], optim=dataclasses.replace(members[1].optim, learning_rate=1e30)
    )
    monkeypatch.setattr(seed_groups, 'seed_configs', lambda config: (members[0], wild))
    with pytest.raises(
        Diverged, match=r'1 of 2 seeds diverged \(seed 1 at step 1: .*; the others are done'
    ):
        train(experiment(train__num_seeds=2, train__steps=3), tmp_path, quiet)
    assert len(losses(tmp_path / '0')) == 3


def test_all_that_diverge_end_the_group(tmp_path):
    config = experiment(train__num_seeds=2, train__steps=3, optim__learning_rate=1e30)
    with pytest.raises(
        Diverged,
        match=r'2 of 2 seeds diverged \(seed 0 at step 1: .*; seed 1 at step 1: .*not '
        r'applied\)\. To train all, lower optim\.learning_rate',
    ):
        train(config, tmp_path, quiet)
    assert not (tmp_path / 'checkpoints').exists()
    for folder in ('', '0', '1'):
        assert (
            'Diverged: step 1'
            in json.loads((tmp_path / folder / 'run.json').read_text())[0]['exit']
        )
    # A record of each, as where one of them goes on.
    first, second = train_group(seed_configs(config), in_folder(tmp_path, '0', '1'), quiet)
    assert str(first.error).startswith('step 1: loss')
    assert str(second.error).endswith("on_nonfinite='skip'")
    assert 'seed' not in str(first.error)


@pytest.mark.slow
def test_a_signal_after_all_failed_saves_nothing_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(StopSignals, 'received', lambda self, now: signal.SIGTERM * (now == 2))
    with pytest.raises(Diverged):
        train(experiment(train__steps=4, optim__learning_rate=1e30), tmp_path, quiet)
    assert not (tmp_path / 'checkpoints').exists()
    assert 'Diverged' in json.loads((tmp_path / 'run.json').read_text())[0]['exit']


@pytest.mark.slow
@pytest.mark.parametrize('interrupted', [False, True])
def test_patience_ends_one_run_and_freezes_it(tmp_path, interrupted):
    changes = {
        'evaluate__every': 2,
        'evaluate__patience': 2,
        'checkpoint__keep': 1,
        'evaluate__max_examples': 1,
    }
    # With a learning rate of 0 no evaluation is better than the first.
    configs = [experiment(optim__learning_rate=rate, **changes) for rate in (0.0, 0.003)]
    folders = ('still', 'moving')
    if interrupted:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                'helpers.support.train',
                lambda config, path, log: train_group(configs, in_folder(path, *folders), log),
            )
            stop_at(9, None, tmp_path)
    still, moving = train_group(configs, in_folder(tmp_path, *folders), quiet)
    assert (still.stopped_early, still.best['step'], still.saves) == (True, 2, [2, 6])
    assert (moving.stopped_early, moving.best['step']) == (False, 12)
    assert [events(tmp_path / name)[-1]['step'] for name in folders] == [6, 12]
    trained = TrainedRun(tmp_path / 'still', 'last', quiet, {})
    assert trained.steps == (6,)  # The group has newer ones.
    best = TrainedRun(tmp_path / 'still', 'best', quiet, {})
    assert best.steps == (2,)
    jax.tree.map(np.testing.assert_array_equal, trained.params, best.params)
    _, state, _ = open_checkpoints(trained.workdir).restore(
        make_program(resolve(trained.config)).abstract
    )
    assert int(state.step) == 6


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'data__batching': 'buckets(lengths=(16, 24))'},
            r'needs batches of one shape.*packed\(length=24\)',
        ),
        ({'parallel__mode': 'pmap'}, "cannot work with parallel.mode='pmap'"),
        ({'train__seed': 2**32 - 1}, r'counts train.seed=4294967295 up: train.seed=.* is outside'),
        ({'train__num_seeds': 0}, r'train.num_seeds=0 is outside 1 ≤ value'),
    ],
)
def test_what_cannot_be_side_by_side_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment(**{'train__num_seeds': 2} | changes)


def test_runs_that_differ_in_more_are_refused_by_the_key(tmp_path):
    pair_of = in_folder(tmp_path, '0', '1')
    with pytest.raises(
        ConfigError, match=r'differ in model\.d_ff: 32, 64; runs may differ in train\.seed, '
    ):
        train_group([experiment(), experiment(train__seed=1, model__d_ff=64)], pair_of, quiet)
    same = in_folder(tmp_path, '0', '0')
    with pytest.raises(ConfigError, match='folders of their own, these are 0, 0'):
        train_group([experiment(), experiment(model__dropout=0.2)], same, quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_group_and_a_run_alone_do_not_mix(group, tmp_path):
    with pytest.raises(ConfigError, match=r'holds a group of seeds: name one of them, .*/0, .*/1'):
        TrainedRun(group, 'last', quiet, {})
    with pytest.raises(WorkdirError, match=r'holds a run of a group.*resume the whole group'):
        train(experiment(**RUN), group / '0', quiet)
    with pytest.raises(ConfigError, match=r'train\.num_seeds: 2 -> 1'):
        train(experiment(**RUN), group, quiet)
    configs = seed_configs(experiment(train__num_seeds=2, **RUN))
    with pytest.raises(ConfigError, match='holds the seeds of 0, 1, not of 0, 2'):
        train_group(configs, in_folder(group, '0', '2'), quiet)
    with pytest.raises(WorkdirError, match=r'/0 belongs to another group'):
        train_group(configs, in_folder(group, '0', '2', name='other'), quiet)
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'metrics.jsonl').touch()
    with pytest.raises(WorkdirError, match='taken holds a run of its own'):
        train_group(configs, in_folder(tmp_path, '0', 'taken'), quiet)
    # A configuration that has never trained does not bind the next one.
    other = config_lib.to_dict(experiment(train__seed=7, **RUN))
    with Workdir(tmp_path).open_for_training(other):
        pass


def test_a_group_of_one_is_a_run_alone(tmp_path):
    [record] = train_group([experiment(train__steps=2)], in_folder(tmp_path, '0'), quiet)
    assert (tmp_path / '0' / 'checkpoints' / '2').exists()
    assert not (tmp_path / 'seed_groups.json').exists()
    assert record.saves == [2]


@pytest.mark.slow
def test_a_deleted_member_is_trained_again_alone(group, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(group, copy)
    shutil.rmtree(copy / '1')
    train(experiment(train__seed=1, **RUN), copy / '1', quiet)
    np.testing.assert_allclose(losses(copy / '1'), losses(group / '1'), atol=1e-4)
    assert (copy / '1' / 'checkpoints').exists()
    assert fingerprint(copy / '0') == fingerprint(group / '0')
    with pytest.raises(WorkdirError, match='cannot continue without 1, which were deleted'):
        train(experiment(train__num_seeds=2, **RUN), copy, quiet)

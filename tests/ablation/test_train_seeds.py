"""Seeds in groups, without training: what shares a program, and how it continues."""

import contextlib
import json
import os
import re
import shutil
import signal
import weakref

import numpy as np
import pytest
from helpers.support import quiet
from helpers.tiny_ablation import BASE, EVERYTHING, VARIANTS, plan, write_run

from transformer_jax.ablation import train_seeds as rows
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import Unfinished, ablate
from transformer_jax.errors import Diverged, Stopped
from transformer_jax.storage.locks import lock
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_group_file import read_groups
from transformer_jax.training import seed_groups
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.training_run import REMEDY


def unscored(root, *seeds) -> None:
    for seed in seeds:
        (root / f'base/{seed}/result.json').unlink()


def entry(*members) -> str:
    """Return the content of a seed_groups.json with the group 0-1."""
    groups = {'0-1': {'members': list(members), 'released': []}}
    return json.dumps({'version': 1, 'groups': groups})


def done_seeds(root) -> list[int]:
    return [run['seed'] for run in load_results(root)['runs']]


def test_the_seeds_of_a_row_share_a_program(shared, tmp_path):
    shared |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    oh = 'ZeroDivisionError: oh'
    assert str(unfinished.value).split('\n  ') == [
        '3 of 6 runs are not done:',
        f'base/1: step 3: loss nan; {REMEDY}',
        f'one-head/0, one-head/1: {oh}',
    ]
    assert shared['trained'] == ['base/0-1', 'no-dropout/0-1']
    assert json.loads((tmp_path / 'base/1/failure.json').read_text()) == {
        'error': f'step 3: loss nan; {REMEDY}'
    }
    assert (
        'in train_group'
        in json.loads((tmp_path / 'one-head/1/failure.json').read_text())['traceback']
    )


def test_so_many_seeds_share_a_program(shared, tmp_path):
    ablate(plan(tmp_path, BASE, seeds=5), quiet, most=2)
    assert shared['trained'] == ['base/0-1', 'base/2-3', 'base/4']


def test_the_name_of_a_group_tells_its_seeds():
    assert seed_groups.group_name([0, 1, 5]) == '0-1-5'
    many = [
        range(100),
        [*range(50), *range(51, 101)],
        [*range(50), *range(51, 99), 100],
        range(1, 100),
    ]
    found = [seed_groups.group_name(list(seeds)) for seeds in many]
    assert len(set(found)) == len(many)
    assert all(re.fullmatch('[01]-to-(99|100)-[0-9a-f]{16}', name) for name in found)


def test_what_was_begun_goes_on_as_it_was(shared, tmp_path, monkeypatch):
    """A group continues whole, whatever --seeds_per_program says now; a single run alone."""
    (tmp_path / 'base/0').mkdir(parents=True)
    (tmp_path / 'base/0/metrics.jsonl').touch()
    shared['base/1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    del shared['base/1-2'], shared['trained'][:]
    ablate(plan(tmp_path, BASE, seeds=3), quiet, most=1)
    assert shared['trained'] == ['base/1-2']
    assert done_seeds(tmp_path) == [0, 1, 2]
    unscored(tmp_path, 1)
    shutil.rmtree(tmp_path / 'base/1-2')
    with pytest.raises(
        Unfinished,
        match=r'base/1: .* was trained together with other runs in .*/base/1-2, which is gone',
    ):
        ablate(plan(tmp_path, BASE), quiet)


@pytest.mark.parametrize('most', [0, 1])
def test_a_group_without_a_checkpoint_does_not_bind(shared, tmp_path, most):
    shared['base/1'] = MemoryError('of the device')
    oh = 'base/2: of the device: take smaller batches .*; --seeds_per_program=N trains fewer '
    with pytest.raises(Unfinished, match=oh) as unfinished:
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert unfinished.value.exit_code == 2
    with (
        lock(absolute_path(tmp_path) / 'base/0-1-2/lock'),
        pytest.raises(Unfinished) as unfinished,
    ):
        ablate(
            plan(tmp_path, BASE, seeds=4), quiet, most
        )  # the process that trains it has no checkpoint yet
    assert re.search(
        '3 of 4 .*\n  base/0, base/1, base/2: .*0-1-2 is in use by', str(unfinished.value)
    )
    assert shared['trained'] == ['base/3']
    (tmp_path / 'base/1/metrics.jsonl').unlink()  # The process was killed before it wrote that.
    del shared['base/1'], shared['trained'][:]
    ablate(plan(tmp_path, BASE, seeds=2), quiet, most)
    assert shared['trained'] == (['base/0', 'base/1'] if most else ['base/0-1'])
    assert list(read_groups(absolute_path(tmp_path) / 'base')) == ([] if most else ['0-1'])
    assert not (tmp_path / 'base/2/metrics.jsonl').exists()


def test_a_group_that_has_a_checkpoint_says_how_to_part_with_it(shared, tmp_path):
    shared['base/0-1'] = MemoryError('of the device')
    with pytest.raises(Unfinished, match=r'one program, once .*/base/0-1 and its runs are deleted'):
        ablate(plan(tmp_path, BASE), quiet)
    del shared['base/0-1']
    for folder in ('0-1', '0', '1'):
        shutil.rmtree(tmp_path / 'base' / folder)
    ablate(plan(tmp_path, BASE), quiet, most=1)
    assert shared['trained'] == ['base/0', 'base/1']
    assert not read_groups(absolute_path(tmp_path) / 'base')


def test_a_failure_keeps_nothing_of_the_run_alive(pretend, tmp_path, monkeypatch):
    arrays = []

    def out_of_memory(config, path, log):
        assert not any(array() is not None for array in arrays)
        array = np.zeros(3)
        arrays.append(weakref.ref(array))
        raise MemoryError

    monkeypatch.setattr(rows, 'train', out_of_memory)
    with pytest.raises(Unfinished):
        ablate(plan(tmp_path), quiet)
    assert len(arrays) == 6


def test_what_has_ended_is_not_opened_for_training(shared, tmp_path):
    shared['base/1'] = Diverged('step 3: loss nan')
    with pytest.raises(Unfinished, match='1 of 4 runs'):
        ablate(plan(tmp_path, BASE | {'one head': VARIANTS['one head']}), quiet)
    unscored(tmp_path, 0)
    shared['trained'].clear()
    with (
        lock(absolute_path(tmp_path) / 'base/0-1/lock'),
        pytest.raises(Unfinished) as unfinished,
    ):
        ablate(plan(tmp_path, BASE), quiet)
    assert (
        str(unfinished.value) == f'1 of 2 runs are not done:\n  base/1: step 3: loss nan; {REMEDY}'
    )
    assert (shared['trained'], done_seeds(tmp_path)) == ([], [0])


def test_a_run_of_another_configuration_is_opened_and_refused(pretend, tmp_path, monkeypatch):
    ablate(plan(tmp_path, BASE), quiet)
    unscored(tmp_path, 0)
    write_run(
        plan(tmp_path / 'other', BASE, **{'train.steps': 3}).trials[0].config, tmp_path / 'base/0'
    )
    monkeypatch.undo()
    with pytest.raises(
        Unfinished, match=r'base/0: .* with another configuration \(train.steps: 3 -> 4\)'
    ):
        ablate(plan(tmp_path, BASE), quiet)


def test_a_run_that_was_deleted_is_done_again_alone(shared, tmp_path):
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    unscored(tmp_path, 0)
    shutil.rmtree(tmp_path / 'base/1')
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert shared['trained'] == ['base/0-1-2', 'base/1']
    assert done_seeds(tmp_path) == [0, 1, 2]
    unscored(tmp_path, 0, 1)
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert shared['trained'] == ['base/0-1-2', 'base/1']
    for seed in (0, 1, 2):
        shutil.rmtree(tmp_path / f'base/{seed}')
    ablate(plan(tmp_path, BASE, seeds=3), quiet)  # not slices of the old group
    assert shared['trained'][2:] == ['base/0', 'base/1', 'base/2']


def test_a_deleted_member_of_a_group_that_goes_on_comes_back(shared, tmp_path):
    shared['base/0-1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    shutil.rmtree(tmp_path / 'base/1')
    del shared['base/0-1-2']
    found = [
        run.seed
        for run, failure in rows.train_seeds(
            plan(tmp_path, BASE).trials, 0, lambda runs, line: None
        )
    ]
    assert (found, shared['trained']) == ([0, 1, 2], ['base/0-1-2'])  # each once


def test_one_that_ended_early_is_told_once(shared, tmp_path):
    shared |= {'base/0': Diverged('nan'), 'base/0-1': Stopped(signal.SIGTERM, 'stopped')}
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE), quiet)
    del shared['base/0-1']
    found = list(rows.train_seeds(plan(tmp_path, BASE).trials, 0, lambda runs, line: None))
    assert [(run.seed, failure and failure.exit_code) for run, failure in found] == [
        (0, 4),
        (1, None),
    ]


@pytest.mark.parametrize('held', [False, True])
def test_who_goes_on_with_a_group_scores_all_of_it(shared, tmp_path, held):
    shared['base/0-1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    del shared['base/0-1-2']
    shared['base/1'] = Diverged('nan')  # it was not asked for here
    lines = []
    with lock(absolute_path(tmp_path) / 'base/2/ablate.lock') if held else contextlib.nullcontext():
        ablate(plan(tmp_path, BASE, seeds=3, part='0/3'), lines.append)
    assert shared['trained'] == ['base/0-1-2']
    assert done_seeds(tmp_path) == ([0] if held else [0, 2])
    assert lines[-1].startswith('1 of 1 runs done')
    with pytest.raises(Unfinished, match=r'1 of 1 .*\n  base/1: nan'):
        ablate(plan(tmp_path, BASE, seeds=3, part='1/3'), quiet)
    ablate(plan(tmp_path, BASE, seeds=3, part='2/3'), quiet)
    assert (shared['trained'], done_seeds(tmp_path)) == (['base/0-1-2'], [0, 2])


@pytest.mark.parametrize(
    'content', ['{', '[]', '{"version": 1}', entry('x', '0', '1'), entry('00', '0', '1')]
)
def test_a_damaged_group_fails_its_row_alone(shared, tmp_path, content):
    shared['base/0-1'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path), quiet)
    (tmp_path / 'base/seed_groups.json').write_text(content)
    del shared['base/0-1']
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    first, line = str(unfinished.value).split('\n')
    assert (first, unfinished.value.exit_code) == ('2 of 6 runs are not done:', 3)
    assert re.match('  base/0, base/1: .*base/seed_groups.json (is damaged|lists)', line)
    assert shared['trained'] == ['one-head/0-1', 'no-dropout/0-1']


def test_a_signal_that_came_too_late_for_training_stops_the_ablation(
    pretend, tmp_path, monkeypatch
):
    def signalled(config, path, log):
        with StopSignals() as signals:
            signals.hold()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rows, 'train', signalled)
    with pytest.raises(Stopped, match=r'stopped by SIGTERM; the same command continues \(0 of 6'):
        ablate(plan(tmp_path), quiet)
    with StopSignals() as signals:
        signals.hold()
        os.kill(os.getpid(), signal.SIGINT)  # Python's own handler stops at once


def test_parts_meet_in_the_root(pretend, tmp_path):
    for part in ('0/2', '1/2'):
        ablate(plan(tmp_path, part=part), quiet)
    assert not json.loads((tmp_path / 'results.json').read_text())['missing']
    assert sorted(pretend['trained']) == sorted(EVERYTHING)

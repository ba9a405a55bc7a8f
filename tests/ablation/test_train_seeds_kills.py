"""Ablations that are killed while a group of seeds changes, and groups of older versions."""

import shutil
import signal
from pathlib import Path

import pytest
from helpers.kills import every_kill
from helpers.old_groups import describe_as_before, old_files
from helpers.support import quiet
from helpers.tiny_ablation import BASE, plan

from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import Unfinished, ablate
from transformer_jax.ablation.train_seeds import train_seeds
from transformer_jax.errors import Stopped
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_group_file import read_groups
from transformer_jax.storage.workdir import Workdir

old_and_new = pytest.mark.parametrize('old', [False, True])


def copy_root(root, count, old) -> Path:
    """Copy a root; where `old`, its groups are described as before seed_groups.json."""
    copy = shutil.copytree(root, root.with_name(f'{root.name}-{count}'))
    if old:
        describe_as_before(copy / 'base')
    return copy


def train_all(root, seeds, most) -> None:
    trials = plan(root, BASE, seeds=seeds).trials
    list(train_seeds(trials, most, lambda members, line: None))


def done_seeds(root) -> list[int]:
    return [run['seed'] for run in load_results(root)['runs']]


@old_and_new
def test_a_kill_while_a_group_is_dissolved(shared, tmp_path, old):
    shared['base/1'] = MemoryError('of the device')
    root = tmp_path / 'root'
    with pytest.raises(Unfinished):
        ablate(plan(root, BASE), quiet)
    del shared['base/1']

    def check(count):
        copy = tmp_path / f'root-{count}'
        ablate(plan(copy, BASE), quiet, most=1)
        assert done_seeds(copy) == [0, 1]
        assert not read_groups(absolute_path(copy) / 'base')
        assert old_files(copy) == []
        for seed in ('0', '1'):
            assert Workdir(copy / 'base' / seed).checkpoints_path.parent.name == seed

    assert every_kill(lambda count: train_all(copy_root(root, count, old), 2, 1), check) >= 3


@old_and_new
def test_a_kill_while_a_member_is_released(shared, tmp_path, old):
    root = tmp_path / 'root'
    ablate(plan(root, BASE, seeds=3), quiet)
    shutil.rmtree(root / 'base/1')

    def check(count):
        copy = tmp_path / f'root-{count}'
        ablate(plan(copy, BASE, seeds=3), quiet)
        assert done_seeds(copy) == [0, 1, 2]
        indices = [Workdir(copy / f'base/{seed}').seed_index for seed in range(3)]
        assert indices == [0, None, 2]
        assert Workdir(copy / 'base/1').checkpoints_path.exists()

    assert every_kill(lambda count: train_all(copy_root(root, count, old), 3, 0), check) >= 1
    assert set(shared['trained']) == {'base/0-1-2', 'base/1'}


def test_an_old_group_goes_on_whole(shared, tmp_path):
    shared['base/0-1'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE), quiet)
    describe_as_before(tmp_path / 'base')
    del shared['base/0-1']
    ablate(plan(tmp_path, BASE), quiet, most=1)
    assert (shared['trained'], done_seeds(tmp_path)) == (['base/0-1'], [0, 1])
    assert old_files(tmp_path) == []
    assert list(read_groups(absolute_path(tmp_path) / 'base')) == ['0-1']


def test_members_of_a_deleted_group_that_are_deleted_one_by_one(shared, tmp_path):
    ablate(plan(tmp_path, BASE), quiet)
    for folder in ('0-1', '0'):
        shutil.rmtree(tmp_path / 'base' / folder)
    (tmp_path / 'base/1/result.json').unlink()
    with pytest.raises(Unfinished, match=r'1 of 2 .*\n  base/1: .* which is gone: delete .*/1 too'):
        ablate(plan(tmp_path, BASE), quiet)
    shutil.rmtree(tmp_path / 'base/1')
    ablate(plan(tmp_path, BASE), quiet)
    assert shared['trained'] == ['base/0-1', 'base/0', 'base/1']
    assert done_seeds(tmp_path) == [0, 1]

"""A group of seeds begins, is dissolved and releases members; a kill in between does no harm."""

import json
import shutil
from types import SimpleNamespace

import pytest
from helpers.kills import every_kill
from helpers.old_groups import describe_as_before, old_files
from helpers.support import experiment, quiet

from transformer_jax import config as config_lib
from transformer_jax.errors import Busy, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.locks import lock
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_group import SeedGroup, holds_run
from transformer_jax.storage.seed_group_file import read_groups
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.seed_groups import (
    dissolve_group,
    group_config,
    open_group,
    release_member,
    seed_configs,
)

CONFIGS = seed_configs(experiment(train__num_seeds=2))
GROUP_CONFIG = config_lib.to_dict(group_config(CONFIGS))
DATA = SimpleNamespace(reordered=lambda seed: None)


@pytest.fixture(autouse=True)
def _describe_no_machine(monkeypatch):
    """run.json needs no commit and devices here: they cost most of the time of a start."""
    monkeypatch.setattr('transformer_jax.storage.workdir.describe_run', lambda: {'exit': None})


def group_in(folder, name) -> SeedGroup:
    return SeedGroup(absolute_path(folder), name, ('0', '1'))


def start(group) -> None:
    """Begin or resume a group, as training does, until the first metrics are written."""
    with (
        Workdir(group.path).open_for_training(GROUP_CONFIG),
        open_group(group, CONFIGS, DATA, quiet) as runs,
    ):
        for run in runs:
            run.workdir.metrics_path.touch()


def require_begun(group) -> None:
    """Assert that a group is described once, and that its members have all of their files."""
    assert read_groups(group.parent)[group.name] == group
    assert old_files(group.parent) == []
    for index, path in enumerate(group.member_paths):
        assert Workdir(path).seed_index == index
        config = json.loads((path / 'config.json').read_text())
        assert (config['train']['seed'], config['train']['num_seeds']) == (index, 1)


def add_checkpoint(group) -> None:
    step = group.path / 'checkpoints' / '4'
    step.mkdir(parents=True)
    (step / 'meta.json').write_text('{}')
    manifest.write(step)


names = pytest.mark.parametrize('name', ['.', '0-1'])


@names
def test_a_group_that_was_killed_at_its_beginning_begins(tmp_path, name):
    def check(count):
        start(group_in(tmp_path / str(count), name))
        require_begun(group_in(tmp_path / str(count), name))

    changes = every_kill(lambda count: start(group_in(tmp_path / str(count), name)), check)
    assert changes >= 7  # seed_groups.json, and config.json and run.json of three workdirs


@names
def test_a_kill_while_an_old_group_is_rewritten(tmp_path, name):
    whole = tmp_path / 'whole'
    group = group_in(whole, name)
    start(group)
    add_checkpoint(group)
    describe_as_before(whole)

    def resume(count):
        start(group_in(shutil.copytree(whole, tmp_path / str(count)), name))

    def check(count):
        group = group_in(tmp_path / str(count), name)
        assert [Workdir(path).seed_index for path in group.member_paths] == [0, 1]
        start(group)
        require_begun(group)

    assert every_kill(resume, check) >= 10  # Three deletions more.


@names
@pytest.mark.parametrize('old', [False, True])
def test_a_group_that_was_killed_while_it_was_dissolved_is_dissolved(tmp_path, name, old):
    whole = tmp_path / 'whole'
    start(group_in(whole, name))
    if old:
        describe_as_before(whole)

    def dissolve(count):
        dissolve_group(group_in(shutil.copytree(whole, tmp_path / str(count)), name))

    def check(count):
        group = group_in(tmp_path / str(count), name)
        metrics = [path / 'metrics.jsonl' for path in group.member_paths]
        if name not in read_groups(group.parent):
            assert not any(path.exists() for path in metrics)
        dissolve_group(group)
        assert not any(path.exists() for path in metrics)
        assert [Workdir(path).seed_group for path in group.member_paths] == [None, None]
        start(group)  # It can begin again, as can any other.
        require_begun(group)

    assert every_kill(dissolve, check) >= 3


@names
def test_a_member_that_was_killed_while_it_was_released_is_released(tmp_path, name):
    whole = tmp_path / 'whole'
    start(group_in(whole, name))
    add_checkpoint(group_in(whole, name))
    shutil.rmtree(whole / '1')

    def release(count):
        release_member(shutil.copytree(whole, tmp_path / str(count)) / '1')

    def check(count):
        folder = tmp_path / str(count)
        assert Workdir(folder / '0').seed_index == 0
        release_member(folder / '1')
        assert Workdir(folder / '1').seed_group is None
        assert Workdir(folder / '0').seed_index == 0
        with pytest.raises(WorkdirError, match='cannot continue without 1, which were deleted'):
            start(group_in(folder, name))

    assert every_kill(release, check) >= 1


def test_a_group_with_a_checkpoint_is_not_dissolved(tmp_path):
    group = group_in(tmp_path, '0-1')
    start(group)
    add_checkpoint(group)
    dissolve_group(group)
    require_begun(group)
    assert (tmp_path / '0' / 'metrics.jsonl').exists()


def test_a_group_that_a_process_trains_is_left_alone(tmp_path):
    group = group_in(tmp_path, '0-1')
    start(group)
    with lock(group.path / 'lock'):
        with pytest.raises(Busy, match='0-1 is in use by process'):
            dissolve_group(group)
        shutil.rmtree(tmp_path / '1')
        with pytest.raises(Busy, match='0-1 is in use by process'):
            release_member(tmp_path / '1')
    assert (tmp_path / '0' / 'metrics.jsonl').exists()
    assert read_groups(group.parent)['0-1'] == group


def test_a_member_that_is_there_is_not_released(tmp_path):
    group = group_in(tmp_path, '.')
    start(group)
    with pytest.raises(WorkdirError, match=r'/1 holds a run of a group, whose checkpoints are in'):
        release_member(tmp_path / '1')
    release_member(tmp_path / 'alone')  # It belongs to no group.
    require_begun(group)
    assert not holds_run(absolute_path(tmp_path) / 'alone')

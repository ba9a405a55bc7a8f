"""The file that describes groups of seeds: who belongs to which group, and what is refused."""

import json
import threading

import pytest
from etils import epath
from helpers.old_groups import describe_as_before, old_files

from transformer_jax.errors import Busy, ConfigError, WorkdirError
from transformer_jax.storage import manifest, seed_group_file
from transformer_jax.storage.locks import lock
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_checkpoints import open_checkpoints
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.seed_group_file import (
    edit_groups,
    find_group,
    group_at,
    read_groups,
    rewrite_old_groups,
    was_released,
)
from transformer_jax.storage.workdir import Workdir


@pytest.fixture
def parent(tmp_path) -> epath.Path:
    """A folder with the groups 0-1-2, of which 1 was released, and 3-4; and a run alone, 5."""
    parent = absolute_path(tmp_path)
    groups = (
        SeedGroup(parent, '0-1-2', ('0', '1', '2'), ('1',)),
        SeedGroup(parent, '3-4', ('3', '4')),
    )
    with edit_groups(parent) as entries:
        for group in groups:
            group.path.mkdir()
            entries[group.name] = group
    for seed in range(6):
        (parent / str(seed)).mkdir()
        (parent / str(seed) / 'config.json').write_text('{}')
    return parent


def add_checkpoint(path, seeds):
    step = path / 'checkpoints' / '2'
    step.mkdir(parents=True)
    record = {'best': None, 'saves': [2]}
    meta = {'step': 2, 'arrays': {}, 'meta': {'records': [record] * seeds}}
    (step / 'meta.json').write_text(json.dumps(meta))
    manifest.write(step)


def test_members_and_groups_are_found(parent):
    content = json.loads((parent / 'seed_groups.json').read_text())
    assert content == {
        'version': 1,
        'groups': {
            '0-1-2': {'members': ['0', '1', '2'], 'released': ['1']},
            '3-4': {'members': ['3', '4'], 'released': []},
        },
    }
    indices = {seed: Workdir(parent / seed).seed_index for seed in '012345'}
    assert indices == {'0': 0, '1': None, '2': 2, '3': 0, '4': 1, '5': None}
    assert Workdir(parent / '2').checkpoints_path == parent / '0-1-2' / 'checkpoints'
    assert Workdir(parent / '1').tokenizer_path == parent / '1' / 'tokenizer'
    assert was_released(parent / '1')
    assert not was_released(parent / '0')
    assert group_at(parent / '3-4').members == ('3', '4')
    assert group_at(parent / '3') is None


def test_a_group_in_its_own_parent(tmp_path):
    parent = absolute_path(tmp_path)
    with edit_groups(parent) as groups:
        groups['.'] = SeedGroup(parent, '.', ('3', '4'))
    assert Workdir(tmp_path / '4').checkpoints_path == parent / 'checkpoints'
    assert group_at(parent) == groups['.']
    with pytest.raises(ConfigError, match=r'holds a group of seeds: name one of them, .*/3, .*/4'):
        open_checkpoints(Workdir(tmp_path))


def test_an_edit_that_fails_writes_nothing(parent):
    before = (parent / 'seed_groups.json').read_text()
    with pytest.raises(ZeroDivisionError), edit_groups(parent) as groups:  # noqa: PT012
        groups.clear()
        1 / 0  # noqa: B018
    assert (parent / 'seed_groups.json').read_text() == before


def test_an_edit_waits_for_another(parent, monkeypatch):
    held, done = threading.Event(), threading.Event()

    def hold():
        with lock(parent / 'seed_groups.lock'):
            held.set()
            done.wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with edit_groups(parent) as groups:
        del groups['3-4']
    thread.join()
    assert list(read_groups(parent)) == ['0-1-2']
    monkeypatch.setattr(seed_group_file, 'WAIT_S', 0.1)
    with (
        lock(parent / 'seed_groups.lock'),
        pytest.raises(Busy, match='is in use by process'),
        edit_groups(parent),
    ):
        pass


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '[]',
        '{}',
        '{"version": 1}',
        '{"version": 1, "groups": []}',
        '{"version": 1, "groups": {"0": ["0"]}}',
        '{"version": 1, "groups": {"0": {"members": "01", "released": []}}}',
        '{"version": 1, "groups": {"0": {"members": ["0", 1], "released": []}}}',
        '{"version": 1, "groups": {"0": {"members": ["0", "../1"], "released": []}}}',
        '{"version": 1, "groups": {"0": {"members": ["0", "0"], "released": []}}}',
        '{"version": 1, "groups": {"0": {"members": ["0"], "released": ["1"]}}}',
        '{"version": 1, "groups": {"0": {"members": [], "released": []}}}',
    ],
)
def test_a_damaged_file_is_one_clear_message(parent, content):
    (parent / 'seed_groups.json').write_text(content)
    for use in (
        lambda: Workdir(parent / '0'),
        lambda: group_at(parent / '3-4'),
        lambda: edit_groups(parent).__enter__(),
    ):
        with pytest.raises(WorkdirError, match=r'seed_groups\.json is damaged \([^\n]*$'):
            use()


def test_a_later_version_is_refused(parent):
    (parent / 'seed_groups.json').write_text('{"version": 2, "runs": {}}')
    with pytest.raises(WorkdirError, match='has version 2, this package reads up to 1: update it'):
        read_groups(parent)


def test_other_members_than_the_checkpoints_have_are_refused(parent):
    add_checkpoint(parent / '3-4', 3)
    with pytest.raises(WorkdirError, match=r'lists 2 members of .*/3-4, but its .* have 3'):
        open_checkpoints(Workdir(parent / '3')).valid_steps()


def test_a_run_whose_group_was_deleted_says_so(parent):
    (parent / '3-4').rmdir()
    with pytest.raises(
        WorkdirError, match=r'/3 was trained together .*/3-4, which is gone: delete'
    ):
        Workdir(parent / '3')
    (parent / '3' / 'config.json').unlink()
    assert Workdir(parent / '3').seed_group.name == '3-4'  # Deleted too, so it can be made anew.


def test_a_group_on_an_object_store_is_found_by_its_members(bucket):
    parent = absolute_path(f'{bucket}/base')
    group = SeedGroup(parent, '0-1', ('0', '1'))
    for folder in ('0-1', '0', '1'):
        (parent / folder / 'config.json').write_text('{}')
    with edit_groups(parent) as groups:
        groups['0-1'] = group
    found = Workdir(f'{bucket}/base/1')
    assert (found.seed_index, str(found.tokenizer_path)) == (
        1,
        'gs://bucket/run/base/0-1/tokenizer',
    )
    assert found.seed_group == group
    assert open_checkpoints(found).directory == group.path / 'checkpoints'
    with edit_groups(parent) as groups:
        del groups['0-1']
    assert Workdir(f'{bucket}/base/1').seed_group is None


# --- As before seed_groups.json -------------------------------------------------------------------


@pytest.fixture
def old(tmp_path) -> epath.Path:
    """A folder with the group 0-1-2 in the old form, and a checkpoint of it."""
    parent = absolute_path(tmp_path)
    group = SeedGroup(parent, '0-1-2', ('0', '1', '2'))
    for folder in ('0', '1', '2'):
        (parent / folder).mkdir()
        (parent / folder / 'config.json').write_text('{}')
        (parent / folder / 'metrics.jsonl').touch()
    add_checkpoint(group.path, 3)
    with edit_groups(parent) as groups:
        groups[group.name] = group
    describe_as_before(tmp_path)
    return parent


def test_an_old_group_is_read_and_left_as_it_is(old):
    before = old_files(old)
    assert before == ['0-1-2/replicas.json', '0/replica.json', '1/replica.json', '2/replica.json']
    assert [Workdir(old / seed).seed_index for seed in '012'] == [0, 1, 2]
    assert open_checkpoints(Workdir(old / '2')).valid_steps() == [2]
    with pytest.raises(ConfigError, match=r'holds a group of seeds: name one of them, .*/0, .*/1'):
        open_checkpoints(Workdir(old / '0-1-2'))
    assert (old_files(old), (old / 'seed_groups.json').exists()) == (before, False)


def rewritten(parent) -> SeedGroup:
    """Return the group of a folder after its old description was rewritten."""
    rewrite_old_groups(parent)
    assert old_files(parent) == []
    [group] = json.loads((parent / 'seed_groups.json').read_text())['groups']
    return read_groups(parent)[group]


def test_an_old_group_is_rewritten(old):
    assert rewritten(old) == SeedGroup(old, '0-1-2', ('0', '1', '2'))


def test_a_deleted_member_of_an_old_group_stays_its_member(old):
    (old / '1').rmtree()
    assert find_group(old / '1') is None  # As in the old version, until the group is rewritten.
    assert rewritten(old).released == ()
    assert find_group(old / '1').name == '0-1-2'


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'checkpoints'])
def test_a_member_that_was_trained_again_alone_is_released(old, name):
    (old / '1').rmtree()
    (old / '1').mkdir()
    (old / '1' / name).touch()
    assert rewritten(old).released == ('1',)


def test_a_member_whose_pointer_was_never_written_is_one(old):
    """The process was killed before that: the group has no checkpoint."""
    (old / '0-1-2' / 'checkpoints').rmtree()
    (old / '1' / 'replica.json').unlink()
    (old / '1' / 'metrics.jsonl').unlink()
    assert rewritten(old).released == ()


def test_an_old_group_that_was_deleted(old):
    (old / '0-1-2').rmtree()
    with pytest.raises(
        WorkdirError, match=r'/1 was trained together .*/0-1-2, which is gone: dele'
    ):
        Workdir(old / '1')


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '{}',
        '[]',
        '{"folders": "01"}',
        '{"folders": [1]}',
        '{"folders": ["../0", "../../x/1"]}',
    ],
)
def test_a_damaged_list_of_an_old_group_is_one_clear_message(old, content):
    (old / '0-1-2' / 'replicas.json').write_text(content)
    for use in (
        lambda: Workdir(old / '0'),
        lambda: group_at(old / '0-1-2'),
        lambda: rewrite_old_groups(old),
    ):
        with pytest.raises(WorkdirError, match=r'replicas\.json is damaged \([^\n]*$'):
            use()


def test_a_damaged_pointer_of_an_old_group_is_one_clear_message(old):
    (old / '0' / 'replica.json').write_text('{')
    with pytest.raises(WorkdirError, match=r'replica\.json is damaged \([^\n]*$'):
        Workdir(old / '0')

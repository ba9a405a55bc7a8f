"""Groups of seeds as they were described before seed_groups.json.

The group's workdir listed its members' workdirs, and each member pointed back:

    GROUP/replicas.json    {"folders": ["../0", "../1"]}, relative to GROUP
    MEMBER/replica.json    {"group": "../0-1", "index": 0}, relative to MEMBER

Such groups are read as they are, and rewritten into seed_groups.json before they are trained.
"""

import os

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import delete_file, exists
from transformer_jax.storage.json_files import read_json_if_there
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_group import SeedGroup, missing_group

LIST, POINTER = 'replicas.json', 'replica.json'
REMEDY = 'restore it, or delete the group of seeds and its runs'


def read_old_groups(parent: epath.Path) -> dict[str, SeedGroup]:
    """Read the old groups whose members' workdirs are in a folder, by name.

    Raises:
        WorkdirError: a list of members is damaged.
    """
    found = (old_group_at(path.parent) for path in sorted(parent.glob(f'*/{LIST}')))
    groups = [old_group_at(parent), *found]
    return {group.name: group for group in groups if group and group.parent == parent}


def find_old_group(path: epath.Path) -> SeedGroup | None:
    """Return the old group that the run in the workdir `path` points to; None without a pointer.

    Raises:
        WorkdirError: the group was deleted, or its list of members is damaged.
    """
    group_path = _read_pointer(path)
    if group_path is None:
        return None
    group = old_group_at(group_path)
    if group is None:
        raise missing_group(path, group_path)
    if group.parent != path.parent or path.name not in group.members:
        raise _damage(group_path / LIST, f'it does not list {path}')
    return group


def old_group_at(path: epath.Path) -> SeedGroup | None:
    """Return the old group whose own workdir is `path`; None where that is no such workdir.

    Raises:
        WorkdirError: its list of members is damaged.
    """
    content = read_json_if_there(path / LIST, {'folders': [str]}, REMEDY)
    if content is None:
        return None
    members = [absolute_path(path / folder) for folder in content['folders']]
    parents = {member.parent for member in members}
    if len(parents) != 1:
        raise _damage(path / LIST, f'{content["folders"]!r} are not in one folder')
    parent = parents.pop()
    name, names = os.path.relpath(path, parent), tuple(member.name for member in members)
    begun = SeedGroup(parent, name, names).has_checkpoint()
    released = tuple(member.name for member in members if _is_trained_again(member, path, begun))
    return SeedGroup(parent, name, names, released)


def delete_old_files(group: SeedGroup) -> None:
    """Delete the old description of a group that seed_groups.json describes."""
    for path in (group.path / LIST, *(member / POINTER for member in group.member_paths)):
        delete_file(path)


def _read_pointer(path: epath.Path) -> epath.Path | None:
    """Return the group's workdir that a member names; None for a run that was trained alone."""
    content = read_json_if_there(path / POINTER, {'group': str}, REMEDY)
    return None if content is None else absolute_path(path / content['group'])


def _is_trained_again(member: epath.Path, group_path: epath.Path, begun: bool) -> bool:
    """Whether a listed run was deleted and trained again alone, or in another group.

    The pointer of a member was written after its config.json: without a checkpoint of the group, a
    process may have been killed between the two.
    """
    pointed = _read_pointer(member)
    if pointed is not None:
        return pointed != group_path
    signs = ('checkpoints', 'metrics.jsonl', *(['config.json'] if begun else []))
    return any(exists(member / name) for name in signs)


def _damage(path: epath.Path, why: str) -> WorkdirError:
    return WorkdirError(f'{path} is damaged ({why}): {REMEDY}')

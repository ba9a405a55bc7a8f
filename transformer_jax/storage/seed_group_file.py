"""The file that describes the groups of seeds in a folder P.

    P/seed_groups.json   {"version": 1, "groups": {GROUP: {"members": […], "released": […]}}}
    P/GROUP/             workdir of a group: config.json, run.json, checkpoints/, tokenizer/
    P/MEMBER/            workdir of one seed, without checkpoints/ and tokenizer/

Nothing else says which run belongs to which group, see `SeedGroup`. The file is replaced as a
whole, under the lock P/seed_groups.lock.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from transformer_jax.errors import Busy, WorkdirError
from transformer_jax.storage.files import exists, wrap_os_errors, write_text
from transformer_jax.storage.json_files import find_misfit, read_json_if_there
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.locks import lock
from transformer_jax.storage.old_seed_groups import (
    delete_old_files,
    find_old_group,
    old_group_at,
    read_old_groups,
)
from transformer_jax.storage.seed_group import SeedGroup

NAME, LOCK, VERSION = 'seed_groups.json', 'seed_groups.lock', 1
SHAPE = {'groups': {str: {'members': [str], 'released': [str]}}}
# Processes that share a folder hold the lock for milliseconds, so that one waits for the other.
WAIT_S, PAUSE_S = 10, 0.05


def find_group(path: epath.Path) -> SeedGroup | None:
    """Return the group that the run in the workdir `path` belongs to; None for a run alone.

    Raises:
        WorkdirError: the file of groups is damaged; or the run is there, but its group was deleted.
    """
    if not exists(path.parent / NAME):
        return find_old_group(path)
    for group in read_groups(path.parent).values():
        if group.has_member(path.name):
            group.require_workdir(path)
            return group
    return None


def group_at(path: epath.Path) -> SeedGroup | None:
    """Return the group whose own workdir is `path`; None where that is the workdir of one run.

    Raises:
        WorkdirError: a file of groups is damaged.
    """
    for parent, name in ((path, '.'), (path.parent, path.name)):
        if exists(parent / NAME) and name in (groups := read_groups(parent)):
            return groups[name]
    return old_group_at(path)


def was_released(path: epath.Path) -> bool:
    """Whether the run in the workdir `path` was a member of a group once, and is trained alone.

    Raises:
        WorkdirError: the file of groups is damaged.
    """
    return any(path.name in group.released for group in read_groups(path.parent).values())


def read_groups(parent: epath.Path) -> dict[str, SeedGroup]:
    """Read the groups whose members' workdirs are in a folder, by name.

    Raises:
        WorkdirError: the file of groups is damaged, or of a later version.
    """
    path, remedy = parent / NAME, f'restore it, or delete {parent}'
    content = read_json_if_there(path, {'version': int}, remedy)
    if content is None:
        return read_old_groups(parent)
    if content['version'] != VERSION:
        raise WorkdirError(
            f'{path} has version {content["version"]}, this package reads up to {VERSION}: '
            'update it'
        )
    if problem := find_misfit(content, SHAPE):
        raise WorkdirError(f'{path} is damaged ({problem}): {remedy}')
    try:
        return _parse(parent, content['groups'])
    except ValueError as error:
        raise WorkdirError(f'{path} is damaged ({error}): {remedy}') from error


@contextlib.contextmanager
def edit_groups(parent: epath.Path) -> Iterator[dict[str, SeedGroup]]:
    """Yield the groups of a folder, by name, to be changed; write them when the block ends.

    Other processes wait meanwhile. If the block raises, nothing is written. Groups in the old form
    are rewritten into seed_groups.json.

    Raises:
        Busy: another process held the lock for 10 s.
        WorkdirError: the file of groups is damaged, or cannot be written.
    """
    path = parent / NAME
    with wrap_os_errors(path), _wait_for_lock(parent / LOCK):
        stored = read_groups(parent)
        groups = dict(stored)
        yield groups
        if groups != stored or (stored and not exists(path)):
            entries = {name: _entry(group) for name, group in groups.items()}
            write_text(path, to_json({'version': VERSION, 'groups': entries}, indent=1) + '\n')
        # Also after a run that was killed between its write and these deletions.
        for group in (stored | groups).values():
            delete_old_files(group)


def rewrite_old_groups(parent: epath.Path) -> None:
    """Rewrite groups in the old form into seed_groups.json, where there are some.

    Raises:
        WorkdirError: a description of a group is damaged, or the file cannot be written.
    """
    if not exists(parent / NAME) and read_old_groups(parent):
        with edit_groups(parent):
            pass


def _parse(parent: epath.Path, entries: Mapping[str, Any]) -> dict[str, SeedGroup]:
    groups = {}
    for name, entry in entries.items():
        members, released = entry['members'], entry['released']
        for names in (members, released):
            if not all(map(_is_folder_name, names)):
                raise ValueError(f'{names!r} is no list of folders in {parent}')
        if not members or len(set(members)) < len(members) or set(released) - set(members):
            raise ValueError(f'members {members!r}, released {released!r}')
        groups[name] = SeedGroup(parent, name, tuple(members), tuple(released))
    return groups


def _is_folder_name(name: str) -> bool:
    return name not in ('', '.', '..') and '/' not in name


def _entry(group: SeedGroup) -> dict[str, list[str]]:
    return {'members': list(group.members), 'released': list(group.released)}


@contextlib.contextmanager
def _wait_for_lock(path: epath.Path) -> Iterator[None]:
    deadline = time.monotonic() + WAIT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(path))
                break
            except Busy:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_S)
        yield

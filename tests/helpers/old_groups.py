"""Groups of seeds as they were described before seed_groups.json."""

import json
import os
from pathlib import Path

from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.seed_group_file import read_groups


def describe_as_before(parent: Path) -> None:
    """Replace seed_groups.json by the lists and pointers of the version before."""
    groups = read_groups(absolute_path(parent)).values()
    (parent / 'seed_groups.json').unlink()
    for group in groups:
        folders = [os.path.relpath(path, group.path) for path in group.member_paths]
        (group.path / 'replicas.json').write_text(json.dumps({'folders': folders}) + '\n')
        for index, path in enumerate(group.member_paths):
            if path.exists() and group.has_member(path.name):
                pointer = {'group': os.path.relpath(group.path, path), 'index': index}
                (path / 'replica.json').write_text(json.dumps(pointer) + '\n')


def old_files(parent: Path) -> list[str]:
    """List the files below a folder that describe groups as before."""
    parent = Path(parent)
    return sorted(str(path.relative_to(parent)) for path in parent.rglob('replica*.json'))

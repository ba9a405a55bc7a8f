"""Whether a run has ever completed a checkpoint, although none may be there now.

The folder of checkpoints may be on a disk that is not mounted, or deleted: a run that would begin
anew then would delete its own record. So config.json names the first checkpoint, from just before
its manifest is written. Only a kill between the two writes leaves the folder of that step without
its manifest, and nothing that could be lost.
"""

import os

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.storage.files import exists, is_link, write_text
from transformer_jax.storage.json_files import read_json_if_there
from transformer_jax.storage.json_text import to_json

REMEDY = 'restore it from a copy, or choose another --workdir'


def record_first_checkpoint(config_path: epath.Path, step: int) -> None:
    """Write into config.json that the first checkpoint is about to be complete."""
    stored = read_json_if_there(config_path, {}, REMEDY)
    if stored is not None:
        write_text(config_path, to_json(stored | {'first_checkpoint': step}, indent=2) + '\n')


def first_checkpoint(workdir: epath.Path) -> int | None:
    """Return a step of which the run in a workdir has, or had, a checkpoint; None without any.

    Raises:
        WorkdirError: config.json is damaged.
    """
    steps = CheckpointFolders(workdir / 'checkpoints', keep=1).valid_steps()
    stored = read_json_if_there(workdir / 'config.json', {}, REMEDY) or {}
    step = stored.get('first_checkpoint')
    if steps:
        return steps[0] if step is None else step
    torn = step is not None and exists(workdir / 'checkpoints' / str(step))
    return None if torn else step


def require_checkpoints(workdir: epath.Path, trained: bool) -> None:
    """Refuse to train in a workdir whose checkpoints are not there.

    Args:
        workdir: of a run.
        trained: whether the run has ever completed a checkpoint.

    Raises:
        WorkdirError: there is none, or checkpoints/ is a link to nothing.
    """
    path = workdir / 'checkpoints'
    remedy = f'mount or restore it, choose another --workdir, or delete {workdir} to start anew'
    if is_link(path) and not exists(path):
        raise WorkdirError(f'{path} is a link to {os.readlink(path)}, which is not there: {remedy}')
    if trained and not CheckpointFolders(path, keep=1).valid_steps():
        raise WorkdirError(f'{path} has no checkpoint of the run any more: {remedy}')

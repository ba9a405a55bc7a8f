"""A process that is killed between two changes of the disk, simulated in this process."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
from etils import epath

from transformer_jax.ablation import tuning
from transformer_jax.storage import seed_group_file, workdir


class Killed(BaseException):
    """The end of the process; as after SIGKILL, nothing more is written."""


def every_kill(act: Callable[[int], None], check: Callable[[int], None]) -> int:
    """Call `act` in a process that is killed before its first, second, … change of the disk.

    After each kill, and after the call that is not killed, `check` looks at what is left. Both get
    the number of the kill, for a folder of its own.

    Returns:
        how many changes `act` makes.
    """
    for count in itertools.count():
        killed = False
        with killed_before(count):
            try:
                act(count)
            except Killed:
                killed = True
        check(count)
        if not killed:
            return count


@contextlib.contextmanager
def killed_before(count: int) -> Iterator[None]:
    """Raise Killed at the change of the disk after the first `count`, and at all that follow.

    Changes are atomic writes of workdirs, of the file of groups and of tuning.json, and deletions
    of files.
    """
    path_type = type(epath.Path('/'))
    done = []

    def counted(change: Callable) -> Callable:
        def call(*arguments, **options):
            if len(done) >= count:
                raise Killed
            done.append(change)
            return change(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (seed_group_file, workdir, tuning):
            patch.setattr(module, 'write_text', counted(module.write_text))
        patch.setattr(path_type, 'unlink', counted(path_type.unlink))
        yield

"""Paths and atomic writes, for local directories and for object stores such as `gs://`.

Every function takes `epath.Path`, so that a workdir may be on either.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from etils import epath

from transformer_jax.errors import ConfigError, WorkdirError


def is_local(path: epath.Path) -> bool:
    """Whether the operating system's own calls work on `path`; False for `gs://` and the like."""
    return '://' not in os.fspath(path)


def expand_home(path: epath.PathLike) -> epath.Path:
    """Replace ~ and ~NAME at the beginning of a path.

    Raises:
        ConfigError: there is no such home directory, as in a container with an unknown user.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith('~'):
        raise ConfigError(
            f'{path}: this user has no home directory here: set HOME, or write the path in full'
        )
    return epath.Path(expanded)


def user_cache() -> epath.Path:
    """Return the folder of what may be computed again: ~/.cache/transformer_jax.

    Without a home directory it is a folder of this user among the temporary files.
    """
    try:
        return expand_home('~/.cache/transformer_jax')
    except ConfigError:
        return epath.Path(tempfile.gettempdir()) / f'transformer_jax-{os.getuid()}'


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Expand ~ and .., and start a relative path at the current directory.

    Not epath's `resolve`, which would turn `gs://bucket` into a local path.
    """
    path = expand_home(path)
    if is_local(path):
        return path.resolve()
    scheme, _, rest = os.fspath(path).partition('://')
    return epath.Path(f'{scheme}://{os.path.normpath(rest)}')


@contextlib.contextmanager
def wrap_os_errors(path: epath.Path, elsewhere: str = 'choose another --workdir') -> Iterator[None]:
    """Raise an operating-system error of the block as a WorkdirError that names `path`.

    Such errors are a full disk, a read-only directory, or a file where a directory should be.

    Args:
        path: what the block writes.
        elsewhere: how to write to another place, in the message.
    """
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f'cannot write {path}: {error.strerror or error}; make room, correct the permissions '
            f'or {elsewhere}'
        ) from error


@contextlib.contextmanager
def wrap_read_errors(path: epath.Path) -> Iterator[None]:
    """Raise an error of permissions, links or the disk as a WorkdirError; not a missing file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise WorkdirError(
            f'cannot read {error.filename or path}: {error.strerror or error}; correct its '
            'permissions, or restore it from a copy'
        ) from error


def exists(path: epath.Path) -> bool:
    """Whether there is a file or a folder.

    Raises:
        WorkdirError: that cannot be known, as in a folder without permission or a loop of links;
            `path.exists()` would say no.
    """
    if not is_local(path):
        return path.exists()
    try:
        with wrap_read_errors(path):
            os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def write_text(path: epath.Path, text: str) -> None:
    """Replace the whole file at `path` atomically.

    A reader sees the old text or the new, never a part, even if this process is killed meanwhile.
    """
    if not is_local(path):  # Object stores write whole objects, and their rename is a copy.
        path.write_text(text)
        return
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: epath.Path, line: str) -> None:
    """Append one line and flush it.

    Object stores cannot append, so there the whole object is rewritten.
    """
    if is_local(path):
        with path.open('a') as file:
            file.write(line + '\n')
    else:
        path.write_text((path.read_text() if path.exists() else '') + line + '\n')

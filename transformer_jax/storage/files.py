"""The only ways in which the package changes files, on disks and on object stores.

Every function takes `epath.Path`, so that a workdir may be in a local directory or in `gs://…`. The
functions that write or delete raise WorkdirError where the operating system refuses: a full disk, a
read-only directory, or a file where a directory should be. Its message is one line with the path
and the remedy; `place` names the flag or key that says where the file goes, for that remedy.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.paths import is_local

DIRECTORY = 'directory'

# Packages that raise errors of their own for an object store that refuses or does not answer.
STORES = ('gcsfs', 'google', 'aiohttp')


def cannot_write(path: epath.PathLike, reason: str, place: str = DIRECTORY) -> WorkdirError:
    """Make the error of a file that cannot be written, in one line."""
    return WorkdirError(
        f'cannot write {os.fspath(path)}: {reason}; make room, correct the permissions or choose '
        f'another {place}'
    )


@contextlib.contextmanager
def wrap_os_errors(path: epath.PathLike, place: str = DIRECTORY) -> Iterator[None]:
    """Raise an error of the operating system or of an object store as a WorkdirError.

    It names `path`.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split('.')[0] not in STORES:
            raise
        why = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise cannot_write(path, why or type(error).__name__, place) from error


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


def is_link(path: epath.Path) -> bool:
    """Whether there is a symbolic link, to whatever or to nothing."""
    return is_local(path) and os.path.islink(path)


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


def has_content(path: epath.Path) -> bool:
    """Whether there is a file with a byte or more.

    `path.stat()` would look up the name of the owner, which an unknown user does not have.

    Raises:
        WorkdirError: that cannot be known.
    """
    if not exists(path):
        return False
    with wrap_read_errors(path), path.open('rb') as file:
        return bool(file.read(1))


def write_text(path: epath.Path, text: str, place: str = DIRECTORY) -> None:
    """Replace the whole file at `path` atomically.

    A reader sees the old text or the new, never a part, even if this process is killed meanwhile.

    Raises:
        WorkdirError: it cannot be written; the old text is still there.
    """
    _replace(path, lambda file: file.write_text(text), place)


def create_text(path: epath.Path, text: str, place: str = DIRECTORY) -> bool:
    """Write a new file, also where another process tries the same at the same instant.

    Returns:
        Whether it was written; False where there is a file already, which stays as it is.

    Raises:
        WorkdirError: it cannot be written.
    """
    with wrap_os_errors(path, place):
        opened: Any = fsspec.open(os.fspath(path), 'xb')
        try:
            with opened as file:
                file.write(text.encode())
        except FileExistsError:
            return False
    return True


def write_bytes(path: epath.Path, content: bytes, place: str = DIRECTORY) -> None:
    """Replace the whole file at `path` atomically, as `write_text`; make its directory."""
    with wrap_os_errors(path, place):
        path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, lambda file: file.write_bytes(content), place)


def _replace(path: epath.Path, write: Callable[[epath.Path], object], place: str) -> None:
    with wrap_os_errors(path, place):
        if not is_local(path):  # Object stores write whole objects, and their rename is a copy.
            write(path)
            return
        temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:8]}.tmp')
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(path: epath.Path, line: str) -> None:
    """Append one line and flush it.

    Object stores cannot append, so there the whole object is rewritten.

    Raises:
        WorkdirError: it cannot be written; the file has only its earlier lines.
    """
    with wrap_os_errors(path):
        if not is_local(path):
            path.write_text((path.read_text() if path.exists() else '') + line + '\n')
            return
        size = None
        try:
            with path.open('a') as file:
                size = file.tell()
                file.write(line + '\n')
        except OSError:
            if size is not None:
                os.truncate(path, size)  # A full disk takes a part of the line.
            raise


def make_directory(path: epath.Path, place: str = DIRECTORY) -> None:
    """Make a directory and those above it, where they do not exist."""
    with wrap_os_errors(path, place):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def new_directory(path: epath.Path, place: str = DIRECTORY) -> Iterator[epath.Path]:
    """Open a directory to fill, which becomes `path` at the end, or is deleted after an error.

    Several processes may do so at once: the first to finish wins, and the others delete their equal
    copies.
    """
    partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
    with wrap_os_errors(path, place):
        partial.mkdir(parents=True)
        try:
            yield partial
            try:
                partial.rename(path)
            except OSError:
                if not path.exists():
                    raise
        finally:
            if partial.exists():
                partial.rmtree()


@contextlib.contextmanager
def temporary_directory() -> Iterator[epath.Path]:
    """Make a directory that is deleted at the end of the block."""
    with contextlib.ExitStack() as stack:
        with wrap_os_errors('a temporary directory', 'TMPDIR'):
            made = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        yield epath.Path(stack.enter_context(made))


def rename_file(path: epath.Path, name: str) -> None:
    """Give a file another name in its directory."""
    with wrap_os_errors(path):
        path.replace(path.parent / name)


def delete_file(path: epath.Path) -> None:
    """Delete a file, where it exists."""
    with _wrap_deletion(path):
        path.unlink(missing_ok=True)


def delete_directory(path: epath.Path) -> None:
    """Delete a directory with all that is in it; of a link to one the link alone."""
    with _wrap_deletion(path):
        if is_link(path):
            path.unlink()
        else:
            path.rmtree()


@contextlib.contextmanager
def _wrap_deletion(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise WorkdirError(f'cannot delete {path}: {why}; correct the permissions') from error

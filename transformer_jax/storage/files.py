"""What checkpoints and the workdir share: atomic writes, a lock, and one process that writes
for all.

Everything takes `epath.Path`, so that a workdir may lie on `gs://`.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from transformer_jax.errors import Busy, WorkdirError

# Object stores have no locks, only a lease: its holder renews it; it may be taken over once it is
# this old.
LEASE_RENEWAL_S = 30
LEASE_EXPIRY_S = 300

# What file systems without flock answer (Lustre mounted with noflock, some network file systems).
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def is_local(path: epath.Path) -> bool:
    """Whether the operating system's own calls work on `path`; not so for `gs://` and the like."""
    return '://' not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """`path` without ~ and .., the current directory filled in; epath's `resolve` would make
    `gs://` a local path.
    """
    path = epath.Path(path).expanduser()
    if is_local(path):
        return path.resolve()
    scheme, _, rest = os.fspath(path).partition('://')
    return epath.Path(f'{scheme}://{os.path.normpath(rest)}')


@contextlib.contextmanager
def reported(path: epath.Path) -> Iterator[None]:
    """Turns an operating-system error (full, read-only, in the way) into a WorkdirError
    naming `path`.
    """
    try:
        yield
    except OSError as error:
        raise WorkdirError(
            f'cannot write {path}: {error.strerror or error}; make room, correct the permissions or choose '
            'another --workdir'
        ) from error


def write_text(path: epath.Path, text: str) -> None:
    """Replaces `path` as a whole: a reader, or a run killed at any moment, sees the old text or
    the new.
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
    """Appends one line and flushes it; object stores cannot append, so there the object
    is rewritten.
    """
    if is_local(path):
        with path.open('a') as file:
            file.write(line + '\n')
    else:
        path.write_text((path.read_text() if path.exists() else '') + line + '\n')


def from_primary(work: Callable[[], int]) -> int:
    """Runs `work` on process 0 and returns its non-negative result on all; every process must
    call this.

    Raises whatever `work` raised on process 0, and a WorkdirError that points there on the others,
    so that no process goes on, or waits, alone.
    """
    if jax.process_count() == 1:
        return work()
    outcome, failure = -1, None
    if jax.process_index() == 0:
        try:
            outcome = work()
        except Exception as error:  # Raised below, once the others know.
            failure = error
    outcome = int(multihost_utils.broadcast_one_to_all(np.int32(outcome)))
    if outcome < 0:
        raise failure or WorkdirError('process 0 could not go on: see its message')
    return outcome


@contextlib.contextmanager
def lock(path: epath.Path) -> Iterator[None]:
    """Holds `path` for this process; raises Busy naming the holder when another process has it.

    Local: flock, because the kernel drops it with the process that holds it: a crash, kill -9 or
    reboot leaves nothing to clear, and neither reused process numbers nor clocks matter (the text
    in the file only serves the message). Elsewhere: a lease that is renewed every 30 s and expires
    after 5 minutes; two runs that start in the same instant may both get it, since epath has no
    conditional write.
    """
    descriptor = _flock(path) if is_local(path) else None
    if descriptor is None:
        with _lease(path):
            yield
        return
    try:
        yield
    finally:
        # The file stays: unlinking a locked file lets two processes lock two files of one name.
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _owner() -> dict:
    return {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    }


def _busy(path: epath.Path, owner: str) -> Busy:
    try:
        holder = 'process {pid} on {host} since {since}'.format_map(json.loads(owner))
    except ValueError:  # The holder is between locking and writing its name.
        holder = 'another process'
    return Busy(
        f'{path.parent} is in use by {holder}: wait for it, stop it, or choose another --workdir'
    )


def _flock(path: epath.Path) -> int | None:
    """The descriptor that holds the lock, or None where the file system knows no flock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 4096, 0).decode(errors='replace')
        os.close(descriptor)
        raise _busy(path, owner) from None
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_FLOCK:
            return None
        raise
    return descriptor


@contextlib.contextmanager
def _lease(path: epath.Path) -> Iterator[None]:
    token = uuid.uuid4().hex
    held = path.read_text() if path.exists() else ''
    if held and time.time() - json.loads(held)['renewed'] < LEASE_EXPIRY_S:
        raise _busy(path, held)

    def renew() -> None:
        write_text(path, json.dumps({**_owner(), 'token': token, 'renewed': time.time()}))

    def ours() -> bool:
        return path.exists() and json.loads(path.read_text())['token'] == token

    def keep() -> None:
        while not done.wait(LEASE_RENEWAL_S):
            try:
                if not ours():
                    logging.error(
                        '%s was taken over by another run: this one should be stopped', path
                    )
                    return
                renew()
            except (
                OSError
            ) as error:  # An outage of the store must not end the run; the lease outlasts ten.
                logging.warning('could not renew %s: %s', path, error)

    renew()
    done = threading.Event()
    keeper = threading.Thread(target=keep, name='lease', daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        if ours():
            path.unlink()

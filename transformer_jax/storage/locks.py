"""A lock file that one process holds at a time: flock on local disks, a lease on object stores."""

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from transformer_jax.errors import Busy, WorkdirError
from transformer_jax.storage.files import (
    cannot_write,
    create_text,
    delete_file,
    wrap_os_errors,
    write_text,
)
from transformer_jax.storage.json_files import NUMBER, parse_json, read_text_if_there
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.paths import is_local

# Object stores have no locks, only a lease: its holder renews it every 30 s. By the clocks it is
# given up once it has not been renewed for 300 s; since clocks differ, another process takes it
# over only after it has itself seen no renewal for 90 s.
LEASE_RENEWAL_S = 30
LEASE_EXPIRY_S = 300
LEASE_WATCH_S = 90
WATCH_PAUSE_S = 1.0

OWNER = {'host': str, 'pid': int, 'since': str}
LEASE = OWNER | {'token': str, 'renewed': NUMBER}

# Error numbers of file systems without flock (Lustre mounted with noflock, some network ones).
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def lock(path: epath.Path) -> Iterator[None]:
    """Hold the lock file `path` for this process while the block runs.

    On a local disk this is flock: the kernel releases it when the process that holds it ends, so
    after a crash, kill -9 or reboot nothing has to be cleaned up, and neither reused process
    numbers nor clocks matter (the text in the file is only for the error message). Elsewhere it is
    a lease that is renewed every 30 s and expires after 5 minutes; it is watched for 90 s before it
    is taken over, because the clock of its holder may be wrong. Of several runs that start at the
    same instant one gets the lease. Only two that take over the same given-up lease within the same
    second may both do so; one of them then says that it was taken over.

    Raises:
        Busy: another process holds the lock; the message names it.
        WorkdirError: the lock file cannot be read.
    """
    descriptor = _flock(path) if is_local(path) else None
    if descriptor is None:
        with _lease(path):
            yield
        return
    try:
        yield
    finally:
        # The file stays: if it were deleted, two processes could lock two files of the same name.
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _owner() -> dict:
    return {
        'host': socket.gethostname(),
        'pid': os.getpid(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    }


def _busy(path: epath.Path, text: str, remedy: str = 'wait for it, stop it') -> Busy:
    holder = 'another process'  # Which has locked the file but not yet written its name.
    if owner := _parse(text, OWNER):
        holder = 'process {pid} on {host} since {since}'.format_map(owner)
    return Busy(f'{path.parent} is in use by {holder}: {remedy}, or choose another --workdir')


def _parse(text: str, shape: dict[str, Any]) -> dict[str, Any] | None:
    """Read the content of a lock file; None where it has another shape."""
    try:
        return parse_json(text, 'lock', shape, '')
    except WorkdirError:
        return None


def _flock(path: epath.Path) -> int | None:
    """Lock a local file; return its file descriptor, or None if the file system has no flock."""
    with wrap_os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, to_json(_owner()).encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 4096, 0).decode(errors='replace')
        os.close(descriptor)
        raise _busy(path, owner) from None
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_FLOCK:
            return None
        raise cannot_write(path, error.strerror or str(error)) from error
    return descriptor


def _read(path: epath.Path) -> str:
    return read_text_if_there(path, 'delete it') or ''


def _clear(path: epath.Path) -> None:
    """Delete a lease that was given back, or that its holder renews no more; raise Busy else."""
    held = read_text_if_there(path, 'delete it')
    if held:
        _require_given_up(path, held)
    if held is not None:  # Where there was none, another process may write one just now.
        delete_file(path)


def _require_given_up(path: epath.Path, held: str) -> None:
    lease, owner = _parse(held, LEASE), _parse(held, OWNER)
    if lease is None and owner is not None:
        # Left by a process that could use flock here: it renews nothing, so that only its own
        # machine can tell whether it lives.
        if owner['host'] != socket.gethostname():
            raise _busy(path, held, f'if that process has ended, delete {path}')
        if _lives(owner['pid']):
            raise _busy(path, held)
        return
    if lease is not None and abs(time.time() - lease['renewed']) < LEASE_EXPIRY_S:
        raise _busy(path, held)
    logging.warning('%s looks given up: watching it for %d s', path, LEASE_WATCH_S)
    end = time.monotonic() + LEASE_WATCH_S
    while time.monotonic() < end:
        time.sleep(WATCH_PAUSE_S)
        now = _read(path)
        if not now:
            return
        if now != held:
            raise _busy(path, now)


def _lives(pid: int) -> bool:
    """Tell whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # It belongs to another user.
        return True
    return True


@contextlib.contextmanager
def _lease(path: epath.Path) -> Iterator[None]:
    """Hold a lease, renewed by a thread, while the block runs."""
    token = uuid.uuid4().hex

    def content() -> str:
        return to_json({**_owner(), 'token': token, 'renewed': time.time()})

    def is_ours() -> bool:
        lease = _parse(_read(path), LEASE)
        return lease is not None and lease['token'] == token

    def renew_until_done() -> None:
        while not done.wait(LEASE_RENEWAL_S):
            try:
                if not is_ours():
                    logging.error(
                        '%s was taken over by another run: this one should be stopped', path
                    )
                    return
                write_text(path, content())
            # An outage of the store must not end the run: the lease outlasts 10 renewals.
            except (OSError, WorkdirError) as error:
                logging.warning('could not renew %s: %s', path, error)

    _clear(path)
    if not create_text(path, content()):
        raise _busy(path, _read(path))
    done = threading.Event()
    renewer = threading.Thread(target=renew_until_done, name='lease', daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        if is_ours():
            delete_file(path)

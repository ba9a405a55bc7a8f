"""A lock file that one process holds at a time: flock on local disks, a lease on object stores."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from transformer_jax.errors import Busy
from transformer_jax.storage.files import is_local, write_text

# Object stores have no locks, only a lease: its holder renews it every 30 s, and another process
# may take it over once it has not been renewed for 300 s.
LEASE_RENEWAL_S = 30
LEASE_EXPIRY_S = 300

# Error numbers of file systems without flock (Lustre mounted with noflock, some network ones).
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def lock(path: epath.Path) -> Iterator[None]:
    """Hold the lock file `path` for this process while the block runs.

    On a local disk this is flock: the kernel releases it when the process that holds it ends, so
    after a crash, kill -9 or reboot nothing has to be cleaned up, and neither reused process
    numbers nor clocks matter (the text in the file is only for the error message). Elsewhere it is
    a lease that is renewed every 30 s and expires after 5 minutes. Two runs that start at the same
    instant may both get the lease, since epath has no conditional write.

    Raises:
        Busy: another process holds the lock; the message names it.
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


def _busy(path: epath.Path, owner: str) -> Busy:
    try:
        holder = 'process {pid} on {host} since {since}'.format_map(json.loads(owner))
    except ValueError:  # The holder has locked the file but not yet written its name.
        holder = 'another process'
    return Busy(
        f'{path.parent} is in use by {holder}: wait for it, stop it, or choose another --workdir'
    )


def _flock(path: epath.Path) -> int | None:
    """Lock a local file; return its file descriptor, or None if the file system has no flock."""
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
    """Hold a lease, renewed by a thread, while the block runs."""
    token = uuid.uuid4().hex
    held = path.read_text() if path.exists() else ''
    if held and time.time() - json.loads(held)['renewed'] < LEASE_EXPIRY_S:
        raise _busy(path, held)

    def renew() -> None:
        write_text(path, json.dumps({**_owner(), 'token': token, 'renewed': time.time()}))

    def is_ours() -> bool:
        return path.exists() and json.loads(path.read_text())['token'] == token

    def renew_until_done() -> None:
        while not done.wait(LEASE_RENEWAL_S):
            try:
                if not is_ours():
                    logging.error(
                        '%s was taken over by another run: this one should be stopped', path
                    )
                    return
                renew()
            # An outage of the store must not end the run: the lease outlasts 10 renewals.
            except OSError as error:
                logging.warning('could not renew %s: %s', path, error)

    renew()
    done = threading.Event()
    renewer = threading.Thread(target=renew_until_done, name='lease', daemon=True)
    renewer.start()
    try:
        yield
    finally:
        done.set()
        renewer.join()
        if is_ours():
            path.unlink()

"""Trackers in processes of their own, as the run sees them.

Such a process reads lines of JSON from a pipe that the run never waits for. So whatever a tracker
does (raise, hang, crash, wait for a network, meet a full disk), the run loses its records there,
says so in one warning, and goes on. A tracker does not hear the signals of the run; it ends when
the pipe does, also after a SIGKILL of the run.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from absl import logging
from etils import epath

from transformer_jax.storage.files import make_directory, wrap_os_errors
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.paths import is_local
from transformer_jax.storage.tracker import Tracker
from transformer_jax.trackers.kinds import RunName

GRACE_S = 30.0  # that a tracker has at the end of a run to write what it has
MOST_WAITING = 4 * 2**20  # bytes that a tracker may lag behind: some 5,000 lines of the log


class RemoteTracker:
    """A tracker in a process of its own; none of its methods raises or waits, but `finish`."""

    def __init__(self, name: str, run: RunName, log_path: epath.Path):
        """Start the process.

        Args:
            name: see `kinds.require_tracker`.
            run: how the run is called.
            log_path: the file that gets what the tracker prints.
        """
        self._name, self._log_path = name, log_path
        self._waiting = bytearray()  # what the pipe has not yet taken
        self._process: subprocess.Popen | None = None
        try:
            self._process = _start(name, run, log_path)
            os.set_blocking(self._pipe.fileno(), False)
        except Exception as error:  # Whatever it is, the run is worth more.
            self._give_up(f'{type(error).__name__}: {error}')

    def log_config(self, config: Mapping[str, Any]) -> None:
        """See Tracker.log_config."""
        self._send('log_config', config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker.log."""
        self._send('log', step, values)

    def log_artifact(self, path: str) -> None:
        """See Tracker.log_artifact."""
        self._send('log_artifact', path)

    def finish(self) -> None:
        """End the process once it has written everything, or after GRACE_S."""
        if self._process is None:
            return
        deadline = time.monotonic() + GRACE_S
        while self._waiting and self._process and time.monotonic() < deadline:
            select.select([], [self._pipe], [], 0.1)
            self._write()
        if self._process is None:
            return
        self._close_pipe()
        try:
            code = self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self._give_up(f'it was not done after {GRACE_S:g} s')
        else:
            if code:
                self._give_up(self._last_words())

    @property
    def _pipe(self) -> IO[bytes]:
        assert self._process is not None, 'the process was started'
        assert self._process.stdin is not None, 'with a pipe'
        return self._process.stdin

    def _send(self, *message: Any) -> None:
        if self._process is None:
            return
        self._waiting += f'{to_json(message)}\n'.encode()
        self._write()
        if self._process and len(self._waiting) > MOST_WAITING:
            self._give_up('it does not read what it is sent')

    def _write(self) -> None:
        """Give the pipe what it takes now."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._pipe.fileno(), self._waiting)]
        except BlockingIOError:
            pass
        except OSError:  # The process has ended.
            self._give_up(self._last_words())

    def _give_up(self, reason: str) -> None:
        """End the process, and say in one line that its records are lost."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._close_pipe()
            self._process.wait()
        self._process = None
        self._waiting.clear()
        logging.warning(
            'tracker %s: %s; the run goes on without it (%s)', self._name, reason, self._log_path
        )

    def _close_pipe(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _last_words(self) -> str:
        """Return the last line that the tracker printed: of a traceback, the error."""
        try:
            lines = self._log_path.read_text().strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else 'it has ended'


def open_trackers(names: Sequence[str], run: RunName, directory: epath.Path) -> tuple[Tracker, ...]:
    """Start a process for each tracker.

    Args:
        names: see `kinds.require_tracker`.
        run: how the run is called.
        directory: where NAME.log gets what a tracker prints.
    """
    return tuple(RemoteTracker(name, run, directory / f'{name}.log') for name in names)


def _start(name: str, run: RunName, log_path: epath.Path) -> subprocess.Popen:
    """Start the process of a tracker, which hears no signal of the terminal."""
    command = [sys.executable, '-m', 'transformer_jax.trackers', name, to_json(list(run))]
    with contextlib.ExitStack() as stack:
        output: Any = subprocess.DEVNULL
        if is_local(log_path):
            make_directory(log_path.parent)
            with wrap_os_errors(log_path):
                output = stack.enter_context(log_path.open('w'))
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

"""The other processes of a run: which of them have ended, and how this one ends because of that.

JAX by itself ends the others by an abort, with a hundred lines, after up to 100 s. Here each
process tells every second that it lives, and at its end with which exit code, through JAX's
coordination service; so the others can say in one line which process is gone.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from typing import NoReturn

import jax

from transformer_jax.errors import ConfigError, ProcessGone, UserError
from transformer_jax.partitioning.processes import KeyValues

BEAT_S = 1.0
SILENT_S = 5.0  # A process that has not told for so long that it lives is gone.
GRACE_S = 10.0  # So long this process may go on, to end by itself, after another has failed.
START_ALL = (
    'start all with the same --coordinator and --num_processes, each with its own --process_id'
)
_REMEDY = 'restart all of them; the run continues from its last checkpoint'


class Peers:
    """What this process knows of the others of its run, of which process 0 keeps the texts."""

    def __init__(self, absence: type[UserError] = ConfigError) -> None:
        """Watch nobody yet; `absence` is the error where the others do not come."""
        self._absence = absence
        self._ended: dict[int, tuple[int, float]] = {}  # exit code, and when it was heard of
        self._beats: dict[int, tuple[str, float]] = {}  # the last beat, and when it was new
        self._polled, self._lost_service = 0.0, False
        self._keys: KeyValues | None = None  # None: not joined
        self._me = self._count = 0
        self._leaving = threading.Event()
        self._failing = threading.Lock()

    def watch(self) -> None:
        """Begin to watch; the processes have joined."""
        self._keys = keys = KeyValues('peers')
        self._me, self._count = jax.process_index(), jax.process_count()
        self._polled = time.monotonic()
        self._beats = dict.fromkeys(self._others(), ('', self._polled))
        threading.Thread(target=self._watch, args=[keys], name='peers', daemon=True).start()

    def explain(self, error: Exception) -> Exception:
        """Return what to raise in place of an error: ProcessGone where another process has ended.

        Takes up to SILENT_S and two beats.
        """
        until = time.monotonic() + SILENT_S + 2 * BEAT_S
        while time.monotonic() < until:
            line = self._line()
            if line:
                return ProcessGone(line)
            time.sleep(BEAT_S / 4)
        return error

    def tell(self, code: int) -> None:
        """Tell the others that this process ends: after an error, or 0: it needs no more results.

        Process 0 waits until they have ended too, or for GRACE_S: it keeps what they read.
        """
        self._leaving.set()
        if self._keys is None:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._keys.offer(f'ended/{self._me}', str(code))
            until = time.monotonic() + GRACE_S + 2 * BEAT_S
            while self._me == 0 and time.monotonic() < until:
                self._read(self._keys)
                if set(self._others()) <= self._ended.keys() | set(self._silent()):
                    return
                time.sleep(BEAT_S / 4)

    def leave(self, code: int) -> NoReturn:
        """End this process, and the others with it, without JAX's wait for all of them."""
        self.tell(code)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    def end_process(self, *_: object) -> None:
        """End this process in one line, because JAX has lost the others; from any thread."""
        if not self._failing.acquire(blocking=False):
            threading.Event().wait()  # Another thread ends the process.
        line, code = self._line(), self._exit_code()
        if self._keys is None:
            line, code = f'the processes could not join: {START_ALL}', self._absence.exit_code
        line = line or _gone([0] if self._me else [], self._count)
        os.write(2, f'transformer-jax: {line}\n'.encode())
        os._exit(code)

    def end_on_native_failure(self) -> None:
        """End this process in one line where jaxlib would abort it.

        jaxlib (0.10 to 0.12) cannot pass a status to the Python function that it has for lost
        processes: C++ throws, and terminates the process. So the function is called there too.
        """
        self._on_terminate = ctypes.CFUNCTYPE(None)(self.end_process)  # must outlive this call
        with contextlib.suppress(OSError, AttributeError):  # Another C++ library.
            ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE(self._on_terminate)

    def _others(self) -> list[int]:
        return [index for index in range(self._count) if index != self._me]

    def _watch(self, keys: KeyValues) -> None:
        beat = 0
        while not self._leaving.wait(BEAT_S):
            beat += 1
            try:
                keys.replace(f'alive/{self._me}', str(beat))
                self._read(keys)
            except jax.errors.JaxRuntimeError:
                self._lost_service = self._me != 0
                return
            now = time.monotonic()
            if any(not code or now - since > GRACE_S for code, since in self._ended.values()):
                keys.offer(f'ended/{self._me}', str(self._exit_code()))
                self.end_process()

    def _read(self, keys: KeyValues) -> None:
        found, now = keys.read_all(), time.monotonic()
        for index in self._others():
            beat, code = found.get(f'alive/{index}'), found.get(f'ended/{index}')
            if beat and beat != self._beats[index][0]:
                self._beats[index] = beat, now
            if code and index not in self._ended:
                self._ended[index] = int(code), now
        self._polled = now

    def _silent(self) -> list[int]:
        if self._lost_service:
            return [0]
        return [i for i, (_, since) in self._beats.items() if self._polled - since > SILENT_S]

    def _causes(self) -> dict[int, int]:
        """Return the processes that failed by themselves, with their exit codes."""
        codes = {index: code for index, (code, _) in self._ended.items()}
        return {i: code for i, code in codes.items() if code != ProcessGone.exit_code}

    def _line(self) -> str:
        for index, code in self._causes().items():
            if not code:
                return f'process {index} of {self._count} needs no more results'
            return (
                f'process {index} of {self._count} has ended with exit code {code}, see its '
                f'message: {_REMEDY}'
            )
        silent = [index for index in self._silent() if index not in self._ended]
        return _gone(silent or list(self._ended), self._count) if silent or self._ended else ''

    def _exit_code(self) -> int:
        return next(iter(self._causes().values()), ProcessGone.exit_code)


def _gone(indices: list[int], count: int) -> str:
    if not indices:
        return f'one of {count} processes is gone: {_REMEDY}'
    several = len(indices) > 1
    names = f'processes {", ".join(map(str, indices))}' if several else f'process {indices[0]}'
    return f'{names} of {count} {"are" if several else "is"} gone: {_REMEDY}'


_peers: Peers | None = None


def peers() -> Peers | None:
    """Return the other processes; None in a process that has joined none."""
    return _peers


def set_peers(found: Peers) -> None:
    """Keep what `peers` returns."""
    global _peers
    _peers = found

"""How signals end a process of the command line, from its first line to its last.

It is imported before everything else, because seconds of imports follow: standard library alone.

During the imports a signal ends the process at once. Afterwards it is raised in the main thread as
`Interrupted`, so that files are closed and locks released. But compiled code may keep that thread
busy for minutes, and code of others may catch the exception. So a second thread, which the kernel
wakes for every signal, ends a process that is still there `GRACE_S` later. Training, which has a
state to save, asks for more time with `patience`. More signals change nothing, as `timeout`, `srun`
and an impatient hand send several; only the third Ctrl-C ends the process at once.

A program that imports the package has none of this; `train` there watches signals by itself.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_S = 5.0
MOST_INTERRUPTS = 3  # This Ctrl-C no longer waits for a save.

# The signals by which people, clusters and batch systems ask a program to stop. SIGHUP: the
# terminal was closed. SIGUSR1, SIGUSR2, SIGXCPU: a time limit is near (SLURM, LSF, Grid Engine).
STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)

# These are heard although the parent ignores them, as a script does for what it starts with `&`.
# Others stay ignored, as under `nohup`.
ALWAYS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that asks the program to stop, raised in the main thread.

    Attributes:
        signum: its number.
    """

    def __init__(self, signum: int):
        super().__init__(f'stopped by {signal.Signals(signum).name}')
        self.signum = signum


def exit_code(signum: int) -> int:
    """Return the exit code of a process that a signal stopped: 130 for SIGINT, else 143."""
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


class Guard:
    """The signals of a process that belongs to the command line.

    Attributes:
        at_once: whether a signal ends the process without a grace: there is nothing to close.
        before_end: called with the exit code, last, by a process that a signal ends.
    """

    def __init__(self) -> None:
        self.at_once = True
        self._signum = self._interrupts = 0
        self._raised = self._patient = False
        self._since = 0.0  # From when on the grace counts.
        self._save: Callable[[int], str] | None = None
        self.before_end: Callable[[int], None] | None = None
        self._lock, self._ending = threading.Lock(), threading.Lock()

    def install(self) -> None:
        """Take over the signals, but for those that are to be ignored."""
        self._pipe, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        for signum in STOP_SIGNALS:
            if signum in ALWAYS or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, self.interrupt)
        os.register_at_fork(after_in_child=_forget_signals)
        threading.Thread(target=self._watch, name='signals', daemon=True).start()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Raise the first signal in the main thread; the thread of this object counts them all."""
        if self.at_once:
            self._end(signum)
        if not self._raised:
            self._raised = True
            raise Interrupted(signum)

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Let the block end by itself after a signal, however long it takes."""
        self._patient = True
        try:
            yield
        finally:
            self._patient, self._since = False, time.monotonic()

    @contextlib.contextmanager
    def saved_by(self, save: Callable[[int], str]) -> Iterator[None]:
        """Suspend `patience` for a block that can be given up, but has something to save.

        Args:
            save: called with the signal `GRACE_S` after it, in another thread, before the process
                ends. Returns the last line to print.
        """
        self._save, self._patient, self._since = save, False, time.monotonic()
        try:
            yield
        finally:
            with self._lock:  # For ever, where the other thread is saving: it ends the process.
                self._save, self._patient = None, True

    def finish(self) -> None:
        """Ignore signals from here on: the work is done, and its exit code stands."""
        with self._lock:
            self._patient = True
            for signum in STOP_SIGNALS:
                signal.signal(signum, signal.SIG_IGN)

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._pipe], [], [], 0.1 if self._signum else None)
            for signum in os.read(self._pipe, 64) if ready else b'':
                if signum in STOP_SIGNALS:
                    self._note(signum)
            with self._lock:
                late = time.monotonic() - self._since > GRACE_S
                if self._signum and late and not self._patient:
                    self._end(self._signum)

    def _note(self, signum: int) -> None:
        if not self._signum:
            self._signum, self._since = signum, max(self._since, time.monotonic())
        self._interrupts += signum == signal.SIGINT
        if self.at_once or self._interrupts >= MOST_INTERRUPTS:
            self._save = None
            self._end(signum)

    def _end(self, signum: int) -> None:
        """End the process with one line, unless that is under way."""
        if not self._ending.acquire(blocking=False):
            return
        line, code = f'stopped by {signal.Signals(signum).name}', exit_code(signum)
        if self._save is not None:
            try:
                line = self._save(signum)
            except Exception as error:
                line, code = str(error), getattr(error, 'exit_code', 1)
        os.write(2, f'transformer-jax: {line}\n'.encode())
        if self.before_end is not None:
            self.before_end(code)
        os._exit(code)


_guard: Guard | None = None


def install_guard() -> Guard:
    """Take over the signals of this process, which must be in its main thread."""
    global _guard
    _guard = Guard()
    _guard.install()
    return _guard


def guard() -> Guard | None:
    """Return the guard of this process; None where it does not belong to the command line."""
    return _guard


def _forget_signals() -> None:
    """Give a forked child the signals of a new program: it shares the pipe with its parent."""
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        if callable(signal.getsignal(signum)):
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)

"""Programs in processes of their own, to which signals are sent at a known place."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from transformer_jax.process_end import STOP_SIGNALS

TIMEOUT_S = 120

# Waits in compiled code as a compilation does: no signal wakes it, and other threads run.
COMPILES = """
import ctypes
def compile_for_ever():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Lets the block, and processes started in it, hear what `nohup` or a script lets us ignore."""
    ignored = [signum for signum in STOP_SIGNALS if signal.getsignal(signum) == signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    finally:
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)


def start_script(code: str, *arguments: str) -> subprocess.Popen:
    """Starts a Python program."""
    with heeding_signals():
        return subprocess.Popen(
            [sys.executable, '-c', COMPILES + code, *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def send(process: subprocess.Popen, signums: Sequence[signal.Signals], pause_s: float) -> None:
    """Sends signals one after the other, as long as the process lives."""
    for signum in signums:
        process.send_signal(signum)
        time.sleep(pause_s)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a process: (exit code, standard output, standard error)."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output, errors

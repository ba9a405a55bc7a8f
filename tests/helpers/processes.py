"""Programs in processes of their own, to which signals are sent at a known place."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

TIMEOUT_S = 120

# Waits in compiled code as a compilation does: no signal wakes it, and other threads run.
COMPILES = """
import ctypes
def compile_for_ever():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


def start_script(code: str, *arguments: str) -> subprocess.Popen:
    """Starts a Python program."""
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

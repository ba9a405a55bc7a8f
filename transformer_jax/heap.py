"""The C heap of a process that computes on a CPU: what a step frees is there for the next one.

XLA asks malloc for the temporary memory of a step, and frees it at the end. By default glibc hands blocks of that size
back to the kernel, which must clear each page anew when the next step touches it: a fifth to a third of the time of a
small model's step.
"""

import ctypes
import importlib.metadata
import importlib.util

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, in the one arena that can grow without bound.

    To be called before jax has looked for devices, whose threads would have arenas of their own by then. Where there
    may be an accelerator, or another C library, it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt and only_cpu():
        for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def only_cpu() -> bool:
    """Whether jax was told to compute on the CPU, or has nothing installed for other devices."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == 'cpu'
    return not importlib.metadata.entry_points(group='jax_plugins') and not importlib.util.find_spec('libtpu')

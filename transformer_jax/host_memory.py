"""The memory of a process that computes on a CPU: what a step frees is there for the next one, and
too much is refused.

XLA asks malloc for the temporary memory of a step, and frees it at the end. By default glibc hands
blocks of that size back to the kernel, which must clear each page anew when the next step touches
it: a fifth to a third of the time of a small model's step. And by default the kernel promises more
than there is, and kills the process that believes it, with all that it still had to do; an
accelerator's allocator raises an error instead.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import re
import resource
import sys
from pathlib import Path

import jax

MEMINFO, CONTAINER = Path('/proc/meminfo'), Path('/sys/fs/cgroup/memory.max')
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # <malloc.h>


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, in the one arena that has no size limit of its own.

    To be called before jax has looked for devices, whose threads would have arenas of their own by
    then. Where there may be an accelerator, or another C library, it does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt and only_cpu():
        for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def bound_memory() -> None:
    """Makes a step that needs more than the machine's memory an error of jax, where it computes on
    a CPU under Linux.

    A lower bound that is set already (ulimit -d) stays.
    """
    if sys.platform == 'linux' and only_cpu():
        most = machine_memory()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft == resource.RLIM_INFINITY or soft > most:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def machine_memory() -> int:
    """Bytes that all processes can have together: of the machine with its swap, or of a container
    that has less.
    """
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    with contextlib.suppress(OSError):
        size += sum(
            1024 * int(swap) for swap in re.findall(r'SwapTotal: +(\d+) kB', MEMINFO.read_text())
        )
    with contextlib.suppress(OSError, ValueError):  # 'max': unbounded.
        size = min(size, int(CONTAINER.read_text()))
    return size


def exhausted(error: BaseException) -> str:
    """What to do about an error that says there is no memory left, the device's or the machine's;
    '' of others.
    """
    found = re.search('(out of memory|RESOURCE_EXHAUSTED:).*', str(error), re.IGNORECASE)
    if not found and not isinstance(error, MemoryError):
        return ''
    first = (
        found[0].removeprefix('RESOURCE_EXHAUSTED: ').rstrip('.')
        if found
        else str(error) or 'out of memory'
    )
    return (
        f'{first}: take smaller batches (train.batch_tokens, evaluate.batch_tokens), a smaller model, or an engine '
        'that holds no scores of all pairs of tokens (model.engine=chunked)'
    )


def only_cpu() -> bool:
    """Whether jax was told to compute on the CPU, or has nothing installed for other devices."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == 'cpu'
    return not importlib.metadata.entry_points(
        group='jax_plugins'
    ) and not importlib.util.find_spec('libtpu')

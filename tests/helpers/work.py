"""How much is done before something is refused, counted and not timed."""

import contextlib
import sys
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

# A configuration is refused after 65,000 calls and 1 MB at most, 0.2 seconds of an idle core.
MOST_CALLS, MOST_BYTES = 500_000, 10_000_000


class TooMuchWork(BaseException):
    """Raised in the block that is measured, so that a hang ends."""


class Work:
    """What a block did: `faults` lists what was too much."""

    def __init__(self):
        self.calls, self.bytes = 0, 0
        self.programs: list[str] = []  # what JAX traced or compiled

    @property
    def faults(self) -> list[str]:
        """Name what is beyond the limits."""
        too_much = {
            f'{self.calls} calls': self.calls > MOST_CALLS,
            f'{self.bytes} bytes allocated': self.bytes > MOST_BYTES,
            f'programs: {self.programs[:3]}': bool(self.programs),
        }
        return [name for name, is_wrong in too_much.items() if is_wrong]


@contextlib.contextmanager
def measured_work() -> Iterator[Work]:
    """Count calls of functions in this thread, allocated bytes and programs of a block."""
    work = Work()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        work.calls += event in ('call', 'c_call')
        if work.calls > MOST_CALLS:
            raise TooMuchWork

    def heard(event: str, seconds: float, **facts: Any) -> None:
        work.programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    tracemalloc.start()
    sys.setprofile(count)
    try:
        with contextlib.suppress(TooMuchWork):
            yield work
    finally:
        sys.setprofile(None)
        work.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        jax.monitoring.unregister_event_duration_listener(heard)

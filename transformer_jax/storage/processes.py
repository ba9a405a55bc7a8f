"""Work that one process of a distributed run does for all of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax.errors import WorkdirError


def write_once(write: Callable[[], Any]) -> None:
    """Change files, by process 0 alone; raises as `run_on_primary`, on every process."""

    def work() -> int:
        write()
        return 0

    run_on_primary(work)


def run_on_primary(work: Callable[[], int]) -> int:
    """Run `work` on process 0 and return its non-negative result on every process.

    Every process of the run must call this, since the result is broadcast.

    Raises:
        Exception: on process 0, whatever `work` raised.
        WorkdirError: on the other processes, if `work` raised on process 0; so no process
            continues, or waits, alone.
    """
    if jax.process_count() == 1:
        return work()
    outcome, failure = -1, None
    if jax.process_index() == 0:
        try:
            outcome = work()
        except Exception as error:  # Raised below, after the other processes have been told.
            failure = error
    outcome = int(multihost_utils.broadcast_one_to_all(np.int32(outcome)))
    if outcome < 0:
        raise failure or WorkdirError('process 0 could not continue: see its message')
    return outcome

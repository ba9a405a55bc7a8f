"""SIGINT and SIGTERM as a question that the loop asks between two steps."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted, so that the loop can save; a second one interrupts.

    In a run of several processes the coordination service tells all of them of a SIGTERM, and they agree on a step.
    """

    def __enter__(self) -> 'StopSignals':
        self._signum = 0
        self._distributed = jax.process_count() > 1
        watched = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        self._old = {signum: signal.signal(signum, self._note) for signum in watched}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def received(self, step: int) -> int:
        """The signal that asks to stop after this step, or 0; every process must ask at every step."""
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._signum

    def _note(self, signum: int, frame: object) -> None:
        # Processes could not agree on a SIGINT without talking at every step: there it ends this one at once.
        if self._signum or self._distributed:
            raise KeyboardInterrupt
        self._signum = signum

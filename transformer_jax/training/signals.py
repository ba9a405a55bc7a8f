"""SIGINT and SIGTERM as a question that the loop asks between two steps."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted, so that the loop can save; a second
    one interrupts.

    One that came too late to stop the loop is passed on, at the end, to a handler of the caller's
    own. In a run of several processes the coordination service tells all of them of a SIGTERM, and
    they agree on a step.
    """

    def __enter__(self) -> 'StopSignals':
        self._signum = 0
        self._distributed = jax.process_count() > 1
        watched = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        self._old = {signum: signal.signal(signum, self._note) for signum in watched}
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        # With Python's own handlers it would end a program that has just completed its work.
        own = self._old.get(self._signum) not in (signal.SIG_DFL, signal.default_int_handler)
        if self._signum and own and error is None:
            signal.raise_signal(self._signum)

    def received(self, step: int) -> int:
        """The signal that asks to stop after this step, or 0; every process must ask at
        every step.
        """
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._signum

    def _note(self, signum: int, frame: object) -> None:
        # Processes could not agree on a SIGINT without talking at every step: there it ends this
        # one at once.
        if self._signum or self._distributed:
            raise KeyboardInterrupt
        self._signum = signum

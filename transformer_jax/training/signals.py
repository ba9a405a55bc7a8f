"""SIGINT and SIGTERM, noted so that the loop can save between two steps."""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """A context in which the first SIGINT or SIGTERM is only noted; a second one interrupts.

    The loop asks `received` after every step, and saves before it stops. A signal that comes too
    late to stop the loop is passed on, at the end of the context, to the caller's own handler. In a
    run of several processes JAX's coordination service tells all of them of a SIGTERM, and they
    agree on a step.
    """

    def __enter__(self) -> 'StopSignals':
        self._signum = 0
        self._distributed = jax.process_count() > 1
        watched = (signal.SIGINT,) if self._distributed else (signal.SIGINT, signal.SIGTERM)
        self._old: dict[int, Any] = {
            signum: signal.signal(signum, self._note) for signum in watched
        }
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        # Python's default handlers would end a program that has just completed its work.
        own = self._old.get(self._signum) not in (signal.SIG_DFL, signal.default_int_handler)
        if self._signum and own and error is None:
            signal.raise_signal(self._signum)

    def received(self, step: int) -> int:
        """Return the signal that asks to stop after this step, or 0.

        Every process of a run must ask at every step.
        """
        if self._distributed and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._signum

    def _note(self, signum: int, frame: object) -> None:
        # Several processes could agree on a SIGINT only by a message at every step, so there a
        # SIGINT ends this process at once.
        if self._signum or self._distributed:
            raise KeyboardInterrupt
        self._signum = signum

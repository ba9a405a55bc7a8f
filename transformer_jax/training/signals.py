"""Signals that ask training to stop, noted so that the loop can save between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import jax

from transformer_jax import process_end
from transformer_jax.errors import Stopped
from transformer_jax.partitioning.stop_agreement import StopAgreement
from transformer_jax.process_end import ALWAYS, MOST_INTERRUPTS, STOP_SIGNALS, Interrupted


class EvaluationLeft(Exception):
    """A signal came between two batches of an evaluation."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class StopSignals:
    """A context in which signals stop a training run.

    Until `hold` there is nothing to save: a signal ends the block at once. Afterwards it is only
    noted; the loop asks `received` after every step and between the batches of an evaluation, and
    saves before it stops. More signals change nothing, but for the third SIGINT, which interrupts.
    A signal that comes too late to stop the loop is passed on, at the end of the context, to the
    caller's own handler.

    In a run of several processes a signal to any of them stops all at the same step. Outside of
    the main thread, where Python gives no signals, only those of other processes count.

    Raises Stopped at its end, where a signal came before `hold`.
    """

    def __enter__(self) -> 'StopSignals':
        self._signum = self._interrupts = self._step = 0
        self._holding = False
        self._guard = process_end.guard()
        self._stack = contextlib.ExitStack()
        self._agreement = None
        if jax.process_count() > 1:
            self._agreement = self._stack.enter_context(StopAgreement())
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                if self._watches(signum):
                    self._old[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        self._stack.close()
        if kind is not None and issubclass(kind, Interrupted):
            raise Stopped(
                self._signum,
                f'stopped by {signal.Signals(self._signum).name} before the first step; the same '
                'command starts again',
            ) from None
        # Python's default handlers would end a program that has just completed its work.
        own = self._old.get(self._signum) not in self._defaults()
        if self._signum and own and kind is None:
            signal.raise_signal(self._signum)

    def hold(self) -> None:
        """Only note signals from here on: there is a state to save. A second call does nothing."""
        if not self._holding:
            self._holding = True
            if self._guard is not None:
                self._stack.enter_context(self._guard.patience())

    def received(self, step: int) -> int:
        """Return the signal that asks to stop after this step, or 0.

        Every process of a run must ask at the same points of the loop.
        """
        self._step = step
        return self._agreement.reached() if self._agreement else self._signum

    def saved_by(self, save: Callable[[], None]) -> AbstractContextManager[None]:
        """Make a context in which the command line ends even while something compiles.

        Args:
            save: called in another thread, a grace after a signal, before the process ends; the
                block never ends then. It saves the state after the step of the last `received`.
        """
        if self._guard is None or self._agreement or not self._holding:
            return contextlib.nullcontext()

        def save_and_tell(signum: int) -> str:
            save()
            return self.message(signum, self._step)

        return self._guard.saved_by(save_and_tell)

    @staticmethod
    def message(signum: int, step: int) -> str:
        """Say that a signal stopped the run after a step, which is saved."""
        return (
            f'stopped by {signal.Signals(signum).name} after step {step}, which is saved; the same '
            'command continues from there'
        )

    def _watches(self, signum: int) -> bool:
        handler = signal.getsignal(signum)
        ours = getattr(handler, '__module__', '').startswith('transformer_jax.')
        return signum in ALWAYS or ours or handler in self._defaults()

    def _defaults(self) -> tuple[Any, ...]:
        guard = (self._guard.interrupt,) if self._guard else ()
        return (signal.SIG_DFL, signal.default_int_handler, *guard)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        first = not self._signum
        self._signum = self._signum or signum
        self._interrupts += signum == signal.SIGINT
        if first and self._agreement:
            self._agreement.ask(signum)
        if first and not self._holding:
            raise Interrupted(signum)
        if self._interrupts >= MOST_INTERRUPTS:
            raise KeyboardInterrupt

"""The step after which all processes of a run stop, when a signal comes to one of them."""

import itertools
import threading

import jax

from transformer_jax.partitioning.processes import KeyValues

POLL_S = 0.3
_CLOSED = 10**9  # The point of a process that has completed its loop: nobody stops any more.


class StopAgreement:
    """A context in which processes agree on a point of their loops.

    Each process counts the points at which it could stop, in the same order. After a signal to one
    of them, all tell how far they are, and stop at the point after the farthest. That a process is
    ahead of another is bounded by the collectives of a step. A thread does the talking, so a
    process that compiles answers too.
    """

    _runs = itertools.count()  # Keys are written once: each run has its own.

    def __enter__(self) -> 'StopAgreement':
        self._keys = KeyValues(f'stop/{next(self._runs)}')
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._points, self._stop_at, self._signum, self._asked = 0, -1, 0, 0
        self._thread = threading.Thread(target=self._watch, name='stop', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def ask(self, signum: int) -> None:
        """Ask all processes to stop; a signal handler may call this."""
        self._asked = self._asked or signum

    def reached(self) -> int:
        """Count a point; return the signal for which all stop here, or 0."""
        with self._lock:
            self._points += 1
            return self._signum if self._points == self._stop_at else 0

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            if self._asked:
                self._keys.offer('signal', str(self._asked))
            signum = self._keys.read_all().get('signal')
            if signum is not None:
                self._agree(int(signum))
                return
        self._keys.offer(f'at/{jax.process_index()}', str(_CLOSED))

    def _agree(self, signum: int) -> None:
        with self._lock:  # Meanwhile `reached` waits: no process passes the point.
            self._keys.offer(f'at/{jax.process_index()}', str(self._points))
            points = [
                int(self._keys.wait_for(f'at/{index}')) for index in range(jax.process_count())
            ]
            self._signum, self._stop_at = signum, max(points) + 1

"""The meter of a running training loop: MFU, step times and where the time goes."""

import contextlib
import dataclasses
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from transformer_jax.efficiency.flops import model_flops
from transformer_jax.efficiency.time_spent import Stretch, TimeSpent, read_stretches
from transformer_jax.efficiency.timing import peak_flops
from transformer_jax.host_memory import peak_memory
from transformer_jax.models.architecture import Architecture
from transformer_jax.storage.files import append_line
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.side_records import SideRecord

PERCENTILES = (50, 90, 99)


class Meter:
    """Measures one start of a run, from when it is made; process 0 writes its times.jsonl.

    The loop calls `dispatch` for each step, `step_done` once its metrics have arrived, and
    `log_values` for a line of the log. `measure` and `count` take the time of all else.

    Attributes:
        spent: the time of all starts up to the last line.
    """

    def __init__(self, architecture: Architecture, path: epath.Path):
        """Begin the record of a start.

        Args:
            architecture: of the model.
            path: of times.jsonl. Where it cannot be written, the run goes on without it.
        """
        self._began, self._clock = time.time(), time.perf_counter()
        self._architecture, self._path = architecture, path
        self._record = SideRecord(path)
        self.spent = TimeSpent()
        self._record.attempt(lambda: self._read_earlier(path))
        # By cause, of the stretch that is not yet written.
        self._seconds: dict[str, float] = defaultdict(float)
        self._ended, self._first = self._began, 0
        self._shapes: set[tuple[int, int]] = set()
        self._flops: deque[float] = deque()  # of the steps that are not yet done
        self._flops_of_stretch = 0.0
        self._since = self._paused = 0.0
        self._reset()

    def begin_steps(self, step: int) -> None:
        """End the setup of a start that goes on after `step`; the steps follow."""
        self._peak = peak_flops(self._architecture.dtype)
        whole = self._now() - self._ended
        self._seconds['setup'] = max(whole - sum(self._seconds.values()), 0.0)
        self._first = step
        self.mark(step)
        self._since, self._paused = time.perf_counter(), 0.0

    def count(self, cause: str, seconds: float) -> None:
        """Count seconds of a cause, of `time_spent.CAUSES`."""
        self._seconds[cause] += seconds
        if cause != 'wait':  # Waiting for data is a part of a step.
            self._paused += seconds

    @contextlib.contextmanager
    def measure(self, cause: str) -> Iterator[None]:
        """Count the time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.count(cause, time.perf_counter() - start)

    @contextlib.contextmanager
    def dispatch(self, rows: int, length: int) -> Iterator[None]:
        """Enter the block that dispatches a step; that of a new shape counts as compilation."""
        known = (rows, length) in self._shapes
        self._shapes.add((rows, length))
        with contextlib.nullcontext() if known else self.measure('compile'):
            self._flops.append(rows * model_flops(self._architecture, length))
            yield

    def step_done(self) -> None:
        """Count the oldest step that was dispatched as done."""
        now = time.perf_counter()
        self._step_seconds.append(max(now - self._since - self._paused, 0.0))
        self._since, self._paused = now, 0.0
        done = self._flops.popleft()
        self._flops_done += done
        self._flops_of_stretch += done

    def log_values(self, step: int, tokens_per_second: float) -> dict[str, float]:
        """Return what a line of the log says of the steps since the last one, and `mark` it.

        Args:
            step: the last of them.
            tokens_per_second: of all devices.

        Returns:
            tokens_per_second_per_device; model_flops_per_second, of all devices; mfu, its share of
            their peak (not where that is unknown); step_seconds_p50, _p90, _p99; compile_seconds;
            memory_peak_bytes, of the device that had most, on a CPU of the process; goodput, of
            all starts.
        """
        compiled = self._compiled + self._seconds['compile']
        self.mark(step)
        flops_per_second = self._flops_done / max(math.fsum(self._step_seconds), 1e-9)
        times = np.percentile(self._step_seconds, PERCENTILES)
        values = {
            'tokens_per_second_per_device': tokens_per_second / jax.device_count(),
            'model_flops_per_second': flops_per_second,
            **({'mfu': flops_per_second / self._peak} if self._peak else {}),
            **{f'step_seconds_p{p}': float(t) for p, t in zip(PERCENTILES, times, strict=True)},
            'compile_seconds': compiled,
            'memory_peak_bytes': device_memory_peak(),
            'goodput': self.spent.goodput,
        }
        self._reset()
        return values

    def mark(self, step: int) -> None:
        """End a stretch after `step`, and append it to times.jsonl."""
        ended = self._now()
        seconds, flops = dict(self._seconds), self._flops_of_stretch
        stretch = Stretch(self._first, step, self._ended, ended, seconds, flops)
        self._compiled += self._seconds['compile']
        self._ended, self._first, self._flops_of_stretch = ended, step, 0.0
        self._seconds.clear()
        self.spent.add(stretch)
        if jax.process_index() == 0:
            line = to_json(dataclasses.asdict(stretch))
            self._record.attempt(lambda: append_line(self._path, line))

    def _read_earlier(self, path: epath.Path) -> None:
        self.spent = TimeSpent(read_stretches(path))

    def _now(self) -> float:
        """Return the Unix time by a clock that never goes back."""
        return self._began + time.perf_counter() - self._clock

    def _reset(self) -> None:
        """Begin the next line of the log."""
        self._step_seconds: list[float] = []
        self._flops_done = self._compiled = 0.0


def device_memory_peak() -> int:
    """Return the most bytes that any device of this process has had in use.

    A CPU does not tell; there it is the memory of the whole process.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each['peak_bytes_in_use'] for each in stats if each and 'peak_bytes_in_use' in each]
    return max(peaks, default=0) or peak_memory()

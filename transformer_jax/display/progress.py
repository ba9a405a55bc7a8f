"""The progress of a running loop: a bar on a terminal, log lines elsewhere."""

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator
from typing import Any

import rich.progress

_drawn = contextvars.ContextVar('drawn', default=True)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bars inside the block: loops log lines, as where there is no terminal.

    For a caller that runs many loops and has a display of its own.
    """
    token = _drawn.set(False)
    try:
        yield
    finally:
        _drawn.reset(token)


class Progress:
    """Steps done, loss, real target tokens per second and the time left."""

    def __init__(self, start: int, steps: int, log_every: int, log: Callable[[str], None]):
        self._steps, self._log_every, self._log = steps, log_every, log
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn('step {task.completed}/{task.total}'),
            rich.progress.BarColumn(),
            rich.progress.TextColumn('loss {task.fields[loss]}  {task.fields[speed]} tokens/s'),
            rich.progress.TimeRemainingColumn(),
            console=rich.console.Console(stderr=True),
            transient=True,
        )
        self._draws = self._bar.console.is_terminal and _drawn.get()
        self._task = self._bar.add_task('train', total=steps, completed=start, loss='-', speed='-')
        self._reset(start)

    def __enter__(self) -> 'Progress':
        if self._draws:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._draws:
            self._bar.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out of the speed."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def advance(self, step: int, values: dict[str, float], waited: float) -> dict[str, Any] | None:
        """Count a step in; return the metrics to log, every `log_every` steps.

        Args:
            step: the step that was just done.
            values: its metrics, see `training.train_step`.
            waited: seconds that the loop waited for its data.

        Returns:
            `values` with tokens_per_second, steps_per_second, data_wait (the share of the time
            that the loop waited for data) and seconds, all since the last log; None between.
        """
        self._tokens += values['tokens']
        self._waited += waited
        seconds = time.perf_counter() - self._since
        speed = self._tokens / max(seconds, 1e-9)
        self._bar.update(
            self._task, completed=step, loss=f'{values["loss"]:.4f}', speed=f'{speed:,.0f}'
        )
        if step % self._log_every and step != self._steps:
            return None
        line = values | {
            'tokens_per_second': speed,
            'steps_per_second': (step - self._step) / max(seconds, 1e-9),
            'seconds': seconds,
            'data_wait': self._waited / max(seconds, 1e-9),
        }
        if not self._draws:
            self._log(
                f'step {step}/{self._steps}: loss {values["loss"]:.4f}, {speed:,.0f} tokens/s'
            )
        self._reset(step)
        return line

    def _reset(self, step: int) -> None:
        self._since, self._tokens, self._waited, self._step = time.perf_counter(), 0.0, 0.0, step

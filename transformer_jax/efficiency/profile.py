"""The profile of some steps of a run: a trace for XProf, and a table of the largest operations."""

import contextlib
import gzip
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from transformer_jax.efficiency.meter import Meter
from transformer_jax.efficiency.trace import Operation, largest_operations
from transformer_jax.errors import ConfigError
from transformer_jax.storage.files import temporary_directory, write_bytes
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.side_records import SideRecord

TRACES = 'plugins/profile'  # where the profiler writes, and where XProf looks


class Window(NamedTuple):
    """The steps of a profile: those after `start`, up to `stop`."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> 'Window':
        """Read 'START:STOP'; raise ConfigError where it is none."""
        start, colon, stop = text.partition(':')
        if not (colon and all(each.isascii() and each.isdecimal() for each in (start, stop))):
            raise ConfigError(
                f'--profile={text}: write START:STOP, as in --profile=100:110, which profiles the '
                'steps 101 to 110'
            )
        return cls(int(start), int(stop))

    def require_within(self, steps: int) -> None:
        """Raise ConfigError where a run of so many steps does not have the window."""
        if not self.start < self.stop <= steps:
            raise ConfigError(
                f'--profile={self.start}:{self.stop} is no part of a run of train.steps={steps} '
                f'steps: give 0 <= START < STOP <= {steps}'
            )


class Profiler:
    """Traces the steps of a window, and logs their largest operations; made for each start.

    A trace that cannot be made or written does not stop the run.

    Attributes:
        meter: of the run; it counts the time that this takes.
    """

    def __init__(
        self, window: Window | None, path: epath.Path, log: Callable[[str], None], meter: Meter
    ):
        """Prepare the profile of a window, None: of nothing.

        Args:
            window: of the steps.
            path: the directory of the trace.
            log: receives one-line messages, from process 0 alone.
            meter: of the run.
        """
        self._window, self._path, self._log, self.meter = window, path, log, meter
        self._record = SideRecord(path)
        self._running = contextlib.ExitStack()  # Closed, it has deleted the temporary directory.
        self._directory: epath.Path | None = None  # of a trace that is running

    def resume(self, step: int) -> None:
        """Say where a run that goes on after `step` is past the window."""
        if self._window and step > self._window.start:
            self._log(
                f'no profile: the run goes on after step {step}, and --profile begins after step '
                f'{self._window.start}'
            )
            self._window = None

    def start_after(self, step: int, state: Any) -> None:
        """Start the trace where the window begins after `step`, once `state` is computed."""
        if self._window and step == self._window.start:
            with self.meter.measure('profile'):
                jax.block_until_ready(state)
                self._record.attempt(self._start)

    def stop_after(self, step: int, state: Any) -> None:
        """End the trace where the window ends after `step`, once `state` is computed."""
        if self._directory and self._window and step == self._window.stop:
            with self.meter.measure('profile'):
                jax.block_until_ready(state)
                self._record.attempt(self._stop)

    def close(self) -> None:
        """End the trace of a run that ends within the window."""
        if self._directory:
            self._record.attempt(self._stop)

    def _start(self) -> None:
        self._directory = self._running.enter_context(temporary_directory())
        jax.profiler.start_trace(str(self._directory))

    def _stop(self) -> None:
        directory, self._directory = self._directory, None
        assert directory is not None, 'a trace is running'
        with self._running:
            jax.profiler.stop_trace()
            for file in sorted((directory / TRACES).glob('*/*')):
                content = file.read_bytes()
                # The profiler itself cannot write to object stores.
                write_bytes(self._path / file.relative_to(directory), content)
                if file.name.endswith('.trace.json.gz'):
                    trace = parse_json(gzip.decompress(content), file.name, {}, 'profile again')
                    for line in operation_lines(largest_operations(trace)):
                        self._log(line)
        self._log(f'profile written: xprof --logdir={self._path} shows it')


def operation_lines(operations: list[Operation]) -> list[str]:
    """Write operations as the lines of a table."""
    if not operations:
        return ['the profile has no operations of a compiled program']
    lines = [f'{"largest operations":<40} {"ms":>10} {"share":>7} {"calls":>7}']
    for each in operations:
        lines.append(
            f'{each.name[:40]:<40} {1e3 * each.seconds:>10.2f} {each.share:>7.1%} {each.calls:>7}'
            f'{each.origin and "  " + each.origin}'
        )
    return lines

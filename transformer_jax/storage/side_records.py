"""Records of a run that are not its result: TensorBoard's events, learning curves, samples.

They never stop a run, keep it waiting or hide how it ended. The first that cannot be written is
told in one warning, and no more is written of its kind.
"""

import time
from collections.abc import Callable, Mapping

import tensorboardX.event_file_writer
import tensorboardX.record_writer
import tensorboardX.summary
from absl import logging
from etils import epath
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]: made when it is imported
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)

FLUSH_S = 120  # between flushes of TensorBoard's file; each may be an upload


class SideRecord:
    """A kind of record that is given up at its first failure."""

    def __init__(self, path: epath.Path):
        """Name the record by the file or directory that it is written to."""
        self._path = path
        self.given_up = False

    def attempt(self, write: Callable[[], object]) -> None:
        """Call `write`, unless an earlier one failed; a failure is a warning in one line."""
        if self.given_up:
            return
        try:
            write()
        except Exception as error:  # Whatever it is, the result of the run is worth more.
            self.given_up = True
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            reason = getattr(cause, 'strerror', None) or str(cause).partition('\n')[0]
            logging.warning(
                'cannot write %s: %s: %s; the run goes on without it',
                self._path,
                type(cause).__name__,
                reason,
            )


class EventFile:
    """TensorBoard's file of one start of a run.

    The thread that logs writes it. The writer that tensorboardX offers has a thread of its own:
    a full disk ends that thread, and once its queue is full it lets training wait for ever.
    """

    def __init__(self, directory: epath.Path, first_step: int):
        """Begin a file in which events from `first_step` on replace those of earlier files."""
        self._record = SideRecord(directory)
        self._flushed = time.monotonic()
        self._record.attempt(lambda: self._open(directory, first_step))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers of a step, {'train/loss': 2.5}."""

        def write() -> None:
            for name, value in scalars.items():
                summary = tensorboardX.summary.scalar(name, value)
                self._write(Event(summary=summary, step=step, wall_time=time.time()))
            if time.monotonic() - self._flushed > FLUSH_S:
                self._writer.flush()
                self._flushed = time.monotonic()

        self._record.attempt(write)

    def close(self) -> None:
        """Write what is not yet written, and close the file."""
        self._record.attempt(lambda: self._writer.close())

    def _open(self, directory: epath.Path, first_step: int) -> None:
        tensorboardX.record_writer.directory_check(str(directory))
        self._writer = tensorboardX.event_file_writer.EventsWriter(str(directory / 'events'))
        self._write(Event(step=first_step, file_version='brain.Event:2'))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._writer.flush()

    def _write(self, event: Event) -> None:
        self._writer.write_event(event)

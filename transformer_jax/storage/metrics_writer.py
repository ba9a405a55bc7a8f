"""The metrics of a run: metrics.jsonl and the same numbers for TensorBoard."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import append_line, exists, write_text
from transformer_jax.storage.json_files import read_json_lines
from transformer_jax.storage.json_text import decode_non_finite, to_json
from transformer_jax.storage.paths import is_local
from transformer_jax.storage.side_records import EventFile
from transformer_jax.storage.tracker import Tracker

EVENT = {'step': int, 'split': str}  # what every line has


class MetricsWriter:
    """Appends events to metrics.jsonl, one line each, and to TensorBoard's files.

    Only process 0 writes. Numbers keep their full precision. 'nan', 'inf' and '-inf' are written
    as strings, since JSON has no such numbers. TensorBoard's files are no result: where they cannot
    be written, the run goes on without them.
    """

    def __init__(
        self,
        path: epath.Path,
        events_path: epath.Path,
        resumed: int,
        forgotten: Sequence[str] = (),
    ):
        """Open the files, and drop what an earlier run logged after step `resumed`.

        Of that step itself the events in the splits `forgotten` are dropped.

        Raises:
            WorkdirError: metrics.jsonl is damaged, or cannot be written.
        """
        self._path = path
        self._events = None
        self._trackers: tuple[Tracker, ...] = ()
        if jax.process_index() == 0:
            truncate_after(path, resumed, forgotten)
            self._events = EventFile(events_path, resumed + 1)

    def add_trackers(self, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> None:
        """Tell trackers the configuration, {'train.steps': 100}, and all numbers from here on."""
        self._trackers = (*self._trackers, *trackers)
        for tracker in trackers:
            tracker.log_config(config)

    def log_artifact(self, path: epath.Path) -> None:
        """Tell the trackers of a file, where there is one on this machine."""
        if is_local(path) and path.exists():
            for tracker in self._trackers:
                tracker.log_artifact(os.fspath(path))

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Log one event: `values` are numbers, zero-dimensional arrays or strings.

        Raises:
            WorkdirError: metrics.jsonl cannot be written.
        """
        if self._events is None:
            return
        values = {
            name: value.item() if hasattr(value, 'item') else value
            for name, value in values.items()
        }
        append_line(self._path, to_json({'step': step, 'split': split, **values}))
        numbers = {
            f'{split}/{name}': value
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        self._events.add(step, numbers)
        for tracker in self._trackers:
            tracker.log(step, numbers)

    def close(self) -> None:
        """Flush TensorBoard's files and end the trackers; metrics.jsonl needs no flush."""
        if self._events is not None:
            self._events.close()
        for tracker in self._trackers:
            tracker.finish()


def training_loss(event: Mapping[str, Any]) -> Any:
    """Return the loss of a 'train' event that can be put next to a validation loss.

    It is in nats per token and without label smoothing: `mean_nll`, of all steps since the line
    before. Runs of earlier versions logged only the last step's, `nll`; the earliest only `loss`,
    which has label smoothing. None: the line has no loss.
    """
    names = ('mean_nll', 'nll', 'loss')
    return next((event[name] for name in names if name in event), None)


def truncate_after(path: epath.Path, step: int, forgotten: Sequence[str] = ()) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a last line cut off by a crash; atomic.

    The lines of `step` itself in the splits `forgotten` are dropped too.

    Raises:
        WorkdirError: a line other than the last is damaged; the message names it.
    """
    if not exists(path):
        return
    lines = read_json_lines(path, {'step': int})
    kept = b''.join(
        line + b'\n'
        for line, event in lines
        if event['step'] < step or (event['step'] == step and event.get('split') not in forgotten)
    )
    if path.read_bytes() != kept:
        write_text(path, kept.decode())


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """Read the events of a metrics.jsonl, in their order; 'nan', 'inf' and '-inf' become floats.

    A run that is still training may be writing the last line: without its newline it is left out.

    Returns:
        one dictionary for each event, with `step` and `split`; none where there is no file.

    Raises:
        WorkdirError: a line is damaged; the message names it.
    """
    return [
        {name: decode_non_finite(value) for name, value in event.items()}
        for _, event in read_json_lines(path, EVENT)
    ]


def read_sound_events(path: epath.Path) -> list[dict[str, Any]]:
    """Read events as `read_metrics`, numbers as they are written; leave out damaged lines."""
    try:
        return [event for _, event in read_json_lines(path, EVENT, strict=False)]
    except WorkdirError:  # The file cannot be read.
        return []

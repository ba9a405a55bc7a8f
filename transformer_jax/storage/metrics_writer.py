"""The metrics of a run: metrics.jsonl and the same numbers for TensorBoard."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import tensorboardX
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import append_line, exists, wrap_os_errors, write_text
from transformer_jax.storage.json_files import read_json_lines

EVENT = {'step': int, 'split': str}  # what every line has
NON_FINITE = {text: float(text) for text in ('nan', 'inf', '-inf')}


class MetricsWriter:
    """Appends events to metrics.jsonl, one line each, and to TensorBoard's files.

    Only process 0 writes. Numbers keep their full precision. 'nan', 'inf' and '-inf' are written
    as strings, since JSON has no such numbers.
    """

    def __init__(self, path: epath.Path, events_path: epath.Path, resumed: int):
        """Open the files, and drop what an earlier run logged after step `resumed`."""
        self._path = path
        self._board = None
        if jax.process_index() == 0:
            with wrap_os_errors(path):
                truncate_after(path, resumed)
                self._board = tensorboardX.SummaryWriter(str(events_path), purge_step=resumed + 1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Log one event: `values` are numbers, zero-dimensional arrays or strings."""
        if self._board is None:
            return
        values = {
            name: value.item() if hasattr(value, 'item') else value
            for name, value in values.items()
        }
        with wrap_os_errors(self._path):
            event = encode_non_finite({'step': step, 'split': split, **values})
            append_line(self._path, json.dumps(event, allow_nan=False))
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f'{split}/{name}', value, step)

    def close(self) -> None:
        """Flush TensorBoard's files; metrics.jsonl needs no flush."""
        if self._board is not None:
            self._board.close()


def truncate_after(path: epath.Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a last line cut off by a crash; atomic.

    Raises:
        WorkdirError: a line other than the last is damaged; the message names it.
    """
    if not exists(path):
        return
    lines = read_json_lines(path, {'step': int})
    kept = b''.join(line + b'\n' for line, event in lines if event['step'] <= step)
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
        {name: _decode_non_finite(value) for name, value in event.items()}
        for _, event in read_json_lines(path, EVENT)
    ]


def read_sound_events(path: epath.Path) -> list[dict[str, Any]]:
    """Read events as `read_metrics`, numbers as they are written; leave out damaged lines."""
    try:
        return [event for _, event in read_json_lines(path, EVENT, strict=False)]
    except WorkdirError:  # The file cannot be read.
        return []


def _decode_non_finite(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def encode_non_finite(value: Any) -> Any:
    """Replace the floats that JSON lacks by 'nan', 'inf' or '-inf', at any depth of `value`."""
    if isinstance(value, Mapping):
        return {key: encode_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_non_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

"""The metrics of a run: metrics.jsonl and the same numbers for TensorBoard."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import tensorboardX
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import append_line, wrap_os_errors, write_text

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
        WorkdirError: a line other than the last is not JSON; the message names it.
    """
    if not path.exists():
        return
    *lines, torn = path.read_text().split('\n')  # Complete lines end with a newline.
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)['step'] <= step:
                kept.append(line + '\n')
        except ValueError as error:
            raise WorkdirError(f'{path}:{number} is not JSON: delete that line') from error
    if torn or len(kept) < len(lines):
        write_text(path, ''.join(kept))


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """Read the events of a metrics.jsonl, in their order; 'nan', 'inf' and '-inf' become floats.

    A run that is still training may be writing the last line: without its newline it is left out.

    Returns:
        one dictionary for each event, with `step` and `split`; none where there is no file.

    Raises:
        WorkdirError: a line is not JSON; the message names it.
    """
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise WorkdirError(f'{path}:{number} is not JSON: delete that line') from error
        events.append({name: _decode_non_finite(value) for name, value in event.items()})
    return events


def _decode_non_finite(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def encode_non_finite(value: Any) -> Any:
    """Replace the floats that JSON lacks by 'nan', 'inf' or '-inf', at any depth of `value`."""
    if isinstance(value, Mapping):
        return {key: encode_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_non_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

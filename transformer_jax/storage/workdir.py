"""The workdir: one directory that holds all of a run.

- config.json: the resolved configuration; a later run must have the same
- run.json: a record of every start: commit, versions, devices, engines of attention, command,
  times, how it ended
- metrics.jsonl: one object per event, with `step` and `split`; events/ has the same for TensorBoard
- evaluations.json: what `evaluate` found
- checkpoints/, tokenizer/, samples/, lock
- replica.json: of a run that others were trained beside, where these two are instead,
  see `replicas`
"""

import contextlib
import importlib.metadata
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import tensorboardX
from absl import logging
from etils import epath

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage.files import (
    absolute,
    append_line,
    from_primary,
    lock,
    reported,
    write_text,
)

# Keys (or groups, ending in a dot) that may change between the runs of one workdir: no update
# depends on them beyond the order of floating-point sums. train.steps is not among them: the
# schedule depends on it.
MAY_CHANGE = ('parallel.', 'checkpoint.', 'train.log_every', 'data.prefetch', 'data.cache_dir')


class Workdir:
    """Paths and bookkeeping of one run. Raises WorkdirError where the directory cannot be used."""

    def __init__(self, path: epath.PathLike):
        self.path = absolute(path)
        self.config_path = self.path / 'config.json'
        self.run_path = self.path / 'run.json'
        self.metrics_path = self.path / 'metrics.jsonl'
        self.events_path = self.path / 'events'
        self.evaluations_path = self.path / 'evaluations.json'
        pointer = self.path / 'replica.json'
        replica = _read_json(pointer) if pointer.exists() else {'group': '.', 'index': None}
        self.replica = replica[
            'index'
        ]  # the place of the run in its group; None: it was trained alone
        group = absolute(self.path / replica['group'])
        self.checkpoints_path = group / 'checkpoints'
        self.tokenizer_path = group / 'tokenizer'
        self.samples_path = self.path / 'samples'
        self.curves_path = self.path / 'curves.png'

    @contextlib.contextmanager
    def open_for_training(self, config: Mapping[str, Any], **facts: Any) -> Iterator[dict]:
        """Creates or reopens the workdir for a training run and holds its lock meanwhile.

        Yields this start's record in run.json; the trainer may set its 'exit' ('preempted', …),
        otherwise it becomes 'done' or the exception's name and message. Every process of a run
        calls this alike.

        Args:
            config: the resolved configuration, nested dictionaries of JSON values.
            facts: what else the record is to hold, JSON values.

        Raises:
            WorkdirError: a file in the way, read-only, full, or in use by another run.
            ConfigError: the workdir was made with another configuration; prints the keys
                that differ.
        """
        with contextlib.ExitStack() as stack:

            def claim() -> int:
                with reported(self.path):
                    if self.path.exists() and not self.path.is_dir():
                        raise WorkdirError(f'--workdir={self.path} is a file: choose a directory')
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(lock(self.path / 'lock'))
                    self._settle(_flat(json.loads(json.dumps(config))), config)
                return 0

            from_primary(claim)
            yield from self._recorded_run(facts)

    def read_config(self) -> dict:
        """The configuration of an existing workdir."""
        if not self.config_path.exists():
            raise ConfigError(
                f'--workdir={self.path} has no config.json: name the workdir of a training run'
            )
        return _read_json(self.config_path)

    def metrics(self, resumed: int | None) -> 'MetricsWriter':
        """The writer of metrics for a run that starts after step `resumed` (None: from nothing)."""
        return MetricsWriter(
            self.metrics_path, self.events_path, -1 if resumed is None else resumed
        )

    def append_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Adds to the list in evaluations.json, as a whole or not at all."""
        if jax.process_index() == 0:
            with reported(self.evaluations_path):
                _append_json(self.evaluations_path, finite(evaluation))

    def _settle(self, new: dict, config: Mapping[str, Any]) -> None:
        """Writes config.json, unless an older one differs where it must not."""
        if self.config_path.exists():
            old = _flat(_read_json(self.config_path))
            lines = changes(old, new)
            refused = [line for key, line in lines.items() if not may_change(key)]
            if refused:
                raise ConfigError(
                    f'{self.path} was trained with another configuration ({"; ".join(refused)}): give the '
                    f'old values or another --workdir; only {", ".join(MAY_CHANGE)} may change between runs'
                )
            for line in lines.values():
                logging.info('changed since the last run: %s', line)
        elif self.checkpoints_path.exists():
            raise WorkdirError(
                f'{self.path} has checkpoints but no config.json: choose another --workdir'
            )
        write_text(self.config_path, json.dumps(config, indent=2) + '\n')

    def _recorded_run(self, facts: Mapping[str, Any]) -> Iterator[dict]:
        run = describe_run() | facts
        if jax.process_index() != 0:
            yield run
            return
        earlier = _read_json(self.run_path) if self.run_path.exists() else []
        with reported(self.run_path):
            write_text(self.run_path, json.dumps([*earlier, run], indent=1) + '\n')
        try:
            yield run
        except BaseException as error:
            run['exit'] = f'{type(error).__name__}: {error}'
            raise
        finally:
            run['end'], run['exit'] = _now(), run['exit'] or 'done'
            try:
                write_text(self.run_path, json.dumps([*earlier, run], indent=1) + '\n')
            except OSError as error:  # Must not hide how the run itself ended.
                logging.warning('cannot write %s: %s', self.run_path, error)


class MetricsWriter:
    """Appends events to metrics.jsonl, a line each, and to TensorBoard's files; process 0 only.

    Numbers keep their full precision; 'nan', 'inf' and '-inf' are written as strings, since JSON
    has none.
    """

    def __init__(self, path: epath.Path, events_path: epath.Path, resumed: int):
        """Drops what an earlier run logged after step `resumed`."""
        self._path = path
        self._board = None
        if jax.process_index() == 0:
            with reported(path):
                truncate_after(path, resumed)
                self._board = tensorboardX.SummaryWriter(str(events_path), purge_step=resumed + 1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Logs one event: `values` are numbers, also zero-dimensional arrays, or strings."""
        if self._board is None:
            return
        values = {
            name: value.item() if hasattr(value, 'item') else value
            for name, value in values.items()
        }
        with reported(self._path):
            event = finite({'step': step, 'split': split, **values})
            append_line(self._path, json.dumps(event, allow_nan=False))
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f'{split}/{name}', value, step)

    def close(self) -> None:
        """Flushes TensorBoard's files; metrics.jsonl is always up to date."""
        if self._board is not None:
            self._board.close()


def truncate_after(path: epath.Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step` and a last line torn by a crash; atomic.

    Raises:
        WorkdirError: a line other than the last is not JSON (which).
    """
    if not path.exists():
        return
    *lines, torn = path.read_text().split('\n')  # Whole lines end with a newline.
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)['step'] <= step:
                kept.append(line + '\n')
        except ValueError as error:
            raise WorkdirError(f'{path}:{number} is not JSON: delete that line') from error
    if torn or len(kept) < len(lines):
        write_text(path, ''.join(kept))


def finite(value: Any) -> Any:
    """`value` with the floats that JSON cannot express, at any depth, as 'nan', 'inf' or '-inf'."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def describe_run() -> dict:
    """What is needed to know where a number came from; 'end' and 'exit' stay None while the
    run lives.
    """
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    kinds = sorted({f'{device.platform} {device.device_kind}' for device in jax.devices()})
    return {
        'commit': git_commit(Path(__file__).parents[1]),
        'versions': {'python': platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        'devices': f'{jax.device_count()} x {", ".join(kinds)}',
        'processes': jax.process_count(),
        'host': platform.node(),
        'command': shlex.join(sys.argv),
        'start': _now(),
        'end': None,
        'exit': None,
    }


def git_commit(directory: Path) -> str | None:
    """The commit of the checkout that `directory` belongs to, '+changes' if not clean; None
    outside one.
    """

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git(
            'ls-files', '--error-unmatch', '.'
        )  # An installed copy may lie in some other project's checkout.
        changes = '+changes' if git('status', '--porcelain', '--untracked-files=no') else ''
        return git('rev-parse', 'HEAD') + changes
    except (OSError, subprocess.CalledProcessError):
        return None


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The keys in which two flat configurations differ, each with 'key: old -> new'."""

    def at(flat: Mapping[str, Any], key: str) -> str:
        return json.dumps(flat[key]) if key in flat else '(absent)'

    return {
        key: f'{key}: {at(old, key)} -> {at(new, key)}'
        for key in sorted(old.keys() | new.keys())
        if at(old, key) != at(new, key)
    }


def may_change(key: str) -> bool:
    """Whether a key may have another value where a run goes on, see MAY_CHANGE."""
    return any(
        key.startswith(allowed) if allowed.endswith('.') else key == allowed
        for allowed in MAY_CHANGE
    )


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'train': {'steps': 2}} -> {'train.steps': 2}"""
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f'{prefix}{key}.')
            if isinstance(value, Mapping)
            else {f'{prefix}{key}': value}
        )
    return flat


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise WorkdirError(f'{path} is not JSON: {error}; choose another --workdir') from error


def _append_json(path: epath.Path, item: Any) -> None:
    items = _read_json(path) if path.exists() else []
    write_text(path, json.dumps([*items, item], indent=1) + '\n')


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')

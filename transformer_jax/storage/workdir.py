"""The workdir: one directory that holds all files of a run.

- config.json: the resolved configuration; a later run in this workdir must have the same
- run.json: a record of every start: commit, versions, devices, engines of attention, command,
  times, how it ended
- metrics.jsonl: one object per event, with `step` and `split`; events/ has the same for TensorBoard
- evaluations.json: the results of `evaluate`
- checkpoints/, tokenizer/, samples/, lock

The workdir of a seed that was trained in one program with others has no checkpoints/ and
tokenizer/: they are in the workdir of the group, which seed_groups.json in the folder above names,
see `storage.seed_group_file`.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.schema import flatten
from transformer_jax.storage.config_versions import migrate_config, with_version
from transformer_jax.storage.files import absolute_path, wrap_os_errors, write_text
from transformer_jax.storage.locks import lock
from transformer_jax.storage.metrics_writer import MetricsWriter, encode_non_finite
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.provenance import describe_run, timestamp
from transformer_jax.storage.seed_group_file import find_group

# Keys (or groups, ending in a dot) that may change between the runs of one workdir: no update
# depends on them beyond the order of floating-point sums. train.steps is not one of them: the
# schedule depends on it.
MAY_CHANGE = ('parallel.', 'checkpoint.', 'train.log_every', 'data.prefetch', 'data.cache_dir')


class Workdir:
    """Paths and bookkeeping of one run.

    Attributes:
        path: of the directory; `config_path`, `metrics_path` and the others are in it.
        seed_group: the group of seeds that the run belongs to; None for a run that was trained
            alone.
        seed_index: the place of the run in its group: the index of its slices.
        checkpoints_path: of the run, or of its group.
        tokenizer_path: of the run, or of its group.

    Raises:
        WorkdirError: the directory cannot be used, or the file of seed groups above it is damaged.
    """

    def __init__(self, path: epath.PathLike):
        self.path = absolute_path(path)
        self.config_path = self.path / 'config.json'
        self.run_path = self.path / 'run.json'
        self.metrics_path = self.path / 'metrics.jsonl'
        self.events_path = self.path / 'events'
        self.evaluations_path = self.path / 'evaluations.json'
        group = find_group(self.path)
        self.seed_group = group
        self.seed_index = group.members.index(self.path.name) if group else None
        shared = group.path if group else self.path
        self.checkpoints_path = shared / 'checkpoints'
        self.tokenizer_path = shared / 'tokenizer'
        self.samples_path = self.path / 'samples'
        self.curves_path = self.path / 'curves.png'

    @contextlib.contextmanager
    def open_for_training(self, config: Mapping[str, Any], **facts: Any) -> Iterator[dict]:
        """Create or reopen the workdir for a training run, and hold its lock during the block.

        Yields this start's record in run.json. The trainer may set its 'exit' ('preempted', …);
        otherwise 'exit' becomes 'done', or the name and message of the exception. In a run of
        several processes every process must call this.

        Args:
            config: the resolved configuration, nested dictionaries of JSON values.
            facts: further entries of the record, JSON values.

        Raises:
            WorkdirError: a file is in the way, or the directory is read-only, full or in use by
                another run.
            ConfigError: the workdir was made with another configuration; the message lists the
                keys that differ.
        """
        with contextlib.ExitStack() as stack:

            def claim() -> int:
                with wrap_os_errors(self.path):
                    if self.path.exists() and not self.path.is_dir():
                        raise WorkdirError(f'--workdir={self.path} is a file: choose a directory')
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(lock(self.path / 'lock'))
                    self._write_config(flatten(json.loads(json.dumps(config))), config)
                return 0

            run_on_primary(claim)
            yield from self._record_run(facts)

    def read_config(self) -> dict:
        """Return the configuration of an existing workdir, nested dictionaries of JSON values.

        Raises:
            ConfigError: there is no config.json.
            WorkdirError: config.json is not JSON.
        """
        if not self.config_path.exists():
            raise ConfigError(
                f'--workdir={self.path} has no config.json: name the workdir of a training run'
            )
        return migrate_config(_read_json(self.config_path), str(self.config_path))

    def metrics_writer(self, resumed: int | None) -> MetricsWriter:
        """Open the metrics for a run that starts after step `resumed` (None: from step 0)."""
        return MetricsWriter(
            self.metrics_path, self.events_path, -1 if resumed is None else resumed
        )

    def append_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Append to the list in evaluations.json; the write is atomic."""
        if jax.process_index() == 0:
            with wrap_os_errors(self.evaluations_path):
                _append_json(self.evaluations_path, encode_non_finite(evaluation))

    def _write_config(self, new: dict, config: Mapping[str, Any]) -> None:
        """Write config.json, or raise ConfigError if an older one differs in a key that matters."""
        if self.config_path.exists():
            old = flatten(self.read_config())
            lines = config_changes(old, new)
            refused = [line for key, line in lines.items() if not may_change(key)]
            if refused:
                raise ConfigError(
                    f'{self.path} was trained with another configuration ({"; ".join(refused)}): '
                    'give the old values or another --workdir; only '
                    f'{", ".join(MAY_CHANGE)} may change between runs'
                )
            for line in lines.values():
                logging.info('changed since the last run: %s', line)
        elif (self.path / 'checkpoints').exists():  # Its own: those of its group may be there.
            raise WorkdirError(
                f'{self.path} has checkpoints but no config.json: choose another --workdir'
            )
        write_text(self.config_path, json.dumps(with_version(config), indent=2) + '\n')

    def _record_run(self, facts: Mapping[str, Any]) -> Iterator[dict]:
        """Yield this start's record; process 0 writes it to run.json before and after the run."""
        run = {**describe_run(), **facts}
        if jax.process_index() != 0:
            yield run
            return
        earlier = _read_json(self.run_path) if self.run_path.exists() else []
        with wrap_os_errors(self.run_path):
            write_text(self.run_path, json.dumps([*earlier, run], indent=1) + '\n')
        try:
            yield run
        except BaseException as error:
            run['exit'] = f'{type(error).__name__}: {error}'
            raise
        finally:
            run['end'], run['exit'] = timestamp(), run['exit'] or 'done'
            try:
                write_text(self.run_path, json.dumps([*earlier, run], indent=1) + '\n')
            except OSError as error:  # A warning, so as not to hide how the run itself ended.
                logging.warning('cannot write %s: %s', self.run_path, error)


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in which two flat configurations differ, each with 'key: old -> new'."""

    def value_text(flat: Mapping[str, Any], key: str) -> str:
        return json.dumps(flat[key]) if key in flat else '(absent)'

    def canonical(flat: Mapping[str, Any], key: str) -> str:
        # In a spec a name needs no quotes: talking='both' is talking=both.
        return re.sub(r"'([A-Za-z_]\w*)'", r'\1', value_text(flat, key))

    return {
        key: f'{key}: {value_text(old, key)} -> {value_text(new, key)}'
        for key in sorted(old.keys() | new.keys())
        if canonical(old, key) != canonical(new, key)
    }


def may_change(key: str) -> bool:
    """Whether a key may have another value when a run is resumed, see MAY_CHANGE."""
    return any(
        key.startswith(allowed) if allowed.endswith('.') else key == allowed
        for allowed in MAY_CHANGE
    )


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise WorkdirError(f'{path} is not JSON: {error}; choose another --workdir') from error


def _append_json(path: epath.Path, item: Any) -> None:
    items = _read_json(path) if path.exists() else []
    write_text(path, json.dumps([*items, item], indent=1) + '\n')

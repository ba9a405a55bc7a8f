"""The workdir: one directory that holds all files of a run.

- config.json: the resolved configuration, which a later run in this workdir must have too, the
  identity of the run, which each of its checkpoints has too, and the step of its first checkpoint
- run.json: a record of every start: commit, versions, devices, settings of JAX, environment,
  engines of attention, fingerprints of the splits, command, times, how it ended
- metrics.jsonl: one object per event, with `step` and `split`; events/ has the same for TensorBoard
- times.jsonl: where the time of all starts went; profile/: traces of steps
- evaluations.json: the results of `evaluate`
- checkpoints/, tokenizer/, samples/, lock

The workdir of a seed that was trained in one program with others has no checkpoints/ and
tokenizer/: they are in the workdir of the group, which seed_groups.json in the folder above names,
see `storage.seed_group_file`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.schema import flatten
from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.storage.config_changes import MAY_CHANGE, config_changes, refused_changes
from transformer_jax.storage.config_versions import migrate_config, with_version
from transformer_jax.storage.environment import without_known_packages
from transformer_jax.storage.files import (
    delete_directory,
    exists,
    has_content,
    make_directory,
    wrap_os_errors,
    write_text,
)
from transformer_jax.storage.first_checkpoint import (
    REMEDY,
    first_checkpoint,
    require_checkpoints,
)
from transformer_jax.storage.jax_settings import require_same_settings
from transformer_jax.storage.json_files import read_json_if_there
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.locks import lock
from transformer_jax.storage.metrics_writer import MetricsWriter
from transformer_jax.storage.paths import absolute_path, require_store
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.provenance import describe_run, timestamp
from transformer_jax.storage.run_identity import RunIdentity, new_run_id
from transformer_jax.storage.seed_group_file import find_group

KEPT = ('done', 'Stopped')  # how a start ends, in run.json, that has saved its state


class Workdir:
    """Paths and bookkeeping of one run.

    Attributes:
        path: of the directory; `config_path`, `metrics_path` and the others are in it.
        seed_group: the group of seeds that the run belongs to; None for a run that was trained
            alone.
        seed_index: the place of the run in its group: the index of its slices.
        checkpoints_path: of the run, or of its group.
        tokenizer_path: of the run, or of its group.
        times_path: of the run, or of its group.

    Raises:
        WorkdirError: the directory cannot be used, or the file of seed groups above it is damaged.
        ConfigError: its path is not UTF-8, or the package for its object store is missing.
    """

    def __init__(self, path: epath.PathLike):
        self.path = absolute_path(path)
        _require_utf8(self.path)
        require_store(self.path, '--workdir')
        self.config_path = self.path / 'config.json'
        self.run_path = self.path / 'run.json'
        self.metrics_path = self.path / 'metrics.jsonl'
        self.profile_path = self.path / 'profile'
        self.events_path = self.path / 'events'
        self.evaluations_path = self.path / 'evaluations.json'
        group = find_group(self.path)
        self.seed_group = group
        self.seed_index = group.members.index(self.path.name) if group else None
        shared = group.path if group else self.path
        self.checkpoints_path = shared / 'checkpoints'
        self.tokenizer_path = shared / 'tokenizer'
        self.times_path = shared / 'times.jsonl'
        self.samples_path = self.path / 'samples'
        self.curves_path = self.path / 'curves.png'
        self._start: dict[str, Any] | None = None  # the record of the start that is under way

    @contextlib.contextmanager
    def open_for_training(
        self, config: Mapping[str, Any], steps_may_grow: bool = False, **facts: Any
    ) -> Iterator[dict]:
        """Create or reopen the workdir for a training run, and hold its lock during the block.

        Yields this start's record in run.json. The trainer may set its 'exit' ('preempted', …);
        otherwise 'exit' becomes 'done', or the name and message of the exception. In a run of
        several processes every process must call this.

        Args:
            config: the resolved configuration, nested dictionaries of JSON values.
            steps_may_grow: `train.steps` may be larger than before, since no update depends on it.
            facts: further entries of the record, JSON values.

        Raises:
            WorkdirError: a file is in the way, the checkpoints of the run are not there, or the
                directory is read-only, full or in use by another run.
            ConfigError: the workdir was made with another configuration or other settings of JAX;
                the message lists what differs.
        """
        with contextlib.ExitStack() as stack:

            def claim() -> int:
                with wrap_os_errors(self.path):
                    if exists(self.path) and not self.path.is_dir():
                        raise WorkdirError(f'--workdir={self.path} is a file: choose a directory')
                    make_directory(self.path)
                    stack.enter_context(lock(self.path / 'lock'))
                    self._write_config(config, steps_may_grow)
                return 0

            run_on_primary(claim)
            yield from self._record_run(facts)

    def add_facts(self, **facts: Any) -> None:
        """Add entries to the record of the start that is under way, JSON values.

        They are written at once, so that no kill loses them.

        Raises:
            WorkdirError: run.json cannot be written.
        """
        assert self._start is not None, 'no block of open_for_training is entered'
        self._start |= facts
        if jax.process_index() == 0:
            self._write_starts([*self._starts()[:-1], self._start])

    def read_config(self) -> dict:
        """Return the configuration of an existing workdir, nested dictionaries of JSON values.

        Raises:
            ConfigError: there is no config.json.
            WorkdirError: config.json is damaged.
        """
        stored = self._stored_config()
        if stored is None:
            raise ConfigError(
                f'--workdir={self.path} has no config.json: name the workdir of a training run'
            )
        return migrate_config(stored, str(self.config_path))

    def identity(self) -> RunIdentity | None:
        """Return what the checkpoints of the run must agree with; None without a config.json.

        Raises:
            WorkdirError: config.json is damaged.
        """
        stored = self._stored_config()
        if stored is None:
            return None
        config = migrate_config(stored, str(self.config_path))
        return RunIdentity(self.config_path, stored.get('run', ''), flatten(config))

    def _stored_config(self) -> dict | None:
        return read_json_if_there(self.config_path, {}, REMEDY)

    def metrics_writer(self, resumed: int | None, forgotten: Sequence[str] = ()) -> MetricsWriter:
        """Open the metrics for a run that starts after step `resumed` (None: from step 0).

        The events of that step in the splits `forgotten` are dropped too.
        """
        step = -1 if resumed is None else resumed
        return MetricsWriter(self.metrics_path, self.events_path, step, forgotten)

    def append_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Append to the list in evaluations.json; the write is atomic."""
        _append_json(self.evaluations_path, evaluation)

    def _write_config(self, config: Mapping[str, Any], steps_may_grow: bool) -> None:
        """Write config.json, or raise ConfigError if an older one differs in a key that matters.

        A failure before the first checkpoint, of whatever kind, does not bind the next start.
        """
        stored = self._stored_config()
        owner = self.checkpoints_path.parent
        first = first_checkpoint(owner)
        ended = self._has_ended_well()
        if stored is not None and first is None and not ended:
            # It never trained: all that it left is a vocabulary of its own data.
            require_checkpoints(owner, False)
            stored = None
            if self.seed_group is None and exists(self.tokenizer_path):
                delete_directory(self.tokenizer_path)
        elif stored is not None:
            self._require_same(stored, config, steps_may_grow)
            if self.seed_group is None:  # Its group has been compared.
                self._require_same_settings()
        elif CheckpointFolders(self.path / 'checkpoints', keep=1).valid_steps():
            # Its own: those of its group may be there.
            raise WorkdirError(
                f'{self.path} has checkpoints but no config.json: choose another --workdir'
            )
        # A run of an earlier version does not name its first checkpoint.
        logged = has_content(self.metrics_path)
        require_checkpoints(owner, first is not None or (ended and logged))
        # A run that an earlier version began gets its identity now.
        origin = {'run': (stored or {}).get('run') or new_run_id()}
        if self.seed_group is None and first is not None:
            origin['first_checkpoint'] = first
        write_text(self.config_path, to_json(with_version(config) | origin, indent=2) + '\n')

    def _require_same(
        self, stored: Mapping[str, Any], config: Mapping[str, Any], steps_may_grow: bool
    ) -> None:
        """Raise ConfigError if the configuration differs from that of the run in a key."""
        old = flatten(migrate_config(stored, str(self.config_path)))
        new = flatten(json.loads(to_json(config)))
        if refused := refused_changes(old, new, steps_may_grow):
            raise ConfigError(
                f'{self.path} was trained with another configuration ({"; ".join(refused)}): '
                'give the old values or another --workdir; only '
                f'{", ".join(MAY_CHANGE)} may change between runs'
                f'{", and train.steps may grow" if steps_may_grow else ""}'
            )
        for line in config_changes(old, new).values():
            logging.info('changed since the last run: %s', line)

    def _require_same_settings(self) -> None:
        settings = [start['settings'] for start in self._starts() if 'settings' in start]
        if settings:
            require_same_settings(settings[-1], self.path)

    def _has_ended_well(self) -> bool:
        """Whether a start of the run has ended with its state saved, as its record says."""
        ends = [start.get('exit') or '' for start in self._starts()]
        return any(str(end).startswith(KEPT) for end in ends)

    def _starts(self) -> list[dict]:
        remedy = 'delete it: only the record of earlier starts is lost'
        return read_json_if_there(self.run_path, [dict], remedy) or []

    def _write_starts(self, starts: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.run_path, to_json(starts, indent=1) + '\n')

    def _record_run(self, facts: Mapping[str, Any]) -> Iterator[dict]:
        """Yield this start's record; process 0 writes it to run.json before and after the run."""
        run = self._start = {**describe_run(), **facts}
        if jax.process_index() != 0:
            yield run
            return
        earlier = self._starts()
        run |= without_known_packages(run, earlier)

        def write() -> None:
            self._write_starts([*earlier, run])

        write()
        try:
            yield run
        except BaseException as error:
            run['end'], run['exit'] = timestamp(), f'{type(error).__name__}: {error}'
            try:
                write()
            except WorkdirError as failure:  # It must not hide how the run itself ended.
                if not isinstance(error, WorkdirError):
                    logging.warning('%s', failure)
            raise
        run['end'], run['exit'] = timestamp(), run['exit'] or 'done'
        write()


def _require_utf8(path: epath.Path) -> None:
    """Raise ConfigError for a path that Orbax cannot write."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f'--workdir={os.fspath(path)!a} is not UTF-8 (the locale has '
            f'{sys.getfilesystemencoding()}): name the folder otherwise, or set LC_ALL=C.UTF-8'
        ) from error


def _append_json(path: epath.Path, item: Any) -> None:
    items = read_json_if_there(path, [dict], 'move it away, a new one is begun') or []
    write_text(path, to_json([*items, item], indent=1) + '\n')

"""Seeds side by side: what may share one program, and where the parts of a group lie.

    W/               config.json (of the first replica, with `train.num_seeds`), replicas.json (the replicas' folders),
                     run.json, checkpoints/, tokenizer/
    W/0/, W/1/, …    of each replica, by its seed: config.json, replica.json, metrics.jsonl, samples/, …

A replica's folder is a workdir as if it had been trained alone, but that its checkpoints are slices
of the group's.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.data import Data
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.files import absolute_path, wrap_os_errors, write_text
from transformer_jax.storage.locks import lock
from transformer_jax.storage.processes import run_on_primary
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.training_run import Record, TrainingRun

# What replicas may differ in: the order of the data, and the numbers of `step.Hyper`.
VARIES = (
    'train.seed',
    'optim.learning_rate',
    'model.dropout',
    'train.label_smoothing',
    'optim.weight_decay',
)
GROUP, POINTER = 'replicas.json', 'replica.json'
FEW = 8  # seeds that are all named


@dataclasses.dataclass(frozen=True)
class Group:
    """Where runs side by side lie: the workdir of the group, and the folders of the runs, relative
    to it.
    """

    path: epath.Path
    folders: tuple[str, ...]

    @property
    def members(self) -> tuple[epath.Path, ...]:
        """The workdirs of the runs."""
        return tuple(absolute_path(self.path / folder) for folder in self.folders)

    @property
    def begun(self) -> bool:
        """Whether it has a checkpoint."""
        return bool(Checkpoints(self.path / 'checkpoints', keep=1, read_only=True).valid_steps())

    def holds(self, member: epath.Path) -> bool:
        """Whether the replica.json of one of its runs names this group, and the run's place
        in it.
        """
        workdir = Workdir(member)
        return (workdir.checkpoints_path.parent, workdir.replica) == (
            self.path,
            self.members.index(member),
        )


def seeds(config: ExperimentConfig) -> tuple[ExperimentConfig, ...]:
    """The runs alone that `train.num_seeds` stands for: of seeds `train.seed`,
    `train.seed` + 1, …
    """
    return tuple(
        config_lib.replace(
            config,
            train=dataclasses.replace(config.train, seed=config.train.seed + index, num_seeds=1),
        )
        for index in range(config.train.num_seeds)
    )


def group_config(configs: Sequence[ExperimentConfig]) -> ExperimentConfig:
    """The configuration of a group: that of its first replica, with their number.

    Raises:
        ConfigError: they differ in more than VARIES (the keys are listed), or cannot be trained
            side by side.
    """
    first, *others = map(config_lib.flatten, configs)
    for index, other in enumerate(others, 1):
        keys = [
            f'{key}: {first[key]!r}, {other[key]!r}'
            for key in first
            if first[key] != other[key] and key not in VARIES
        ]
        if keys:
            raise ConfigError(
                f'replicas 0 and {index} cannot be trained side by side, they differ in '
                f'{"; ".join(keys)}; replicas may differ in {", ".join(VARIES)}'
            )
    return config_lib.replace(
        configs[0], train=dataclasses.replace(configs[0].train, num_seeds=len(configs))
    )


def can_share(config: ExperimentConfig) -> bool:
    """Whether seeds of a configuration can be trained side by side; `group_config` tells
    why not.
    """
    try:
        group_config([config, config])
    except ConfigError:
        return False
    return True


@contextlib.contextmanager
def opened(
    group: Workdir, members: Mapping[str, ExperimentConfig], data: Data, log: Callable[[str], None]
) -> Iterator[list[TrainingRun]]:
    """Creates or reopens the workdirs of the `members` (folder, relative to the group's, to
    configuration).

    Holds their locks; run.json says of each how it ended.

    Raises:
        ConfigError: the group has other replicas, or one of them another configuration; prints
            what differs.
        WorkdirError: a folder belongs to another run, or cannot be used.
    """
    together = Group(group.path, tuple(members))
    run_on_primary(lambda: _settle(together))
    names = [f'seed {config.train.seed}' for config in members.values()]
    names = names if len(set(names)) == len(names) else list(members)
    with contextlib.ExitStack() as stack:
        runs, ends = [], []
        for path, name, config in zip(together.members, names, members.values(), strict=True):
            ends.append(
                stack.enter_context(Workdir(path).open_for_training(config_lib.to_dict(config)))
            )
            run_on_primary(functools.partial(_point, together, path))
            order = data.reordered(config.train.seed)
            runs.append(
                TrainingRun(config, order, Workdir(path), functools.partial(_named, log, name))
            )
        yield runs
        for run, end in zip(runs, ends, strict=True):
            if run.record.failed:
                end['exit'] = f'Diverged: {run.record.failed}'


def group_name(seeds: Sequence[int]) -> str:
    """The folder of a group: '0-1-2', or for many '0-to-99-' and a hash that no other
    seeds have.
    """
    name = '-'.join(map(str, seeds))
    if len(seeds) <= FEW:
        return name
    return f'{seeds[0]}-to-{seeds[-1]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}'


def read_group(path: epath.Path) -> Group:
    """The group whose workdir `path` is.

    Raises:
        WorkdirError: its replicas.json is damaged.
    """
    try:
        folders = json.loads((path / GROUP).read_text())['folders']
        if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
            raise ValueError(f'folders are {folders!r}')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkdirError(
            f'{path / GROUP} is damaged ({type(error).__name__}: {error}): restore it, or delete '
            f'{path} and the runs that point there'
        ) from error
    return Group(path, tuple(folders))


def group_of(workdir: Workdir) -> Group | None:
    """The group that a run belongs to; None of one alone.

    That which its replica.json names. A kill may have come before that was written, or the folder
    may have been deleted: then a group in the same folder that lists the run.

    Raises:
        WorkdirError: the group is not there, or its replicas.json is damaged.
    """
    if workdir.replica is None:
        beside = (
            read_group(path.parent) for path in sorted(workdir.path.parent.glob(f'*/{GROUP}'))
        )
        return next((group for group in beside if workdir.path in group.members), None)
    path = workdir.checkpoints_path.parent
    if not (path / GROUP).exists():
        raise WorkdirError(
            f'{workdir.path} was trained beside other runs in {path}, which is gone: delete it too'
        )
    return read_group(path)


def dissolved(group: Group) -> bool:
    """Whether a group is none any more: one that never reached a checkpoint leaves its runs as if
    never begun.

    Raises:
        Busy: it has none yet, but is being trained.
    """
    if group.begun:
        return False
    with wrap_os_errors(group.path), lock(group.path / 'lock'):
        if group.begun:  # by a process that has ended since
            return False
        for member in group.members:
            if group.holds(member):
                (member / 'metrics.jsonl').unlink(missing_ok=True)
                (member / POINTER).unlink()
        (group.path / GROUP).unlink(missing_ok=True)  # Last: after a kill this goes on.
    return True


def standing(workdir: Workdir) -> tuple[int, Record]:
    """The step of a run's newest intact checkpoint, 0 without any, and what that remembers; takes
    no lock.
    """
    checkpoints = Checkpoints(workdir.checkpoints_path, keep=1, read_only=True)
    for step in checkpoints.intact_steps():
        meta = checkpoints.meta(step)
        return step, Record(
            **(meta['record'] if workdir.replica is None else meta['records'][workdir.replica])
        )
    return 0, Record()


def reader(workdir: Workdir) -> Checkpoints:
    """The checkpoints of a workdir, read-only; of a replica's the slices that are its own.

    Raises:
        ConfigError: it is a group's, which holds several runs (their folders are listed).
        WorkdirError: its replicas.json is damaged.
    """
    if (workdir.path / GROUP).exists():
        group = read_group(workdir.path)
        raise ConfigError(
            f'--workdir={workdir.path} holds runs side by side: name one of them, '
            f'{", ".join(str(group.path / folder) for folder in group.folders)}'
        )
    if workdir.replica is None:
        return Checkpoints(workdir.checkpoints_path, keep=1, read_only=True)
    return ReplicaCheckpoints(workdir.checkpoints_path, workdir.replica)


class GroupCheckpoints(Checkpoints):
    """Those of a group, whose `meta['records']` say which steps each replica keeps: retention
    spares all of these.
    """

    def protected_steps(self) -> set[int]:
        """See Checkpoints."""
        return {step for record in _records(self) for step in record['saves']}


class ReplicaCheckpoints(Checkpoints):
    """One replica's checkpoints: slices of its group's, at the steps that a run alone would have
    kept. Read-only.
    """

    def __init__(self, directory: epath.PathLike, index: int):
        super().__init__(directory, keep=1, read_only=True)
        self._index = index
        self._group = Checkpoints(directory, keep=1, read_only=True)

    def valid_steps(self) -> list[int]:
        """See Checkpoints."""
        record = self._recorded()
        return [step for step in self._group.valid_steps() if record and step in record['saves']]

    def best_step(self) -> int | None:
        """See Checkpoints."""
        record = self._recorded()
        return record['best']['step'] if record and record['best'] else None

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict]:
        """See Checkpoints."""
        chosen = run_on_primary(lambda: self._verified_step(step))
        _, states, meta = super().restore(self._stacked(abstract_state, chosen), chosen)
        state = jax.tree.map(
            lambda a, like: jax.device_put(a[self._index], like.sharding), states, abstract_state
        )
        return chosen, state, meta

    def _recorded(self) -> dict[str, Any] | None:
        records = _records(self._group)
        return records[self._index] if records else None

    def _host_params(self, abstract_params: Any, step: int, part: str) -> Any:
        stacked = super()._host_params(self._stacked(abstract_params, step), step, part)
        return jax.tree.map(lambda a: np.asarray(a)[self._index], stacked)

    def _stacked(self, abstract: Any, step: int) -> Any:
        replicas = len(self.meta(step)['records'])
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((replicas, *a.shape), a.dtype), abstract)


def _records(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    """What the newest undamaged checkpoint of a group says of its replicas; none where there is
    no checkpoint.
    """
    for step in reversed(checkpoints.valid_steps()):
        try:
            return checkpoints.meta(step)['records']
        except WorkdirError as error:
            logging.warning('%s', error)
    return []


def _settle(group: Group) -> int:
    """Refuses folders that are not the group's, or that are in use by other runs; writes
    replicas.json.
    """
    path = group.path / GROUP
    if path.exists():
        there = read_group(group.path).folders
        if there != group.folders:
            raise ConfigError(
                f'{group.path} holds the replicas {", ".join(there)}, not {", ".join(group.folders)}: '
                'give these, or another --workdir'
            )
    for member in group.members:
        if (member / POINTER).exists():
            if not group.holds(member):
                raise WorkdirError(f'{member} belongs to another group: choose another --workdir')
        elif any((member / name).exists() for name in ('checkpoints', 'metrics.jsonl')):
            raise WorkdirError(f'{member} holds a run of its own: choose another --workdir')
    with wrap_os_errors(path):
        write_text(path, json.dumps({'folders': list(group.folders)}) + '\n')
    return 0


def _point(group: Group, member: epath.Path) -> int:
    # Relative, so that the whole may be moved.
    pointer = {'group': os.path.relpath(group.path, member), 'index': group.members.index(member)}
    with wrap_os_errors(member):
        write_text(member / POINTER, json.dumps(pointer) + '\n')
    return 0


def _named(log: Callable[[str], None], name: str, message: str) -> None:
    log(f'{name}: {message}')

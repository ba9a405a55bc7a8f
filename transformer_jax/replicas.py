"""Seeds side by side: what may share one program, and where the parts of a group lie.

    W/               config.json (of the first replica, with `train.replicas`), replicas.json, run.json, checkpoints/,
                     tokenizer/
    W/0/, W/1/, …    of each replica, by its seed: config.json, replica.json, metrics.jsonl, samples/, …

A replica's folder is a workdir as if it had been trained alone, but that its checkpoints are slices of the group's.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import ExperimentConfig
from transformer_jax.data import Data
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.runs import Run
from transformer_jax.storage import from_primary, is_local, reported, write_text
from transformer_jax.workdir import Workdir

# What replicas may differ in: the order of the data, and the numbers of `step.Hyper`.
VARIES = ('train.seed', 'optim.learning_rate', 'model.dropout', 'train.label_smoothing', 'optim.weight_decay')
GROUP = 'replicas.json'


def seeds(config: ExperimentConfig) -> tuple[ExperimentConfig, ...]:
    """The runs alone that `train.replicas` stands for: of seeds `train.seed`, `train.seed` + 1, …"""
    return tuple(config_lib.replace(config, train=dataclasses.replace(
        config.train, seed=config.train.seed + index, replicas=1)) for index in range(config.train.replicas))


def group_config(configs: Sequence[ExperimentConfig]) -> ExperimentConfig:
    """The configuration of a group: that of its first replica, with their number.

    Raises:
        ConfigError: they differ in more than VARIES (the keys are listed), or cannot be trained side by side.
    """
    first, *others = map(config_lib.flatten, configs)
    for index, other in enumerate(others, 1):
        keys = [f'{key}: {first[key]!r}, {other[key]!r}' for key in first if first[key] != other[key]
                and key not in VARIES]
        if keys:
            raise ConfigError(f'replicas 0 and {index} cannot be trained side by side, they differ in '
                              f'{"; ".join(keys)}; replicas may differ in {", ".join(VARIES)}')
    return config_lib.replace(configs[0], train=dataclasses.replace(configs[0].train, replicas=len(configs)))


def can_share(config: ExperimentConfig) -> bool:
    """Whether seeds of a configuration can be trained side by side; `group_config` tells why not."""
    try:
        group_config([config, config])
    except ConfigError:
        return False
    return True


@contextlib.contextmanager
def opened(group: Workdir, members: Mapping[str, ExperimentConfig], data: Data,
           log: Callable[[str], None]) -> Iterator[list[Run]]:
    """Creates or reopens the workdirs of the `members` (folder, relative to the group's, to configuration).

    Holds their locks; run.json says of each how it ended.

    Raises:
        ConfigError: the group has other replicas, or one of them another configuration; prints what differs.
        WorkdirError: a folder belongs to another run, or cannot be used.
    """
    paths = [Workdir(group.path / folder).path for folder in members]
    from_primary(lambda: _settle(group, paths, list(members)))
    names = [f'seed {config.train.seed}' for config in members.values()]
    names = names if len(set(names)) == len(names) else list(members)
    with contextlib.ExitStack() as stack:
        runs, ends = [], []
        for index, (path, name, config) in enumerate(zip(paths, names, members.values(), strict=True)):
            ends.append(stack.enter_context(Workdir(path).open_for_training(config_lib.to_dict(config))))
            from_primary(functools.partial(_point, group, path, index))
            order = data.reordered(config.train.seed)
            runs.append(Run(config, order, Workdir(path), functools.partial(_named, log, name)))
        yield runs
        for run, end in zip(runs, ends, strict=True):
            if run.record.failed:
                end['exit'] = f'Diverged: {run.record.failed}'


def group_of(workdir: Workdir) -> tuple[epath.Path, list[str]] | None:
    """The path of the group that a run belongs to, and the folders of its runs, relative to it; None of one alone.

    Raises:
        WorkdirError: it belongs to one that is not there.
    """
    if workdir.replica is None:
        return None
    path = workdir.checkpoints_path.parent
    if not (path / GROUP).exists():
        raise WorkdirError(f'{workdir.path} was trained beside other runs in {path}, which is gone: delete it too')
    return path, json.loads((path / GROUP).read_text())['folders']


def reader(workdir: Workdir) -> Checkpoints:
    """The checkpoints of a workdir, read-only; of a replica's the slices that are its own.

    Raises:
        ConfigError: it is a group's, which holds several runs (their folders are listed).
    """
    if (workdir.path / GROUP).exists():
        folders = json.loads((workdir.path / GROUP).read_text())['folders']
        raise ConfigError(f'--workdir={workdir.path} holds runs side by side: name one of them, '
                          f'{", ".join(str(workdir.path / folder) for folder in folders)}')
    if workdir.replica is None:
        return Checkpoints(workdir.checkpoints_path, keep=1, read_only=True)
    return ReplicaCheckpoints(workdir.checkpoints_path, workdir.replica)


class GroupCheckpoints(Checkpoints):
    """Those of a group, whose `meta['records']` say which steps each replica keeps: retention spares all of these."""

    def spared(self) -> set[int]:
        """See Checkpoints."""
        return {step for record in _records(self) for step in record['saves']}


class ReplicaCheckpoints(Checkpoints):
    """One replica's checkpoints: slices of its group's, at the steps that a run alone would have kept. Read-only."""

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
        step = from_primary(lambda: self._choose(step))
        step, states, meta = super().restore(self._stacked(abstract_state, step), step)
        state = jax.tree.map(lambda a, like: jax.device_put(a[self._index], like.sharding), states, abstract_state)
        return step, state, meta

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
    """What the newest undamaged checkpoint of a group says of its replicas; none where there is no checkpoint."""
    for step in reversed(checkpoints.valid_steps()):
        try:
            return checkpoints.meta(step)['records']
        except WorkdirError as error:
            logging.warning('%s', error)
    return []


def _settle(group: Workdir, paths: Sequence[epath.Path], folders: Sequence[str]) -> int:
    """Refuses folders that are not the group's, or that are in use by other runs; writes replicas.json."""
    path = group.path / GROUP
    if path.exists():
        there = json.loads(path.read_text())['folders']
        if there != list(folders):
            raise ConfigError(f'{group.path} holds the replicas {", ".join(there)}, not {", ".join(folders)}: give '
                              'these, or another --workdir')
    for index, member in enumerate(paths):
        pointer = member / 'replica.json'
        if pointer.exists():
            if json.loads(pointer.read_text()) != _pointer(group, member, index):
                raise WorkdirError(f'{member} belongs to another group: choose another --workdir')
        elif any((member / name).exists() for name in ('checkpoints', 'metrics.jsonl')):
            raise WorkdirError(f'{member} holds a run of its own: choose another --workdir')
    with reported(path):
        write_text(path, json.dumps({'folders': list(folders)}) + '\n')
    return 0


def _point(group: Workdir, member: epath.Path, index: int) -> int:
    with reported(member):
        write_text(member / 'replica.json', json.dumps(_pointer(group, member, index)) + '\n')
    return 0


def _pointer(group: Workdir, member: epath.Path, index: int) -> dict[str, Any]:
    # Relative where it can be, so that the whole may be moved.
    where = os.path.relpath(group.path, member) if is_local(group.path) else str(group.path)
    return {'group': where, 'index': index}


def _named(log: Callable[[str], None], name: str, message: str) -> None:
    log(f'{name}: {message}')

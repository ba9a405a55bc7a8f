"""Groups of seeds: which runs can share a program, and how a group begins and ends.

    W/               config.json (of the first seed, with `train.num_seeds`), run.json,
                     seed_groups.json (the members), checkpoints/, tokenizer/
    W/0/, W/1/, …    of each member, by its seed: config.json, metrics.jsonl, samples/, …

This is the layout of `train`; `ablate` has the group's own workdir beside those of its members, see
`SeedGroup`. A member's workdir is like that of a run that was trained alone, but its checkpoints
are slices of the group's.

A group begins when `begin_group` enters it into seed_groups.json. `dissolve_group` takes one apart
that never reached a checkpoint; `release_member` takes single runs out of a group.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence

from absl import logging
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.data import Data
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.schema import EvaluateConfig, ExperimentConfig
from transformer_jax.storage.files import delete_file, exists
from transformer_jax.storage.locks import lock
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.seed_checkpoints import check_records, open_shared_checkpoints
from transformer_jax.storage.seed_group import MAY_DIFFER, SeedGroup, holds_run
from transformer_jax.storage.seed_group_file import edit_groups
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.training_run import Record, TrainingRun

MAX_NAMED_SEEDS = 8  # The name of a larger group has its first and last seed, and a hash.


def seed_configs(config: ExperimentConfig) -> tuple[ExperimentConfig, ...]:
    """Return the configuration of each seed that `train.num_seeds` stands for.

    The seeds count up from `train.seed`.
    """
    return tuple(
        config_lib.replace(
            config,
            train=dataclasses.replace(config.train, seed=config.train.seed + index, num_seeds=1),
        )
        for index in range(config.train.num_seeds)
    )


def group_config(configs: Sequence[ExperimentConfig]) -> ExperimentConfig:
    """Return the configuration of a group: that of its first member, with their number.

    Raises:
        ConfigError: they differ in more than MAY_DIFFER (the keys are listed), or cannot be trained
            in one program.
    """
    first, *others = map(config_lib.flatten, configs)
    for index, other in enumerate(others, 1):
        differences = [
            f'{key}: {first[key]!r}, {other[key]!r}'
            for key in first
            if first[key] != other[key] and key not in MAY_DIFFER
        ]
        if differences:
            raise ConfigError(
                f'runs 0 and {index} cannot be trained in one program, they differ in '
                f'{"; ".join(differences)}; runs may differ in {", ".join(MAY_DIFFER)}'
            )
    return config_lib.replace(
        configs[0], train=dataclasses.replace(configs[0].train, num_seeds=len(configs))
    )


def can_share(config: ExperimentConfig) -> bool:
    """Whether seeds of a configuration can be trained in one program; `group_config` says why."""
    try:
        group_config([config, config])
    except ConfigError:
        return False
    return True


def group_name(seeds: Sequence[int]) -> str:
    """Name the folder of a group: '0-1-2', or for more than 8 seeds '0-to-99-' and a hash.

    The hash is of all seeds, so that no other seeds have the same name.
    """
    name = '-'.join(map(str, seeds))
    if len(seeds) <= MAX_NAMED_SEEDS:
        return name
    return f'{seeds[0]}-to-{seeds[-1]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}'


def begin_group(group: SeedGroup) -> None:
    """Enter a group into seed_groups.json, unless it is there already.

    The caller holds the lock of the group's own workdir. A process that is killed afterwards
    leaves a group without a checkpoint, which the next call takes up.

    Raises:
        ConfigError: the group has other members.
        WorkdirError: a folder belongs to another run or group, or the group lacks a member.
    """
    with edit_groups(group.parent) as groups:
        entered = groups.get(group.name)
        if entered and entered.members != group.members and not entered.has_checkpoint():
            _take_apart(groups, entered)  # It failed before its first checkpoint.
            entered = None
        if entered:
            if entered.members != group.members:
                raise ConfigError(
                    f'{group.path} holds the seeds of {", ".join(entered.members)}, not of '
                    f'{", ".join(group.members)}: give these, or another --workdir'
                )
            require_whole(entered)
            return
        for name, path in zip(group.members, group.member_paths, strict=True):
            if any(other.has_member(name) for other in groups.values()):
                raise WorkdirError(f'{path} belongs to another group: choose another --workdir')
            if any(exists(path / own) for own in ('checkpoints', 'metrics.jsonl')):
                raise WorkdirError(f'{path} holds a run of its own: choose another --workdir')
        groups[group.name] = group


def require_whole(group: SeedGroup) -> None:
    """Raise WorkdirError for a group that cannot resume, since members of it were released."""
    if group.released:
        raise WorkdirError(
            f'{group.path} cannot continue without {", ".join(group.released)}, which were deleted '
            'and trained again alone: delete it, and the runs of it that are not done'
        )


def dissolve_group(group: SeedGroup) -> None:
    """Take a group apart that never reached a checkpoint: its members are as if never begun.

    Deletes the metrics of its members, then its entry in seed_groups.json: after a kill in between
    the entry is still there, and the next call completes this one. A group that has reached a
    checkpoint by now, or that another process has dissolved, is left as it is.

    Raises:
        Busy: a process trains the group.
        WorkdirError: a file cannot be deleted.
    """
    with contextlib.ExitStack() as stack:
        if exists(group.path):
            stack.enter_context(lock(group.path / 'lock'))
        groups = stack.enter_context(edit_groups(group.parent))
        if groups.get(group.name) != group or group.has_checkpoint():
            return
        _take_apart(groups, group)


def forget_group_at(path: epath.Path) -> None:
    """Take apart the group that has a workdir as its own, before one run is trained there.

    The caller holds the lock of the workdir, whose configuration no group has trained with.
    """
    with edit_groups(path) as groups:
        if '.' in groups and not groups['.'].has_checkpoint():
            _take_apart(groups, groups['.'])


def _take_apart(groups: dict[str, SeedGroup], group: SeedGroup) -> None:
    """Delete the metrics of a group's members, then its entry."""
    for name, path in zip(group.members, group.member_paths, strict=True):
        if group.has_member(name):
            delete_file(path / 'metrics.jsonl')
    del groups[group.name]


def release_member(path: epath.PathLike) -> None:
    """Take the run of a deleted workdir out of its group, so that it can be trained again alone.

    Does nothing for a run that belongs to no group.

    Raises:
        Busy: a process trains the group.
        WorkdirError: the workdir still holds the run; or the file of groups is damaged.
    """
    workdir = Workdir(path)
    group = workdir.seed_group
    if group is None:
        return
    _require_deleted(workdir)
    with contextlib.ExitStack() as stack:
        if exists(group.path):
            stack.enter_context(lock(group.path / 'lock'))
        groups = stack.enter_context(edit_groups(group.parent))
        _require_deleted(workdir)  # Again, since now no process can be making it anew.
        entered = groups.get(group.name)
        if entered and entered.has_member(workdir.path.name):
            released = (*entered.released, workdir.path.name)
            groups[group.name] = dataclasses.replace(entered, released=released)
            logging.info('%s leaves its group %s', workdir.path, group.path)


@contextlib.contextmanager
def open_group(
    group: SeedGroup,
    configs: Sequence[ExperimentConfig],
    data: Data,
    log: Callable[[str], None],
) -> Iterator[list[TrainingRun]]:
    """Begin or resume a group: create or reopen the workdirs of its members, and hold their locks.

    run.json of each member says how it ended. In a run of several processes every process must
    call this.

    Args:
        group: whose own workdir is open already.
        configs: of its members, in order.
        data: of the experiment; each member gets it in the order of its seed.
        log: receives one-line messages, each with the seed (or the folder) of its member.

    Yields:
        the members, in order.

    Raises:
        ConfigError: the group has other members, or one of them another configuration; the message
            says what differs.
        WorkdirError: a folder belongs to another run, or cannot be used.
    """
    write_once(lambda: begin_group(group))
    seeds = [f'seed {config.train.seed}' for config in configs]
    labels = seeds if len(set(seeds)) == len(seeds) else group.members
    with contextlib.ExitStack() as stack:
        runs, ends = [], []
        for path, label, config in zip(group.member_paths, labels, configs, strict=True):
            workdir = Workdir(path)
            end = stack.enter_context(workdir.open_for_training(config_lib.to_dict(config), True))
            order = data.reordered(config.train.seed)
            runs.append(TrainingRun(config, order, workdir, functools.partial(_log, log, label)))
            ends.append(end)
        yield runs
        for run, end in zip(runs, ends, strict=True):
            if run.record.failed:
                end['exit'] = f'Diverged: {run.record.failed}'


def newest_record(workdir: Workdir, settings: EvaluateConfig) -> tuple[int, Record]:
    """Return the step of a run's newest intact checkpoint and its record; 0 and a new one without.

    Takes no lock. `settings` are the run's own.

    Raises:
        WorkdirError: the file of groups does not fit the checkpoint.
    """
    checkpoints = open_shared_checkpoints(workdir)
    for step in checkpoints.intact_steps():
        meta, group = checkpoints.meta(step), workdir.seed_group
        if group is None:
            record = Record.from_json(meta['record'])
        else:
            records = check_records(group, meta['records'])
            record = Record.from_json(records[group.members.index(workdir.path.name)])
        record.take_late_scores(step, settings, workdir)
        return step, record
    return 0, Record()


def _require_deleted(workdir: Workdir) -> None:
    if holds_run(workdir.path):
        raise WorkdirError(
            f'{workdir.path} holds a run of a group, whose checkpoints are in '
            f'{workdir.checkpoints_path}: resume the whole group there'
        )


def _log(log: Callable[[str], None], label: str, message: str) -> None:
    log(f'{label}: {message}')

"""Train one run, or several seeds side by side, in a workdir."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.config import Components
from transformer_jax.data import load_data
from transformer_jax.efficiency.meter import Meter
from transformer_jax.efficiency.profile import Profiler
from transformer_jax.errors import ConfigError, Diverged
from transformer_jax.partitioning.same_start import require_same_start, shared_keys
from transformer_jax.schema import ExperimentConfig, read_splits
from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.files import exists
from transformer_jax.storage.paths import absolute_path, real_path
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.seed_checkpoints import GroupCheckpoints
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.seed_group_file import NAME as GROUPS
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups
from transformer_jax.training.init_from import copy_tokenizer, parse_source
from transformer_jax.training.programs import SeedGroupProgram, make_program
from transformer_jax.training.recording import NOTHING, Recording
from transformer_jax.training.seed_group_trainer import SeedGroupTrainer
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train_state import optimizer_summary
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.training_run import REMEDY, Record, TrainingRun

Log = Callable[[str], None]


def train(
    config: ExperimentConfig,
    path: epath.PathLike,
    log: Log,
    allow_changed_data: bool = False,
    recording: Recording = NOTHING,
) -> dict[str, Any] | None:
    """Train to `train.steps`, resuming what the workdir at `path` holds.

    With `train.num_seeds` > 1 several seeds train side by side, see `train_group`.

    Args:
        config: of the experiment.
        path: the workdir.
        log: receives one-line messages.
        allow_changed_data: resume although a split is another than before, and say so.
        recording: what is recorded beside the files of the workdir.

    Returns:
        the best evaluation, {'step', 'metric', 'value'}; None without any, and for a seed group.

    Raises:
        UserError: anything that a user can fix, see `errors`. Stopped after SIGINT or SIGTERM,
            with the state saved. Diverged after a non-finite update; of a seed group at its end,
            if one seed or more diverged.
    """
    require_same_start(shared_keys(config) | {'--workdir': str(absolute_path(path))})
    recording.require_possible(config.train.steps)
    if config.train.num_seeds == 1:
        [record] = _train(
            config, path, log, allow_changed_data=allow_changed_data, recording=recording
        )
        if record.error is not None:
            raise record.error
        return record.best
    members = seed_groups.seed_configs(config)
    seeds = tuple(str(member.train.seed) for member in members)
    group = SeedGroup(absolute_path(path), '.', seeds)
    records = train_group(members, group, log, allow_changed_data, recording)
    failed = [
        f'seed {member.train.seed} at {record.failed}'
        for member, record in zip(members, records, strict=True)
        if record.failed
    ]
    if failed:
        others = '; the others are done' if len(failed) < len(members) else ''
        raise Diverged(
            f'{len(failed)} of {len(members)} seeds diverged ({"; ".join(failed)}){others}. '
            f'To train all, {REMEDY}'
        )
    return None


def train_group(
    configs: Sequence[ExperimentConfig],
    group: SeedGroup,
    log: Log,
    allow_changed_data: bool = False,
    recording: Recording = NOTHING,
) -> list[Record]:
    """Train several runs in one compiled program, resuming what their group holds.

    Each run has a workdir of its own, as if it had been trained alone, but the group has the
    checkpoints, see `seed_groups`. A run that diverges or stops early keeps its state from there
    on, and the others continue.

    Args:
        configs: of the runs, which differ in `seed_group.MAY_DIFFER` alone. A single one is
            trained alone, in its folder.
        group: their folders, in the same order.
        log: receives one-line messages.
        allow_changed_data: see `train`.
        recording: see `train`.

    Returns:
        the record of each run: `best`, its best evaluation, and `failed`, how it diverged.

    Raises:
        UserError: as `train`, but for Diverged. ConfigError where the runs cannot be trained in one
            program.
    """
    seed_groups.require_whole(group)
    if len(configs) == 1:
        path = group.member_paths[0]
        return _train(
            configs[0], path, log, allow_changed_data=allow_changed_data, recording=recording
        )
    if len(set(group.members)) < len(configs):
        raise ConfigError(
            f'runs in one program need folders of their own, these are {", ".join(group.members)}'
        )
    config = seed_groups.group_config(configs)
    return _train(config, group.path, log, group, configs, allow_changed_data, recording)


def _train(
    config: ExperimentConfig,
    path: epath.PathLike,
    log: Log,
    group: SeedGroup | None = None,
    members: Sequence[ExperimentConfig] = (),
    allow_changed_data: bool = False,
    recording: Recording = NOTHING,
) -> list[Record]:
    """Train the run in the workdir `path`, or the members of the group whose workdir it is."""
    config, members = _place(config), [_place(member) for member in members]
    workdir = _open_own(path)
    components = config_lib.resolve(config)
    engines = components.architecture.engines()
    with contextlib.ExitStack() as stack:
        # Left last: a signal that it passes on does not count as the end of the run.
        signals = stack.enter_context(StopSignals())
        end = stack.enter_context(
            workdir.open_for_training(
                config_lib.to_dict(config), not components.schedule.uses_steps, engines=engines
            )
        )
        meter = Meter(components.architecture, workdir.times_path)
        profiler = Profiler(recording.profile, workdir.profile_path, log, meter)
        if group is None:
            _forget_group(workdir)
        if engines:
            log('engines: ' + '; '.join(f'{site} {names}' for site, names in engines.items()))
        if config.train.init_from and not _has_trained(workdir):
            copy_tokenizer(config.train.init_from, workdir.tokenizer_path, config.data)
        data = load_data(components.pipeline, workdir.tokenizer_path, log, read_splits(config))
        if group is None:
            run = TrainingRun(config, data, workdir, log)
            trainer = _make_trainer(components, run, signals, profiler)
        else:
            runs = stack.enter_context(seed_groups.open_group(group, members, data, log))
            trainer = _make_group_trainer(components, runs, workdir, signals, log, profiler)
        trainer.start(workdir.tokenizer_path, allow_changed_data)
        for opened in dict.fromkeys([workdir, *(run.workdir for run in trainer.runs)]):
            opened.add_facts(splits=trainer.splits)
        for run in trainer.runs:
            run.open_trackers(recording.trackers)
        try:
            trainer.run()
            for run in trainer.runs:
                run.draw_curves()
        finally:
            trainer.close()
        if trainer.failed:
            end['exit'] = f'Diverged: {"; ".join(run.record.failed for run in trainer.runs)}'
        return [run.record for run in trainer.runs]


def _has_trained(workdir: Workdir) -> bool:
    return bool(CheckpointFolders(workdir.checkpoints_path, keep=1, read_only=True).valid_steps())


def _place(config: ExperimentConfig) -> ExperimentConfig:
    """Record paths as absolute ones: later commands may run elsewhere.

    Of a link to another run its target, since the link may name another one later.
    """
    source_dir, init_from = config.data.source_dir, config.train.init_from
    if source_dir:
        source_dir = os.fspath(absolute_path(source_dir))
    if init_from:
        path, choice = parse_source(init_from)
        init_from = f'{os.fspath(real_path(path))}{choice and f":{choice}"}'
    return config_lib.replace(
        config,
        data=dataclasses.replace(config.data, source_dir=source_dir),
        train=dataclasses.replace(config.train, init_from=init_from),
    )


def _open_own(path: epath.PathLike) -> Workdir:
    """Open a workdir whose checkpoints are its own.

    Raises:
        WorkdirError: it holds a member of a group.
    """
    write_once(lambda: seed_groups.release_member(path))
    return Workdir(path)


def _forget_group(workdir: Workdir) -> None:
    """Take apart a group that failed before its first checkpoint, and was to be trained here."""

    def forget() -> None:
        if exists(workdir.path / GROUPS):
            seed_groups.forget_group_at(workdir.path)

    write_once(forget)


def _make_trainer(
    components: Components, run: TrainingRun, signals: StopSignals, profiler: Profiler
) -> Trainer:
    """Build the trainer of one run."""
    program = make_program(components)
    run.log(f'optimizer: {optimizer_summary(components, program.model)}')
    workdir, keep = run.workdir, _kept_steps(components.config)
    checkpoints = Checkpoints(workdir.checkpoints_path, keep=keep, run=workdir.identity())
    return Trainer(components, run, program, checkpoints, signals, run.log, profiler)


def _make_group_trainer(
    components: Components,
    runs: Sequence[TrainingRun],
    workdir: Workdir,
    signals: StopSignals,
    log: Log,
    profiler: Profiler,
) -> Trainer:
    """Build the trainer of a group of seeds, whose own workdir is given."""
    program = SeedGroupProgram(components, [run.config for run in runs])
    log(f'optimizer: {optimizer_summary(components, program.single.model)}')
    keep = _kept_steps(components.config)
    checkpoints = GroupCheckpoints(workdir.checkpoints_path, keep=keep, run=workdir.identity())
    return SeedGroupTrainer(components, runs, program, checkpoints, signals, log, profiler)


def _kept_steps(config: ExperimentConfig) -> int:
    """Return how many of the newest checkpoints are kept."""
    return max(config.checkpoint.keep, config.checkpoint.average)

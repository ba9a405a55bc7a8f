"""Train one run, or several seeds side by side, in a workdir."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.config import Components
from transformer_jax.data import load_data
from transformer_jax.display.learning_curves import draw_learning_curves
from transformer_jax.errors import ConfigError, Diverged, UserError, WorkdirError
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups
from transformer_jax.training.programs import SeedGroupProgram, make_program
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train_state import optimizer_summary
from transformer_jax.training.trainer import SeedGroupTrainer, Trainer
from transformer_jax.training.training_run import REMEDY, Record, TrainingRun

Log = Callable[[str], None]


def train(config: ExperimentConfig, path: epath.PathLike, log: Log) -> dict[str, Any] | None:
    """Train to `train.steps`, resuming what the workdir at `path` holds.

    With `train.num_seeds` > 1 several seeds train side by side, see `train_group`.

    Args:
        config: of the experiment.
        path: the workdir.
        log: receives one-line messages.

    Returns:
        the best evaluation, {'step', 'metric', 'value'}; None without any, and for a seed group.

    Raises:
        UserError: anything that a user can mend, see `errors`. Stopped after SIGINT or SIGTERM,
            with the state saved. Diverged after a non-finite update; of a seed group at its end,
            if one seed or more diverged.
    """
    if config.train.num_seeds == 1:
        [record] = _train(config, Workdir(path), {}, log)
        if record.failed:
            raise record.error
        return record.best
    members = seed_groups.seeds(config)
    records = train_group(members, path, log)
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
    configs: Sequence[ExperimentConfig], path: epath.PathLike, log: Log, folders: Sequence[str] = ()
) -> list[Record]:
    """Train several runs side by side in one compiled program, resuming what `path` holds.

    Each run has a workdir of its own, as if it had been trained alone, but the group at `path`
    holds the checkpoints, see `seed_groups`. A run that diverges or stops early keeps its state
    from there on, and the others continue.

    Args:
        configs: of the runs, which differ in `seed_groups.VARIES` alone. A single one is trained
            alone, in its folder.
        path: the workdir of the group.
        log: receives one-line messages.
        folders: the runs' workdirs, relative to `path`; by default their seeds.

    Returns:
        the record of each run: `best`, its best evaluation, and `failed`, how it diverged.

    Raises:
        UserError: as `train`, but for Diverged. ConfigError where the runs cannot be trained side
            by side.
    """
    names = folders or [str(config.train.seed) for config in configs]
    if len(configs) == 1:
        return _train(configs[0], Workdir(epath.Path(path) / names[0]), {}, log)
    if len(set(names)) < len(names):
        raise ConfigError(
            f'runs side by side need folders of their own, these are {", ".join(names)}'
        )
    group = seed_groups.group_config(configs)
    return _train(group, Workdir(path), dict(zip(names, configs, strict=True)), log)


def _train(
    config: ExperimentConfig, workdir: Workdir, members: Mapping[str, ExperimentConfig], log: Log
) -> list[Record]:
    """Train one run, or the group of `members` (folder to configuration) where there are some."""
    if workdir.replica is not None:
        raise WorkdirError(
            f'{workdir.path} holds a run of a group, whose checkpoints are in '
            f'{workdir.checkpoints_path}: go on with the whole group there'
        )
    components = config_lib.resolve(config)
    engines = components.architecture.engines()
    with contextlib.ExitStack() as stack:
        # Left last: a signal that it passes on does not count as the end of the run.
        signals = stack.enter_context(StopSignals())
        end = stack.enter_context(
            workdir.open_for_training(config_lib.to_dict(config), engines=engines)
        )
        if engines:
            log('engines: ' + '; '.join(f'{site} {names}' for site, names in engines.items()))
        try:
            trainer = _make_trainer(components, workdir, members, stack, log)
        except UserError:
            # A configuration that has never trained must not bind the next one.
            if not workdir.checkpoints_path.exists():
                workdir.config_path.unlink(missing_ok=True)
            raise
        trainer.start(workdir.tokenizer_path)
        try:
            trainer.run(signals)
        finally:
            trainer.close()
        if trainer.failed:
            end['exit'] = f'Diverged: {"; ".join(run.record.failed for run in trainer.runs)}'
        if jax.process_index() == 0:
            for run in trainer.runs:
                if run.workdir.metrics_path.exists():  # The first update may not be finite.
                    draw_learning_curves(run.workdir.metrics_path, run.workdir.curves_path)
        return [run.record for run in trainer.runs]


def _make_trainer(
    components: Components,
    workdir: Workdir,
    members: Mapping[str, ExperimentConfig],
    stack: contextlib.ExitStack,
    log: Log,
) -> Trainer:
    """Read the data and build the trainer of one run, or of the group of `members`."""
    config = components.config
    data = load_data(components.pipeline, workdir.tokenizer_path, log, _splits(config))
    keep = max(config.checkpoint.keep, config.checkpoint.average)
    if members:
        runs = stack.enter_context(seed_groups.opened(workdir, members, data, log))
        program = SeedGroupProgram(components, list(members.values()))
        checkpoints = seed_groups.GroupCheckpoints(workdir.checkpoints_path, keep=keep)
        trainer = SeedGroupTrainer(components, runs, program, checkpoints, log)
        model = program.single.model
    else:
        program = make_program(components)
        checkpoints = Checkpoints(workdir.checkpoints_path, keep=keep)
        run = TrainingRun(config, data, workdir, log)
        trainer = Trainer(components, run, program, checkpoints, log)
        model = program.model
    log(f'optimizer: {optimizer_summary(components, model)}')
    return trainer


def _splits(config: ExperimentConfig) -> tuple[str, ...]:
    evaluates = config.evaluate.every or config.evaluate.every_epochs
    return ('train', 'validation') if evaluates else ('train',)

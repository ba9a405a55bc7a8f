"""The training loop, of one run or of several side by side."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.data import load_data
from transformer_jax.display.figures import curves
from transformer_jax.display.progress import Progress
from transformer_jax.errors import ConfigError, Diverged, Stopped, UserError, WorkdirError
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.models import build_model
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups as replicas
from transformer_jax.training.parallel import Parallel, Replicas
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train_step import TrainState, optimizer_summary
from transformer_jax.training.training_run import REMEDY, Record, Run

Log = Callable[[str], None]


def train(config: ExperimentConfig, path: epath.PathLike, log: Log) -> dict[str, Any] | None:
    """Trains to `train.steps`, resuming what `path` holds; returns the best evaluation, or None
    without any.

    With `train.replicas` a group of seeds, see `train_group`; then the log tells the best of each.

    Raises:
        UserError: anything that a user can mend, see `errors`; Stopped after SIGINT or SIGTERM, its
            state saved; Diverged, of a group at its end, where one seed or more did.
    """
    if config.train.replicas == 1:
        [record] = _train(config, Workdir(path), {}, log)
        if record.failed:
            raise record.error
        return record.best
    members = replicas.seeds(config)
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
    """Trains runs side by side in one compiled program, resuming what `path` holds.

    Each has a workdir of its own, as if it had been trained alone, but the group at `path` holds
    the checkpoints, see `replicas`. One that diverges or stops early stands still from there on;
    the others go on.

    Args:
        configs: of the runs, which differ in `replicas.VARIES` alone. One of them is trained alone,
            in its folder.
        path: the workdir of the group.
        log: receives remarks.
        folders: the runs' workdirs, relative to `path`; by default their seeds.

    Returns:
        what is remembered of each run: `best`, its best evaluation, and `failed`, how it diverged
            if it did.

    Raises:
        UserError: as `train`, but for Diverged; ConfigError where the runs cannot be trained side
            by side.
    """
    names = folders or [str(config.train.seed) for config in configs]
    if len(configs) == 1:
        return _train(configs[0], Workdir(epath.Path(path) / names[0]), {}, log)
    if len(set(names)) < len(names):
        raise ConfigError(
            f'runs side by side need folders of their own, these are {", ".join(names)}'
        )
    group = replicas.group_config(configs)
    return _train(group, Workdir(path), dict(zip(names, configs, strict=True)), log)


def _train(
    config: ExperimentConfig, workdir: Workdir, members: Mapping[str, ExperimentConfig], log: Log
) -> list[Record]:
    """Trains the group of `members` (folder to configuration), or without any the run that
    `config` is.
    """
    if workdir.replica is not None:
        raise WorkdirError(
            f'{workdir.path} holds a run of a group, whose checkpoints are in '
            f'{workdir.checkpoints_path}: go on with the whole group there'
        )
    components = config_lib.resolve(config)
    engines = components.architecture.engines()
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(
            StopSignals()
        )  # Left last: what it passes on is no end of the run.
        end = stack.enter_context(
            workdir.open_for_training(config_lib.to_dict(config), engines=engines)
        )
        if engines:
            log('engines: ' + '; '.join(f'{site} {names}' for site, names in engines.items()))
        try:
            data = load_data(components.pipeline, workdir.tokenizer_path, log, _splits(config))
            model = build_model(components.architecture)
            runs, parallel, checkpoints = (
                [Run(config, data, workdir, log)],
                Parallel(components, model),
                Checkpoints,
            )
            if members:
                runs = stack.enter_context(replicas.opened(workdir, members, data, log))
                parallel, checkpoints = (
                    Replicas(parallel, components, members.values()),
                    replicas.GroupCheckpoints,
                )
            log(f'optimizer: {optimizer_summary(components, model)}')
        except UserError:
            # A configuration that has never trained must not bind the next one.
            if not workdir.checkpoints_path.exists():
                workdir.config_path.unlink(missing_ok=True)
            raise
        keep = max(config.checkpoint.keep, config.checkpoint.average)
        trainer = Trainer(
            config, runs, parallel, checkpoints(workdir.checkpoints_path, keep=keep), log
        )
        trainer.start(workdir.tokenizer_path)
        try:
            trainer.run(signals)
        finally:
            trainer.close()
        if trainer.failed:
            end['exit'] = f'Diverged: {"; ".join(run.record.failed for run in runs)}'
        for run in runs if jax.process_index() == 0 else ():
            if run.workdir.metrics_path.exists():  # not so where the first update was not finite
                curves(run.workdir.metrics_path, run.workdir.curves_path)
        return [run.record for run in runs]


def _splits(config: ExperimentConfig) -> tuple[str, ...]:
    evaluates = config.evaluate.every or config.evaluate.every_epochs
    return ('train', 'validation') if evaluates else ('train',)


class Trainer:
    """A run in progress, or a group of them: its state, where its data stands, and its records."""

    state: TrainState
    position: Any

    def __init__(
        self,
        config: ExperimentConfig,
        runs: Sequence[Run],
        parallel: Parallel | Replicas,
        checkpoints: Checkpoints,
        log: Log,
    ):
        """`config` is the run's own, or the group's; of its `runs` replicas each has its own."""
        self.config, self.runs, self.parallel, self.checkpoints, self.log = (
            config,
            runs,
            parallel,
            checkpoints,
            log,
        )
        self.evaluator = Evaluator(config, runs[0].data, parallel.one, log)
        self.step = 0
        self.saved = -1

    @property
    def live(self) -> list[Run]:
        """The runs that go on."""
        return [run for run in self.runs if run.record.live]

    @property
    def failed(self) -> bool:
        """Whether all of them did."""
        return all(run.record.failed for run in self.runs)

    def start(self, tokenizer_path: epath.Path) -> None:
        """Restores the newest intact checkpoint, or initialises."""
        data, *others = (run.data for run in self.runs)
        rows = self.parallel.local_rows, self.parallel.rows_multiple
        self.iterator = (
            data.replicas_iterator(others, *rows) if others else data.train_iterator(*rows)
        )
        resumed = None
        if self.checkpoints.valid_steps():
            resumed, self.state, meta = self.checkpoints.restore(self.parallel.abstract)
            data.tokenizer.require(meta['tokenizer'], tokenizer_path)
            self.iterator.set_state(meta['data'])
            for run, record in zip(
                self.runs, meta['records'] if others else [meta['record']], strict=True
            ):
                run.record = Record(**record)
            self.step = self.saved = resumed
            self.log(f'resumed after step {resumed}')
        else:
            self.state = self.parallel.init_state()
        self.position = self.iterator.get_state()
        for run in self.runs:
            run.start(resumed)

    def run(self, signals: StopSignals) -> None:
        """Steps until the last one, no run that goes on, or a signal; saves and evaluates on
        the way.

        Raises:
            Stopped: after a signal, where there was a run to go on.
        """
        steps = self.config.train.steps
        pending = None
        for run in self.live:
            if 0 < self.step != run.record.evaluated and run.due(self.step)[0]:
                self._evaluate(run)  # A signal came between this step and its evaluation.
        with Progress(self.step, steps, self.config.train.log_every, self.log) as progress:
            while self.step < steps and self.live:
                waited = time.perf_counter()
                batch, position = next(self.iterator), self.iterator.get_state()
                waited = time.perf_counter() - waited
                live = [run.record.live for run in self.runs]
                self.state, metrics = self.parallel.advance(self.state, batch, live)
                self.step, self.position = self.step + 1, position
                # The metrics of the step before, so that the devices already work on this one.
                if pending:
                    self._account(progress, *pending)
                pending = self.step, metrics, waited
                # After the last step there is nothing left to interrupt but its evaluation, which
                # completes the run.
                signum = self.step < steps and signals.received(self.step)
                if (
                    signum
                    or self.step == steps
                    or any(any(run.due(self.step)) for run in self.live)
                ):
                    self._account(progress, *pending)
                    pending = None
                    with progress.paused():
                        kept = [run for run in self.live if self._completes(run, signum)]
                        if kept or (signum and self.live):
                            self.save(kept)
                if signum and self.live:
                    self.checkpoints.wait()
                    raise Stopped(
                        signum,
                        f'stopped by {signal.Signals(signum).name} after step {self.step}, which is '
                        f'saved; the same command goes on from there',
                    )
        if self.saved != self.step and not self.failed:
            self.save(self.live)
        self.checkpoints.wait()  # Also where all failed: the save before it must not be lost.

    def save(self, kept: Sequence[Run]) -> None:
        """Starts to write a checkpoint of the current step, unless there is one; it is to be `kept`
        of these runs.
        """
        if self.saved == self.step:
            return
        for run in kept:
            run.record.saved(self.step, self.checkpoints.keep)
        records = [dataclasses.asdict(run.record) for run in self.runs]
        recorded = (
            {'records': records, 'best': None}
            if len(records) > 1
            else {'record': records[0], 'best': records[0]['best']}
        )
        meta = {
            'data': self.position,
            'tokenizer': self.runs[0].data.tokenizer.sha256,
            'config': config_lib.to_dict(self.config),
        }
        self.checkpoints.save(self.step, self.state, meta | recorded)
        self.saved = self.step

    def close(self) -> None:
        """Flushes what is written in the background."""
        for run in self.runs:
            run.metrics.close()

    def _account(
        self, progress: Progress, step: int, metrics: dict[str, jax.Array], waited: float
    ) -> None:
        """Fetches a step's metrics, ends the runs in which one is not finite, and logs."""
        fetched = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        values = {}
        for index, run in enumerate(self.runs):
            mine = {name: value[index].item() for name, value in fetched.items()}
            if run.record.live and run.goes_on(step, mine):
                values[run] = mine
        if not values:
            return
        losses, tokens = ([mine[name] for mine in values.values()] for name in ('loss', 'tokens'))
        whole = next(iter(values.values())) | {
            'loss': sum(losses) / len(losses),
            'tokens': sum(tokens),
        }
        line = progress.advance(step, whole, waited)
        for run, mine in values.items() if line else ():
            run.metrics.write(
                step, 'train', line | mine | {'seconds': line['seconds'] / len(values)}
            )

    def _completes(self, run: Run, signum: int) -> bool:
        """Evaluates a run where it is due; returns whether the checkpoint of this step is to be
        kept of it.
        """
        evaluates, saves = run.due(self.step)
        better = evaluates and not signum and self._evaluate(run)
        return saves or better or run.record.stopped_early or bool(signum)

    def _evaluate(self, run: Run) -> bool:
        """Scores the validation split; returns whether it is the best so far."""
        start = time.perf_counter()
        params = self.parallel.member(self.state.evaluated, self.runs.index(run))
        samples = run.workdir.samples_path / f'validation-{self.step}.txt'
        scores = self.evaluator.of(run.config).scores(
            params, 'validation', samples, run.config.evaluate.max_examples
        )
        return run.take_scores(self.step, scores, time.perf_counter() - start)

"""The loop of training: steps, logging, evaluation and checkpoints of one run."""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.config import Components
from transformer_jax.data.fingerprints import require_same_splits, split_fingerprint
from transformer_jax.display.progress import Progress
from transformer_jax.efficiency.profile import Profiler
from transformer_jax.errors import Stopped
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.schema import read_splits
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.config_versions import with_version
from transformer_jax.training.batch_iterator import BatchIterator
from transformer_jax.training.init_from import start_from
from transformer_jax.training.programs import TrainProgram, rows_and_length
from transformer_jax.training.signals import EvaluationLeft, StopSignals
from transformer_jax.training.train_state import TrainState
from transformer_jax.training.training_run import Record, TrainingRun

Log = Callable[[str], None]
Values = dict[str, float]  # the metrics of one step of one run


class Trainer:
    """A run in progress: its state, its data position and its record."""

    state: TrainState
    iterator: BatchIterator
    position: Any
    splits: dict[str, str]  # the fingerprints of the data

    def __init__(
        self,
        components: Components,
        run: TrainingRun,
        program: TrainProgram,
        checkpoints: Checkpoints,
        signals: StopSignals,
        log: Log,
        profiler: Profiler,
    ):
        self.config, self.runs = components.config, [run]
        self.program, self.checkpoints, self.log = program, checkpoints, log
        self.signals, self.profiler, self.meter = signals, profiler, profiler.meter
        self.evaluator = Evaluator(
            components, run.data, program.partitioner, log, self._leave_evaluation
        )
        self.step = 0
        self.saved = -1

    @property
    def live(self) -> list[TrainingRun]:
        """The runs that still train."""
        return [run for run in self.runs if run.record.live]

    @property
    def failed(self) -> bool:
        """Whether all runs have diverged."""
        return all(run.record.failed for run in self.runs)

    def start(self, tokenizer_path: epath.Path, allow_changed_data: bool = False) -> None:
        """Restore the newest intact checkpoint, or initialize.

        Args:
            tokenizer_path: the folder of the tokenizer, for messages.
            allow_changed_data: only log that a split is another than that of the checkpoint.
        """
        self.iterator = self._make_iterator()
        resumed = None
        if self.checkpoints.valid_steps():
            with self.meter.measure('restore'):
                resumed, stored, meta = self.checkpoints.restore(self.program.layout.abstract)
                self.state = self.program.layout.load(stored)
            self.runs[0].data.tokenizer.require(meta['tokenizer'], tokenizer_path)
            stored = meta.get('splits', {})
            require_same_splits(
                self.runs[0].data, stored, list(stored), allow_changed_data, self.log
            )
            self.iterator.set_state(meta['data'])
            for run, record in zip(self.runs, self._read_records(meta), strict=True):
                run.record = Record.from_json(record)
            self.step = self.saved = resumed
            self.log(f'resumed after step {resumed}')
        else:
            with self.meter.measure('compile'):
                self.state = self.program.init_state()
            if source := self.config.train.init_from:
                tokenizer, layout = self.runs[0].data.tokenizer, self.program.layout
                apart = layout.store(self.state)
                self.state = layout.load(start_from(source, apart, tokenizer, self.log))
        self.position = self.iterator.get_state()
        self.splits = {
            split: split_fingerprint(self.runs[0].data, split) for split in read_splits(self.config)
        }
        for run in self.runs:
            run.start(resumed)
        self.profiler.resume(self.step)
        self.meter.begin_steps(self.step)

    def run(self) -> None:
        """Train until the last step, until no run is live, or until a signal comes.

        Each batch travels with the iterator state that follows it, so that the saved position is
        exact whatever is prefetched. The metrics of step n − 1 are fetched after step n has been
        dispatched.

        Raises:
            Stopped: after a signal, while a run was live; the state is saved.
        """
        steps = self.config.train.steps
        pending = None
        self._make_up_evaluations()
        with Progress(self.step, steps, self.config.train.log_every, self.log) as progress:
            while self.step < steps and self.live:
                self.profiler.start_after(self.step, self.state)
                waited = time.perf_counter()
                batch, position = next(self.iterator), self.iterator.get_state()
                waited = time.perf_counter() - waited
                self.meter.count('wait', waited)
                placed = self.program.place(batch)
                with self.meter.dispatch(*rows_and_length(placed)):
                    metrics = self._take_step(placed)
                self.step, self.position = self.step + 1, position
                self.profiler.stop_after(self.step, self.state)
                self.signals.hold()
                if pending:
                    self._account(progress, *pending)
                pending = self.step, metrics, waited
                # After the last step there is nothing left to interrupt but its evaluation.
                signum = self.signals.received(self.step) if self.step < steps else 0
                due = any(any(run.due(self.step)) for run in self.live)
                if signum or self.step == steps or due:
                    self._account(progress, *pending)
                    pending = None
                    with progress.paused():
                        kept, signum = self._complete_step(signum)
                        if kept or (signum and self.live):
                            self.save(kept)
                if signum and self.live:
                    self.checkpoints.wait()
                    raise Stopped(signum, self.signals.message(signum, self.step))
        if self.saved != self.step and not self.failed:
            self.save(self.live)
        with self.meter.measure('save'):
            self.checkpoints.wait()  # Also where all failed: the save before it must not be lost.

    def save(self, kept: Sequence[TrainingRun]) -> None:
        """Start to write a checkpoint of the current step, unless there is one.

        Args:
            kept: the runs that keep this checkpoint; retention spares it for them.
        """
        if self.saved == self.step:
            return
        for run in kept:
            run.record.saved(self.step, self.checkpoints.keep)
        meta = {
            'data': self.position,
            'tokenizer': self.runs[0].data.tokenizer.sha256,
            'splits': self.splits,
            'config': with_version(config_lib.to_dict(self.config)),
        }
        with self.meter.measure('save'):
            stored = self.program.layout.store(self.state)
            self.checkpoints.save(self.step, stored, meta | self._write_records())
        self.saved = self.step

    def close(self) -> None:
        """Flush what is written in the background, and end the record of the time."""
        self.profiler.close()
        self.meter.mark(self.step)
        for run in self.runs:
            run.metrics.close()

    def params_of(self, run: TrainingRun) -> Any:
        """Return the parameters that evaluation of a run uses."""
        return self.state.eval_params

    def _make_iterator(self) -> BatchIterator:
        rows = self.program.partitioner.local_rows, self.program.rows_multiple
        return self.runs[0].data.train_iterator(*rows)

    def _take_step(self, placed: Any) -> dict[str, jax.Array]:
        self.state, metrics = self.program.train_step(self.state, placed)
        return metrics

    def _values(self, metrics: dict[str, Any]) -> list[Values]:
        """Split a step's fetched metrics by run."""
        return [{name: value.item() for name, value in metrics.items()}]

    def _read_records(self, meta: dict[str, Any]) -> list[dict[str, Any]]:
        return [meta['record']]

    def _write_records(self) -> dict[str, Any]:
        record = self.runs[0].record.as_json()
        longer = record['longer']
        return {'record': record, 'best': record['best'], 'best_if_longer': longer.get('best')}

    def _account(
        self, progress: Progress, step: int, metrics: dict[str, jax.Array], waited: float
    ) -> None:
        """Fetch a step's metrics, end the runs in which one is not finite, and log."""
        values = []
        fetched = self._values(jax.device_get(metrics))
        self.meter.step_done()
        for run, own in zip(self.runs, fetched, strict=True):
            if run.record.live and run.accept_step(step, own):
                values.append((run, own))
        if not values:
            return
        whole = values[0][1] | {
            'loss': sum(own['loss'] for _, own in values) / len(values),
            'tokens': sum(own['tokens'] for _, own in values),
        }
        line = progress.advance(step, whole, waited)
        if line is None:
            return
        line |= self.meter.log_values(step, line['tokens_per_second'])
        for run, own in values:
            seconds = line['seconds'] / len(values)
            run.log_step(step, line | own | {'seconds': seconds})

    def _complete_step(self, signum: int) -> tuple[list[TrainingRun], int]:
        """Evaluate the runs that are due, until a signal comes.

        Returns:
            (runs that keep this step's checkpoint, the signal that asks to stop here or 0)
        """
        kept = []
        for run in self.live:
            evaluates, saves = run.due(self.step)
            better = False
            try:
                with self._may_be_left():
                    better = evaluates and not signum and self._evaluate(run)
            except EvaluationLeft as left:
                signum = left.signum
            if saves or better or run.record.stopped_early or signum:
                kept.append(run)
        return kept, signum

    def _make_up_evaluations(self) -> None:
        """Make the evaluations of the step of the checkpoint that a signal has cut short."""
        for run in self.live:
            record, settings = run.record, run.config.evaluate
            if not self.step or self.step == record.evaluated or not run.due(self.step)[0]:
                continue
            if record.take_late_scores(self.step, settings, run.workdir):
                continue
            self.signals.hold()
            try:
                self._leave_evaluation()
                with self._may_be_left():
                    self._evaluate(run)
            except EvaluationLeft as left:
                message = self.signals.message(left.signum, self.step)
                raise Stopped(left.signum, message) from None

    def _may_be_left(self) -> AbstractContextManager[None]:
        # No later checkpoint could record an evaluation of the last step.
        if self.step == self.config.train.steps:
            return contextlib.nullcontext()
        return self.signals.saved_by(self._save_at_once)

    def _leave_evaluation(self) -> None:
        signum = self.signals.received(self.step) if self.step < self.config.train.steps else 0
        if signum:
            raise EvaluationLeft(signum)

    def _save_at_once(self) -> None:
        self.save(self.live)
        self.checkpoints.wait()

    def _evaluate(self, run: TrainingRun) -> bool:
        """Score the validation split; return whether it is the best so far."""
        start = time.perf_counter()
        settings = run.config
        with self.meter.measure('evaluate'):
            found = self.evaluator.evaluate(
                self.params_of(run),
                'validation',
                settings.evaluate.max_examples,
                settings.train.seed,
            )
        run.write_samples(self.step, found)
        return run.take_scores(self.step, found.scores, time.perf_counter() - start)

"""One run in the training loop: its record, when it is due to evaluate or save, its logs."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from transformer_jax.data import Data
from transformer_jax.display.learning_curves import draw_learning_curves
from transformer_jax.errors import Diverged
from transformer_jax.evaluation.evaluator import Evaluation
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.schema import ExperimentConfig, evaluates, flatten
from transformer_jax.storage.json_text import decode_non_finite, encode_non_finite
from transformer_jax.storage.metrics_writer import MetricsWriter
from transformer_jax.storage.side_records import SideRecord
from transformer_jax.storage.workdir import Workdir
from transformer_jax.trackers.kinds import RunName
from transformer_jax.trackers.remote import open_trackers

REMEDY = (
    'lower optim.learning_rate, raise the warmup or set optim.clip, or continue without such steps '
    "with train.on_nonfinite='skip'"
)


@dataclasses.dataclass
class Record:
    """The history of a run that each checkpoint stores with its state, as JSON.

    Attributes:
        best: the best evaluation, {'step', 'metric', 'value'}.
        evaluations_since_best: evaluations after it, for `evaluate.patience`.
        stopped_early: the patience was used up.
        evaluated: the step of the last evaluation.
        failed: how the run diverged, '' if it did not.
        saves: the steps whose checkpoints are kept.
        nll: of the training tokens since the last line of the log, in nats; without smoothing.
        tokens: the weight of these tokens.
    """

    best: dict[str, Any] | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    evaluated: int = 0
    failed: str = ''
    saves: list[int] = dataclasses.field(default_factory=list)
    nll: float = 0.0
    tokens: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> 'Record':
        """Read what `as_json` wrote, of this version or an earlier one."""
        record = cls(**values)
        if record.best:
            record.best = record.best | {'value': decode_non_finite(record.best['value'])}
        return record

    def as_json(self) -> dict[str, Any]:
        """Return the values of the fields by name, which JSON can hold."""
        return encode_non_finite(dataclasses.asdict(self))

    @property
    def live(self) -> bool:
        """Whether the run still trains."""
        return not (self.stopped_early or self.failed)

    @property
    def error(self) -> Diverged | None:
        """The error of a run that diverged."""
        return Diverged(f'{self.failed}; {REMEDY}') if self.failed else None

    def update(self, step: int, metric: str, scores: dict[str, Any]) -> bool:
        """Record an evaluation; return whether it is the best so far."""
        self.evaluated = step
        value = scores[metric]
        sign = -1 if METRICS[metric].lower_is_better else 1
        better = value == value and (self.best is None or sign * value > sign * self.best['value'])
        if better:
            self.best = {'step': step, 'metric': metric, 'value': value}
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def saved(self, step: int, keep: int) -> None:
        """Record a checkpoint; the newest `keep` and the best one stay in `saves`."""
        saves = [*self.saves, step]
        self.saves = [
            each
            for each in saves
            if each in saves[-keep:] or (self.best and each == self.best['step'])
        ]


class TrainingRun:
    """One run: its configuration, its data in the order of its seed, its record, its workdir."""

    metrics: MetricsWriter

    def __init__(
        self, config: ExperimentConfig, data: Data, workdir: Workdir, log: Callable[[str], None]
    ):
        self.config, self.data, self.workdir, self.log = config, data, workdir, log
        self.record = Record()
        self._samples = SideRecord(workdir.samples_path)

    def start(self, resumed: int | None) -> None:
        """Open the metrics of a run that resumes after step `resumed`, or begins (None)."""
        self.metrics = self.workdir.metrics_writer(resumed)

    def open_trackers(self, names: Sequence[str]) -> None:
        """Start trackers that get all numbers from here on, see `trackers.kinds`."""
        identity = self.workdir.identity()
        if names and jax.process_index() == 0 and identity is not None:
            directory = self.workdir.path / 'trackers'
            run = RunName(identity.run_id, self.workdir.path.name, os.fspath(directory))
            self.metrics.add_trackers(open_trackers(names, run, directory), flatten(self.config))

    def due(self, step: int) -> tuple[bool, bool]:
        """Return (whether to evaluate, whether to save) after a step."""

        def due(every: int, every_epochs: int) -> bool:
            epoch = every_epochs * self.data.steps_per_epoch
            return any(period and step % period == 0 for period in (every, epoch))

        evaluate, checkpoint = self.config.evaluate, self.config.checkpoint
        last = step == self.config.train.steps
        return (
            due(evaluate.every, evaluate.every_epochs) or (last and evaluates(self.config)),
            due(checkpoint.every, checkpoint.every_epochs) or last,
        )

    def accept_step(self, step: int, values: dict[str, Any]) -> bool:
        """Take 'finite' out of a step's metrics; return whether the run still trains.

        A run whose update was not finite has failed, or logs the skipped step, as
        `train.on_nonfinite` says.
        """
        if values.pop('finite'):
            self.record.nll += values['nll'] * values['tokens']
            self.record.tokens += values['tokens']
            return True
        message = (
            f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]}: the update '
            'was not finite and was not applied'
        )
        self.log(message)
        if self.config.train.on_nonfinite == 'stop':
            self.record.failed = message
        else:
            self.metrics.write(step, 'skipped', values)
        return self.record.live

    def log_step(self, step: int, values: dict[str, Any]) -> None:
        """Log a training step, with `mean_nll`: of all steps since the last one that was logged."""
        record = self.record
        mean = record.nll / record.tokens if record.tokens else math.nan
        record.nll = record.tokens = 0.0
        self.metrics.write(step, 'train', values | {'mean_nll': mean})

    def write_samples(self, step: int, found: Evaluation) -> None:
        """Write the translations of an evaluation during training, where there are any."""
        path = self.workdir.samples_path / f'validation-{step}.txt'
        self._samples.attempt(lambda: found.write_samples(path))

    def draw_curves(self) -> None:
        """Draw the learning curves of what was logged."""
        metrics, curves = self.workdir.metrics_path, self.workdir.curves_path
        # Without a file of metrics, the first update was not finite.
        if jax.process_index() == 0 and metrics.exists():
            SideRecord(curves).attempt(lambda: draw_learning_curves(metrics, curves))
            self.metrics.log_artifact(curves)

    def take_scores(self, step: int, scores: dict[str, Any], seconds: float) -> bool:
        """Record and log scores of the validation split; return whether they are the best."""
        settings = self.config.evaluate
        best = self.record.update(step, settings.best_metric, scores)
        self.record.stopped_early = bool(settings.patience) and (
            self.record.evaluations_since_best >= settings.patience
        )
        numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
        shown = ', '.join(
            f'{kind.label} {kind.format.format(scores[name])}'
            for name, kind in METRICS.items()
            if kind.logged and name in scores
        )
        metric = settings.best_metric
        # Shown first: what was computed is not lost where it cannot be written.
        self.log(f'step {step}: validation {shown}{f" (best {metric})" if best else ""}')
        self.metrics.write(step, 'validation', numbers | {'seconds': seconds})
        if self.record.stopped_early:
            self.log(f'stopping early: {settings.patience} evaluations without a better {metric}')
        return best

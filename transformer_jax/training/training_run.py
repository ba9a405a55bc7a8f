"""One run as the training loop sees it: what it remembers, when it is due, what it writes. A group
has several.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from transformer_jax.data import Data
from transformer_jax.errors import Diverged
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.metrics_writer import MetricsWriter
from transformer_jax.storage.workdir import Workdir

REMEDY = (
    'lower optim.learning_rate, raise the warmup or set optim.clip, or go on without such steps with '
    "train.on_nonfinite='skip'"
)


@dataclasses.dataclass
class Record:
    """What a run remembers beside its state."""

    best: dict[str, Any] | None = None  # the best evaluation
    evaluations_since_best: int = 0
    stopped_early: bool = False
    evaluated: int = 0  # the step of the last evaluation
    failed: str = ''  # how it diverged
    saves: list[int] = dataclasses.field(
        default_factory=list
    )  # the checkpoints that are to be kept of it

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return not (self.stopped_early or self.failed)

    @property
    def error(self) -> Diverged | None:
        """That of a run that failed."""
        return Diverged(f'{self.failed}; {REMEDY}') if self.failed else None

    def update(self, step: int, metric: str, scores: dict[str, Any]) -> bool:
        """Takes in an evaluation; returns whether it is the best so far."""
        self.evaluated = step
        value = scores[metric]
        sign = -1 if METRICS[metric].lower_is_better else 1
        better = value == value and (self.best is None or sign * value > sign * self.best['value'])
        if better:
            self.best = {'step': step, 'metric': metric, 'value': value}
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        return better

    def saved(self, step: int, keep: int) -> None:
        """Takes in a checkpoint; the newest `keep` and the best one stay."""
        saves = [*self.saves, step]
        self.saves = [
            each
            for each in saves
            if each in saves[-keep:] or (self.best and each == self.best['step'])
        ]


class TrainingRun:
    """One run: its configuration, its order of the data, its record, and its workdir."""

    metrics: MetricsWriter

    def __init__(
        self, config: ExperimentConfig, data: Data, workdir: Workdir, log: Callable[[str], None]
    ):
        self.config, self.data, self.workdir, self.log = config, data, workdir, log
        self.record = Record()

    def start(self, resumed: int | None) -> None:
        """Opens the metrics of a run that goes on after step `resumed`, or begins (None)."""
        self.metrics = self.workdir.metrics_writer(resumed)

    def due(self, step: int) -> tuple[bool, bool]:
        """(whether to evaluate, whether to save) after a step."""

        def due(every: int, every_epochs: int) -> bool:
            epoch = every_epochs * self.data.steps_per_epoch
            return any(period and step % period == 0 for period in (every, epoch))

        evaluate, checkpoint, last = (
            self.config.evaluate,
            self.config.checkpoint,
            step == self.config.train.steps,
        )
        evaluates = bool(evaluate.every or evaluate.every_epochs)
        return (
            due(evaluate.every, evaluate.every_epochs) or (evaluates and last),
            due(checkpoint.every, checkpoint.every_epochs) or last,
        )

    def accept_step(self, step: int, values: dict[str, Any]) -> bool:
        """Takes 'finite' out of a step's metrics; returns whether the run goes on from there, else
        it has failed.
        """
        if values.pop('finite'):
            return True
        message = (
            f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]}: the update was not '
            'finite and was not applied'
        )
        self.log(message)
        if self.config.train.on_nonfinite == 'stop':
            self.record.failed = message
        else:
            self.metrics.write(step, 'skipped', values)
        return self.record.live

    def take_scores(self, step: int, scores: dict[str, Any], seconds: float) -> bool:
        """Records and writes an evaluation on the validation split; returns whether it is the best
        so far.
        """
        settings = self.config.evaluate
        best = self.record.update(step, settings.best_metric, scores)
        self.record.stopped_early = bool(settings.patience) and (
            self.record.evaluations_since_best >= settings.patience
        )
        numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
        self.metrics.write(step, 'validation', numbers | {'seconds': seconds})
        shown = ', '.join(
            f'{kind.label} {kind.format.format(scores[name])}'
            for name, kind in METRICS.items()
            if kind.logged and name in scores
        )
        self.log(
            f'step {step}: validation {shown}{" (best " + settings.best_metric + ")" if best else ""}'
        )
        if self.record.stopped_early:
            self.log(
                f'stopping early: {settings.patience} evaluations without a better {settings.best_metric}'
            )
        return best

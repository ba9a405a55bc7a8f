"""One run in the training loop: its record, when it is due to evaluate or save, its logs."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from transformer_jax.data import Data
from transformer_jax.display.learning_curves import draw_learning_curves
from transformer_jax.errors import Diverged
from transformer_jax.evaluation.evaluator import Evaluation
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.schema import EvaluateConfig, ExperimentConfig, evaluates, flatten
from transformer_jax.storage.json_text import decode_non_finite, encode_non_finite
from transformer_jax.storage.metrics_writer import MetricsWriter, read_metrics
from transformer_jax.storage.side_records import SideRecord
from transformer_jax.storage.workdir import Workdir
from transformer_jax.trackers.kinds import RunName
from transformer_jax.trackers.remote import open_trackers

REMEDY = (
    'lower optim.learning_rate, raise the warmup or set optim.clip, or continue without such steps '
    "with train.on_nonfinite='skip'"
)


# The values of a record that an evaluation changes.
OF_EVALUATION = ('best', 'evaluations_since_best', 'stopped_early', 'evaluated')
# A value that `Record.longer` has where the last event of a split was off its schedule.
OFF_SCHEDULE = {'nll': 'train', 'evaluated': 'validation'}


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
        longer: what a longer run had in place of some of these values, at the last step: an
            evaluation or a line of the log there may be off its schedule.
    """

    best: dict[str, Any] | None = None
    evaluations_since_best: int = 0
    stopped_early: bool = False
    evaluated: int = 0
    failed: str = ''
    saves: list[int] = dataclasses.field(default_factory=list)
    nll: float = 0.0
    tokens: float = 0.0
    longer: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> 'Record':
        """Read what `as_json` wrote, of this version or an earlier one."""
        return cls(**_decode(values | {'longer': _decode(values.get('longer', {}))}))

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

    def update(self, step: int, settings: EvaluateConfig, scores: Mapping[str, Any]) -> bool:
        """Record an evaluation; return whether it is the best so far."""
        metric = settings.best_metric
        self.evaluated = step
        value = scores[metric]
        sign = -1 if METRICS[metric].lower_is_better else 1
        better = value == value and (self.best is None or sign * value > sign * self.best['value'])
        if better:
            self.best = {'step': step, 'metric': metric, 'value': value}
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        self.stopped_early = 0 < settings.patience <= self.evaluations_since_best
        return better

    def take_late_scores(self, step: int, settings: EvaluateConfig, workdir: Workdir) -> bool:
        """Record the evaluation of a step that was made after its checkpoint, where there is one.

        A signal had come before its end, and the next start made it; metrics.jsonl alone has it.
        """
        if step == self.evaluated:
            return False
        late = [
            event
            for event in read_metrics(workdir.metrics_path)
            if (event['step'], event['split']) == (step, 'validation')
            and settings.best_metric in event
        ]
        if late:
            self.update(step, settings, late[-1])
        return bool(late)

    def lengthen(self) -> list[str]:
        """Forget what a longer run has not; return the splits whose last events are forgotten."""
        forgotten = [split for key, split in OFF_SCHEDULE.items() if key in self.longer]
        for name, value in self.longer.items():
            setattr(self, name, value)
        self.longer = {}
        return forgotten

    def saved(self, step: int, keep: int) -> None:
        """Record a checkpoint; the newest `keep` and the best one stay in `saves`."""
        saves = [*self.saves, step]
        spared = [best['step'] for best in (self.best, self.longer.get('best')) if best]
        self.saves = [each for each in saves if each in saves[-keep:] or each in spared]


def _decode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the value of `best` back into a number, where it was not finite."""
    best = values.get('best')
    return (
        {**values, 'best': {**best, 'value': decode_non_finite(best['value'])}}
        if best
        else {**values}
    )


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
        grows = resumed is not None and resumed < self.config.train.steps
        forgotten = self.record.lengthen() if grows else []
        self.metrics = self.workdir.metrics_writer(resumed, forgotten)

    def open_trackers(self, names: Sequence[str]) -> None:
        """Start trackers that get all numbers from here on, see `trackers.kinds`."""
        identity = self.workdir.identity()
        if names and jax.process_index() == 0 and identity is not None:
            directory = self.workdir.path / 'trackers'
            run = RunName(identity.run_id, self.workdir.path.name, os.fspath(directory))
            self.metrics.add_trackers(open_trackers(names, run, directory), flatten(self.config))

    def due(self, step: int) -> tuple[bool, bool]:
        """Return (whether to evaluate, whether to save) after a step."""
        checkpoint = self.config.checkpoint
        last = step == self.config.train.steps
        return (
            self._evaluation_scheduled(step) or (last and evaluates(self.config)),
            self._scheduled(step, checkpoint.every, checkpoint.every_epochs) or last,
        )

    def _evaluation_scheduled(self, step: int) -> bool:
        evaluate = self.config.evaluate
        return self._scheduled(step, evaluate.every, evaluate.every_epochs)

    def _scheduled(self, step: int, every: int, every_epochs: int) -> bool:
        epoch = every_epochs and every_epochs * self.data.steps_per_epoch
        return any(period and step % period == 0 for period in (every, epoch))

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
        if step % self.config.train.log_every:
            record.longer |= {'nll': record.nll, 'tokens': record.tokens}
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
        if not self._evaluation_scheduled(step):
            self.record.longer |= {name: getattr(self.record, name) for name in OF_EVALUATION}
        best = self.record.update(step, settings, scores)
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

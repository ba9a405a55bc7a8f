"""The metrics of an experiment: a number, with the split, checkpoint and length it is taken at."""

import dataclasses
import re
from collections.abc import Sequence

from transformer_jax.ablation.field_types import check_fields
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.metrics import METRICS


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number by which variants are scored.

    Attributes:
        name: a row of METRICS: a key of what `evaluate` reports; a probe, such as 'sink', whose
            value is the mean over all heads of the model that have one; 'gradient_norm', the L2
            norm of the gradient of the mean loss; or a measured time of one run: 'step_seconds', of
            a training step, or 'decode_seconds', of a token in greedy decoding up to the longest
            row. Probes and the gradient are taken on a few batches.
        split: validation or test.
        checkpoint: as `evaluate --checkpoint`: best, last or avg:N; '': the best one, or the last
            where no evaluation chose a best one.
        length: 0, or measured as by `evaluate --lengths`, on the lengths of all metrics of this
            experiment with the same split and checkpoint: an example counts for the smallest
            length that it fits into. The BLEU of a length is that of its sentences alone.
        part: of gradient_norm: only of the parameters with this text in their name, as
            'decoder_5/ffn'; '': of all.
    """

    name: str
    split: str = 'test'
    checkpoint: str = ''
    length: int = 0
    part: str = ''

    def __post_init__(self):
        check_fields(self)
        if self.split not in ('validation', 'test'):
            raise ConfigError(f'split={self.split!r} of {self.name}, it takes validation, test')
        if not re.fullmatch('|best|last|avg:[1-9][0-9]*', self.checkpoint):
            raise ConfigError(
                f'checkpoint={self.checkpoint!r} of {self.name}, it takes best, last, avg:N'
            )
        if self.length < 0 or self.length == 1:
            raise ConfigError(f'length={self.length} of {self.name} must be 2 or more')
        if self.length and self.probed:
            raise ConfigError(
                f'length={self.length} of {self.name}: it is measured on rows of all lengths'
            )
        if self.part and not self.has_parts:
            raise ConfigError(f'part={self.part!r} of {self.name}: only gradient_norm has parts')

    def __str__(self) -> str:
        """The name in tables and results: 'test accuracy at 40', 'step_seconds'."""
        if self.timed:
            return self.name
        at_length = f' at {self.length}' if self.length else ''
        of_part = f' of {self.part}' if self.part else ''
        return f'{self.split} {self.name}{at_length}{of_part}'

    @property
    def timed(self) -> bool:
        """True if it is measured by a clock, not by an evaluation."""
        return self.name in METRICS and METRICS[self.name].timed

    @property
    def probed(self) -> bool:
        """True if it is measured on a few batches: a probe of attention, or the gradient."""
        return self.name in METRICS and METRICS[self.name].probed

    @property
    def decodes(self) -> bool:
        """True if what is timed is decoding, not training steps."""
        return self.name in METRICS and METRICS[self.name].decodes

    @property
    def has_parts(self) -> bool:
        """True if `part` may choose some parameters."""
        return self.name in METRICS and METRICS[self.name].has_parts

    @property
    def translated(self) -> bool:
        """True if it is made of the translations of a whole split, of all lengths or of one."""
        return self.name in METRICS and METRICS[self.name].from_hypotheses

    @property
    def lower_is_better(self) -> bool:
        """True where a lower value is better."""
        return METRICS[self.name].lower_is_better


def evaluations(metrics: Sequence[Metric]) -> dict[str, list[Metric]]:
    """Group metrics by the evaluation that measures them: {'test best': [metrics]}."""
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        if not metric.timed:
            groups.setdefault(f'{metric.split} {metric.checkpoint}'.strip(), []).append(metric)
    return groups


def lengths_of(metrics: Sequence[Metric]) -> list[int]:
    """Return the lengths at which some metrics of one evaluation are measured, ascending."""
    return sorted({metric.length for metric in metrics if metric.length})

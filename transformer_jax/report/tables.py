"""What a report holds: for each metric a table with a row for each variant."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation import statistics
from transformer_jax.ablation.bootstrap import Resampled
from transformer_jax.ablation.looks import remark
from transformer_jax.ablation.many_to_one import LEVEL
from transformer_jax.ablation.rank_agreement import RankAgreement
from transformer_jax.ablation.seed_values import SeedValues
from transformer_jax.ablation.statistics import Comparison, Summary
from transformer_jax.report.claims import ClaimResult
from transformer_jax.report.traces import Curve, Heads

Result = Mapping[str, Any]  # a run's result.json


class Verdict(enum.StrEnum):
    """What a row says of its variant; the values are also classes in page.css."""

    BETTER = 'better'
    WORSE = 'worse'
    OPEN = 'open'  # not distinguishable from the reference
    UNTESTED = 'untested'
    MISSING = 'missing'  # no sound run
    REFERENCE = 'reference'
    SAME = 'same'  # has the config, and so the runs, of the reference


OF_COMPARISON = {
    statistics.BETTER: Verdict.BETTER,
    statistics.WORSE: Verdict.WORSE,
    statistics.NOT_DISTINGUISHABLE: Verdict.OPEN,
    statistics.NOT_TESTED: Verdict.UNTESTED,
}


class Side(enum.StrEnum):
    """How our difference from the reference compares with the paper's."""

    AGREES = 'agrees'  # our test finds a difference, with the paper's sign
    CONTRADICTS = 'contradicts'  # our test finds a difference, with the other sign
    SAME_SIGN = 'same sign'  # our test finds no difference
    OTHER_SIGN = 'other sign'


class Cost(NamedTuple):
    """What a variant takes; None where nothing was measured.

    Attributes:
        params: all parameters.
        non_embedding_params: those outside embeddings.
        flops: of the forward pass, per target token.
        step_seconds: of a training step, the median over runs.
        step_spread: how far apart the quartiles of single steps are, as a share of their median,
            in the run where they are farthest; results of earlier versions have none.
        memory_bytes: of the compiled training step, the largest of any run.
        wall_seconds: of a run, the mean over runs.
        mfu: model FLOPs over the peak of the devices, the median over runs; results of earlier
            versions have neither this nor the next three.
        goodput: the share of a run's time that was spent on steps that count, the mean over runs.
        state_bytes: what decoding keeps of one sequence; None where the model does not decode.
        state_length: tokens of that sequence.
        matched: what was solved for, {'model.d_ff': 240}, and the 'residual'.
    """

    params: int | None = None
    non_embedding_params: int | None = None
    flops: float | None = None
    step_seconds: float | None = None
    step_spread: float | None = None
    memory_bytes: float | None = None
    wall_seconds: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    state_bytes: float | None = None
    state_length: float | None = None
    matched: Mapping[str, Any] = {}


class Difference(NamedTuple):
    """The difference from a reference, with the interval for all comparisons together."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """A row: one variant by one metric.

    Attributes:
        variant: its name.
        reference: the variant that it is compared with.
        values: of the sound runs.
        planned: how many runs there should be.
        cost: what it takes.
        summary: mean and interval of `values`.
        comparison: None for a reference, or a variant that has the reference's runs.
        resampled: the comparison over sentences, where those were kept.
        same_as: the earlier variant with the same config, whose runs these are; '' mostly.
        validation: of a test metric: seed -> the value on the validation split at the checkpoint
            that was scored, where it is known.
    """

    variant: str
    reference: str
    values: SeedValues
    planned: int
    cost: Cost
    summary: Summary
    comparison: Comparison | None = None
    resampled: Resampled | None = None
    same_as: str = ''
    validation: SeedValues = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """What the row says of its variant."""
        if not self.values:
            return Verdict.MISSING
        if self.comparison is None:
            return Verdict.SAME if self.same_as else Verdict.REFERENCE
        return OF_COMPARISON[self.comparison.verdict]

    @property
    def difference(self) -> Difference | None:
        """The difference from the reference; None where there is none."""
        found = self.comparison
        if found is None or found.difference is None or found.low is None or found.high is None:
            return None
        return Difference(found.difference, found.low, found.high)


@dataclasses.dataclass(frozen=True)
class PaperNumbers:
    """A paper's numbers next to ours, by one measure.

    Attributes:
        source: where they are printed.
        measure: the paper's measure.
        values: variant -> number.
        sides: variant -> how our difference from the reference compares with the paper's.
        agreement: of the ranks.
    """

    source: str
    measure: str
    values: Mapping[str, float]
    sides: Mapping[str, Side]
    agreement: RankAgreement

    @property
    def name(self) -> str:
        """'Vaswani et al. (2017), Table 3: BLEU'."""
        return f'{self.source}: {self.measure}'


@dataclasses.dataclass(frozen=True)
class Table:
    """All variants by one metric.

    Attributes:
        label: of the metric, 'test bleu'.
        lower_is_better: whether a lower value is better.
        rows: one for each variant, in the order of the experiment.
        papers: the published numbers of this metric.
        sentences: how many were resampled; 0: none.
        scale: of SCALES, on which runs are compared.
        level: the chance of any false verdict, see `looks`.
    """

    label: str
    lower_is_better: bool
    rows: tuple[VariantResult, ...]
    papers: tuple[PaperNumbers, ...]
    sentences: int = 0
    scale: str = 'plain'
    level: float = LEVEL

    @property
    def confidence(self) -> str:
        """How often all intervals of differences hold the truth together: '95%'."""
        return f'{100 * (1 - self.level):.4g}%'

    @property
    def references(self) -> list[str]:
        """The variants that others are compared with: one, or a line along an axis."""
        return list(dict.fromkeys(row.reference for row in self.rows))

    @property
    def reference(self) -> str:
        """The name of the reference; where there are several, words that say which one it is."""
        if len(self.references) == 1:
            return self.references[0]
        return 'the reference at the same point of the axis'

    @property
    def compared(self) -> list[VariantResult]:
        """The rows that have a difference from their reference."""
        return [row for row, _ in self.differences]

    @property
    def differences(self) -> list[tuple[VariantResult, Difference]]:
        """The rows that have a difference from their reference, each with it."""
        return [(row, row.difference) for row in self.rows if row.difference is not None]

    def row(self, variant: str) -> VariantResult:
        """Return the row of a variant."""
        return next(row for row in self.rows if row.variant == variant)


class MissingRuns(NamedTuple):
    """Runs that are missing for the same reason; `variants` share a folder."""

    variants: list[str]
    seeds: list[int]
    why: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is written.

    Attributes:
        experiment: the content of experiment.json.
        runs: the results of the sound runs.
        tables: one for each metric.
        missing: runs without a sound result.
        curves: 'validation loss' -> variant -> curve.
        heads: variant -> what was measured of every attention head.
        claims: how each claim ended.
        compute: what all runs have cost, see `compute_spent`; None where that is not recorded.
    """

    experiment: Mapping[str, Any]
    runs: Sequence[Result]
    tables: tuple[Table, ...]
    missing: tuple[MissingRuns, ...]
    curves: Mapping[str, Mapping[str, Curve]]
    heads: Mapping[str, Heads]
    claims: tuple[ClaimResult, ...] = ()
    compute: Mapping[str, Any] | None = None

    @property
    def looks(self) -> str:
        """What there is to say of how often verdicts were taken."""
        return remark(self.experiment)

"""Claims: what an experiment says of its variants, fixed before the runs, and how they end."""

import dataclasses
import enum
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax import spec
from transformer_jax.ablation.field_types import check_fields
from transformer_jax.ablation.statistics import BETTER, DIFFERENT, WORSE, Comparison
from transformer_jax.errors import ConfigError

EQUAL = 'equal'
DIRECTIONS = (BETTER, WORSE, EQUAL)


class Outcome(enum.StrEnum):
    """How a claim ends; the values are also classes in page.css."""

    SUPPORTED = 'supported'
    CONTRADICTED = 'contradicted'
    EQUIVALENT = 'equivalent within the margin'
    UNDECIDED = 'undecided'


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about variants and one metric that the runs may support or contradict.

    Attributes:
        text: the claim in words.
        metric: str() of a Metric of the experiment: 'validation loss'.
        variant: a variant, or several: the claim must hold for each. A line of the axis stands for
            its variants at all points.
        against: what it is compared with: a variant, or a line of the axis, at the same point; '':
            the reference of each.
        direction: 'better', 'worse' or 'equal'. Equal means within the margin.
        margin: the smallest difference that matters, in units of the metric; 'equal' needs one.
        over: '', or a quantity of DERIVED that is computed from the points of a line of the axis,
            seed by seed; `variant` and `against` are lines then.
        source: who claims it, and where: 'Press et al. 2022, Figure 1'. For readers, as `doubt`:
            both may be changed after the runs.
        doubt: what would change our mind about the verdict, in a sentence.
    """

    text: str
    metric: str
    variant: str | tuple[str, ...]
    against: str = ''
    direction: str = BETTER
    margin: float | None = None
    over: str = ''
    source: str = ''
    doubt: str = ''

    def __post_init__(self):
        check_fields(self)
        if not self.text.strip() or not self.variants:
            raise ConfigError(f'claim {self.text!r} needs a text and a variant')
        if self.direction not in DIRECTIONS:
            raise ConfigError(self._said(f'direction={self.direction!r}', DIRECTIONS))
        if self.margin is not None and self.margin <= 0:
            raise ConfigError(f'claim {self.text!r}: margin={self.margin:g} must be positive')
        if self.direction == EQUAL and self.margin is None:
            raise ConfigError(f"claim {self.text!r}: direction='equal' needs a margin")
        if self.over and self.over not in DERIVED:
            raise ConfigError(self._said(f'over={self.over!r}', DERIVED))

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants, or lines, that it is about."""
        return (self.variant,) if isinstance(self.variant, str) else tuple(self.variant)

    @property
    def label(self) -> str:
        """What is compared: 'validation loss', 'slope of validation loss'."""
        return f'{self.over} of {self.metric}' if self.over else self.metric

    def check_names(
        self, variants: Collection[str], lines: Collection[str], metrics: Collection[str]
    ) -> None:
        """Raise ConfigError for a name that is none of an experiment's."""
        if self.metric not in metrics:
            raise ConfigError(self._said(f'metric={self.metric!r} is none', metrics))
        known = [*lines] if self.over else [*dict.fromkeys((*variants, *lines))]
        for name in (*self.variants, *filter(None, [self.against])):
            if name not in known:
                kind = 'line of the axis' if self.over else 'variant'
                raise ConfigError(
                    f'claim {self.text!r}: {name!r} is no {kind}; {spec.nearest(name, known)}'
                )
        if self.over and not self.against:
            raise ConfigError(f'claim {self.text!r}: over={self.over!r} needs against=, a line')

    def pairs(self, experiment: Mapping[str, Any]) -> list[tuple[str, str]]:
        """List what is compared with what: (variant, against), or lines where `over` is given.

        Args:
            experiment: the content of experiment.json, or its `variants`, `reference` and `axis`.
        """
        if self.over:
            return [(name, self.against) for name in self.variants]
        names, reference = experiment['variants'], experiment['reference']
        points = (experiment['axis'] or {'points': {}})['points']
        at = {(line, x): name for name, (line, x) in points.items()}
        found = []
        for wanted in self.variants:
            members = [name for name, (line, _) in points.items() if line == wanted]
            for name in [wanted] if wanted in names else members:
                home = self.against
                if not home:
                    home = reference if isinstance(reference, str) else reference[name]
                elif home not in names:
                    home = at.get((home, points[name][1]), '') if name in points else ''
                if home and home != name:
                    found.append((name, home))
        return found

    def _said(self, fault: str, choices: Collection[str]) -> str:
        return f'claim {self.text!r}: {fault}, it takes {", ".join(choices)}'


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """The least-squares slope; per doubling of x where all are positive."""
    return float(np.polyfit(np.log2(x) if (x > 0).all() else x, y, 1)[0])


# What is computed from the points of a line: x, and one run's values there -> a number.
DERIVED: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    'slope': _slope,
    'range': lambda x, y: float(y.max() - y.min()),
    'mean': lambda x, y: float(y.mean()),
    'excess': lambda x, y: float(y.mean() - y.min()),
}


def derive(
    over: str, axis: Mapping[str, Any], values: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    """Compute a quantity of DERIVED: line -> seed -> number, for seeds that all its points have.

    Args:
        over: the name of the quantity.
        axis: of the experiment, as in experiment.json.
        values: variant -> seed -> value.
    """
    lines: dict[str, list[tuple[float, str]]] = {}
    for name, (line, x) in axis['points'].items():
        lines.setdefault(line, []).append((x, name))
    found = {}
    for line, points in lines.items():
        x = np.array([place for place, _ in sorted(points)])
        runs = [values.get(name, {}) for _, name in sorted(points)]
        seeds = sorted(set.intersection(*map(set, runs)))
        numbers = {seed: np.array([run[seed] for run in runs]) for seed in seeds}
        found[line] = {seed: DERIVED[over](x, y) for seed, y in numbers.items()}
    return found


def judge(claim: Claim, comparisons: Sequence[Comparison]) -> tuple[Outcome, int | None]:
    """Say how a claim ends, by the simultaneous intervals of its comparisons.

    Returns:
        the outcome, and where it is undecided how many seeds would decide it: None if 100 are too
        few, or the comparisons could not be tested.
    """
    outcomes = [_judge_one(claim, found) for found in comparisons] or [Outcome.UNDECIDED]
    # The worst of them: each must hold.
    order = (Outcome.CONTRADICTED, Outcome.UNDECIDED, Outcome.EQUIVALENT, Outcome.SUPPORTED)
    outcome = next(each for each in order if each in outcomes)
    if outcome != Outcome.UNDECIDED:
        return outcome, None
    open_ones = zip(comparisons, outcomes, strict=False)
    needed = [
        found.seeds_for_equality if claim.direction == EQUAL else found.seeds_needed
        for found, each in open_ones
        if each == Outcome.UNDECIDED
    ]
    known = [seeds for seeds in needed if seeds is not None]
    return outcome, max(known) if known and len(known) == len(needed) else None


def _judge_one(claim: Claim, found: Comparison) -> Outcome:
    if found.low is None or found.high is None:
        return Outcome.UNDECIDED
    margin = claim.margin or 0.0
    inside = -margin < found.low and found.high < margin
    if claim.direction == EQUAL:
        outside = found.low > margin or found.high < -margin
        if inside:
            return Outcome.SUPPORTED
        return Outcome.CONTRADICTED if outside else Outcome.UNDECIDED
    if inside:
        return Outcome.EQUIVALENT
    if found.verdict not in DIFFERENT:
        return Outcome.UNDECIDED
    return Outcome.SUPPORTED if found.verdict == claim.direction else Outcome.CONTRADICTED


def record_claims(
    claims: Sequence[Claim], earlier: Sequence[Mapping[str, Any]], now: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the claims as experiment.json keeps them, those that were withdrawn at the end.

    Args:
        claims: of the experiment.
        earlier: what experiment.json had; a claim that has not changed keeps what was recorded.
        now: recorded of new ones: commit, date, seeds, and the runs that had results by then.
    """
    recorded = []
    for claim in claims:
        fields = dataclasses.asdict(claim) | {'variant': list(claim.variants)}
        before = [old for old in earlier if all(old[key] == fields[key] for key in _TESTED)]
        stated = before[0]['stated'] if before else dict(now)
        recorded.append(fields | {'stated': stated, 'withdrawn': False})
    kept = [[entry[key] for key in _TESTED] for entry in recorded]
    gone = [old for old in earlier if [old[key] for key in _TESTED] not in kept]
    return [*recorded, *({**old, 'withdrawn': True} for old in gone)]


def read_claim(entry: Mapping[str, Any]) -> Claim:
    """Make a claim of what `record_claims` wrote."""
    fields: dict[str, Any] = {key: entry[key] for key in _TESTED}
    told = {key: entry.get(key, '') for key in _TOLD}
    return Claim(**{**fields, **told, 'variant': tuple(entry['variant'])})


def today() -> str:
    """Return the date as it is recorded."""
    return time.strftime('%Y-%m-%d')


_TOLD = ('source', 'doubt')  # Results of earlier versions have none.
_TESTED = tuple(field.name for field in dataclasses.fields(Claim) if field.name not in _TOLD)

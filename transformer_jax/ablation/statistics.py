"""Signal from noise over seeds: intervals, tests, verdicts and power.

Pure functions of numbers. The family is one metric of one table: all variants against their
references, 5% for all of them together by Holm (1979). Tables in which all variants are equal
(normal, alike in spread) were simulated, 40,000 for each of 2 to 17 variants, 3 to 10 seeds, and
correlations of 0 to 0.9 between runs of a seed: the share with any false verdict was 0.035 to 0.059
(2 variants, 3 seeds that correlate: from 0.030). Two choices keep it there:

- Welch's test takes its degrees of freedom from Welch (1947), as Stata's `ttest, welch` does.
  Satterthwaite's (1946), which SciPy and R take, are too few where spreads are alike: with 3 to 5
  seeds and 5 or more variants the share is 0.018 to 0.036. Two seeds are too few for either; their
  degrees of freedom are kept at 2 or less, and the share is about 0.03, far less where
  seeds correlate.
- One decision for the whole table between Welch's test and the test paired by seed, from all
  variants' correlation at once (`seeds_correlate`). Were each variant to take the smaller p of
  both, the share would be 0.06 to 0.09.

Where spreads differ by a factor of 5 and the reference's is the small one, the share reaches 0.10
with 5 seeds and 0.17 with 3 (9 variants: 0.08 and 0.14; Satterthwaite's: 0.07 and 0.08): no test
knows a spread from 3 runs. Where the reference's is the large one, the share falls to 0.01: all
comparisons then hang on one mean.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

LEVEL = 0.05  # family-wise
POWER = 0.8  # at which a difference counts as one that the seeds could have detected
# The level at which runs of a seed are said to correlate. With 2 variants, 0.01 would miss so often
# that the share of false verdicts falls to 0.02, and 0.05 would let chance pick the test so often
# that it rises to 0.065.
SHOWN = 0.03
ROUNDING = 1e-12  # a spread below this share of the numbers is their rounding
Runs = Mapping[int, float]  # seed -> value
Reference = str | Mapping[str, str]  # the variant that all are compared with; or variant -> its own


@dataclasses.dataclass(frozen=True)
class Summary:
    """One variant over its seeds. Without an interval, `sd`, `low` and `high` are None and `reason`
    says why.
    """

    seeds: int
    mean: float  # NaN without seeds
    sd: float | None  # ddof=1
    low: float | None  # of the 95% interval of the mean, by Student's t
    high: float | None
    reason: str = ''


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One variant minus its reference. Where it cannot be tested, the numbers are None and `reason`
    says why.
    """

    verdict: str  # better, worse, not distinguishable (by `adjusted`), not tested
    difference: float | None = None  # of the means; paired: over the seeds that both have
    low: float | None = None  # of the 95% interval of this difference alone
    high: float | None = None
    test: str = ''  # welch, paired; permutation: no run differs from the others of its variant
    p: float | None = None
    adjusted: float | None = None  # p after Holm over all comparisons of the metric
    detectable: float | None = None  # the smallest difference found in 80% of tables, see `power`
    reason: str = ''


def summarize(values: Runs) -> Summary:
    """Mean, standard deviation and 95% interval of one variant's runs.

    Raises:
        ValueError: a value is not finite.
    """
    refuse_nonfinite({'this variant': values})
    x = np.array([*values.values()], float)
    if len(x) < 2:
        return Summary(
            len(x),
            float(x.mean()) if len(x) else math.nan,
            None,
            None,
            None,
            f'no interval from {_count(len(x), "seed")}, it needs two',
        )
    mean, sd = float(x.mean()), _sd(x, x)
    half = special.stdtrit(len(x) - 1, 0.975) * sd / math.sqrt(len(x))
    return Summary(len(x), mean, sd, mean - half, mean + half)


def compare(
    values: Mapping[str, Runs], reference: Reference, lower_is_better: bool
) -> dict[str, Comparison]:
    """Every variant but a reference against its own, in the order of `values`.

    Args:
        values: variant -> seed -> value. Seeds may be missing; a variant with fewer than two is
            not tested.
        reference: a variant, or that of each.
        lower_is_better: less is better.

    Raises:
        ValueError: a value is not finite, or a reference is no variant.
    """
    refuse_nonfinite(values)
    references = references_of(values, reference)
    paired = seeds_correlate(values, reference)
    tests = {
        name: _test(values[name], values[home], paired)
        for name, home in references.items()
        if name != home and min(len(values[name]), len(values[home])) >= 2
    }
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    comparisons = {}
    for name, home in references.items():
        if name in tests:
            comparisons[name] = _judge(tests[name], adjusted[name], len(tests), lower_is_better)
        elif name != home:
            seeds = (
                _count(len(values[name]), 'seed')
                if len(values[name]) < 2
                else f'{_count(len(values[home]), "seed")} of {home}'
            )
            comparisons[name] = Comparison(
                'not tested', reason=f'not tested with {seeds}, a test needs two'
            )
    return comparisons


def seeds_correlate(values: Mapping[str, Runs], reference: Reference) -> bool:
    """Whether runs of one seed vary together, over all variants that have the seeds that the
    references share.

    Every variant's runs, less their mean, are scaled to length 1; the vectors are added. Runs that
    vary together give a long sum. For independent normal runs of any means and spreads the vectors
    point anywhere, and the sum is a random flight, whose law depends on the numbers of variants and
    seeds alone: the test is exact, and one-sided, since a negative correlation has no cause here.
    For two variants it is the test of Pearson's r.
    """
    homes = {*references_of(values, reference).values()}
    seeds = sorted(set.intersection(*(set(values[home]) for home in homes)))
    rows = [
        np.array([runs[seed] for seed in seeds])
        for runs in values.values()
        if set(seeds) <= set(runs)
    ]
    rows = [row - row.mean() for row in rows if len(seeds) >= 2 and _sd(row, row)]
    if len(rows) < 2:
        return False
    flight = sum(row / np.linalg.norm(row) for row in rows)
    return bool(flight @ flight > _longest_flight(len(rows), len(seeds)) * (1 + 1e-9))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values: those up to α are rejected with at most α for any false rejection
    (Holm 1979).
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted.tolist()


def power(difference: float, seeds: int, variants: int) -> float:
    """The chance that a table finds one variant different from the reference.

    It is that of Holm's first and strictest step, 5% / (variants - 1), by Welch's test: all other
    variants are taken to equal the reference, spreads to be alike, and seeds not to correlate.
    Where others differ too, or seeds correlate strongly, the chance is larger.

    Args:
        difference: in standard deviations of one run.
        seeds: of each variant, two or more.
        variants: of the table, the reference among them.
    """
    if min(seeds, variants) < 2:
        raise ValueError(f'{seeds} seeds of {variants} variants: a test needs two of each')
    return _power(abs(difference), seeds, seeds, variants - 1)


class _Test(NamedTuple):
    kind: str
    difference: float
    p: float
    half: float  # of the 95% interval
    spread: float  # welch: of one run, paired: of one difference
    counts: tuple[int, ...]


def _test(ours: Runs, theirs: Runs, paired: bool) -> _Test:
    """By Welch's test, or paired over common seeds where these are two at least and
    differences vary.
    """
    x, y = np.array([*ours.values()], float), np.array([*theirs.values()], float)
    gaps = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    both = np.concatenate([x, y])
    if paired and len(gaps) >= 2 and (spread := _sd(gaps, both)):
        error, dof = spread / math.sqrt(len(gaps)), len(gaps) - 1
        return _student('paired', float(gaps.mean()), error, dof, spread, (len(gaps),))
    counts, difference = (len(x), len(y)), float(x.mean() - y.mean())
    a, b = _sd(x, both) ** 2 / len(x), _sd(y, both) ** 2 / len(y)
    if not a + b:
        # Nothing varies, so there is no t. The labels of the runs alone can be permuted: honest
        # with few seeds.
        equal = abs(difference) <= ROUNDING * abs(both).max()
        return _Test(
            'permutation',
            difference,
            1.0 if equal else 2 / math.comb(sum(counts), len(x)),
            0.0,
            0.0,
            counts,
        )
    spread = math.sqrt((a * len(x) + b * len(y)) / 2)
    return _student(
        'welch', difference, math.sqrt(a + b), float(_freedom(a, b, *counts)), spread, counts
    )


def _student(
    kind: str, difference: float, error: float, dof: float, spread: float, counts: tuple[int, ...]
) -> _Test:
    p = 2 * special.stdtr(dof, -abs(difference) / error)
    return _Test(
        kind, difference, float(p), float(special.stdtrit(dof, 0.975) * error), spread, counts
    )


def _judge(test: _Test, adjusted: float, comparisons: int, lower_is_better: bool) -> Comparison:
    verdict = (
        'not distinguishable'
        if adjusted > LEVEL
        else 'better'
        if (test.difference > 0) != lower_is_better
        else 'worse'
    )
    detectable, reason = None, 'no spread over seeds, hence no interval of t'
    if test.kind != 'permutation':
        detectable, reason = test.spread * _detectable(test.counts, comparisons), ''
    return Comparison(
        verdict,
        test.difference,
        test.difference - test.half,
        test.difference + test.half,
        test.kind,
        test.p,
        adjusted,
        detectable,
        reason,
    )


def _freedom(a, b, first: int, second: int):
    """Welch's (1947) degrees of freedom of √(a + b), the squared errors of means of so
    many runs.
    """
    dof = (a + b) ** 2 / (a**2 / (first + 1) + b**2 / (second + 1)) - 2
    return np.minimum(dof, first + second - 2) if min(first, second) < 3 else dof


@functools.cache
def _thresholds(first: int, second: int, level: float) -> np.ndarray:
    """How far apart means must be for Welch's test at `level`, for 64 × 64 equally likely pairs of
    sample variances.
    """
    quantiles = (np.arange(64) + 0.5) / 64
    a = (special.chdtri(first - 1, quantiles) / (first - 1) / first)[:, None]
    b = (special.chdtri(second - 1, quantiles) / (second - 1) / second)[None]
    return special.stdtrit(_freedom(a, b, first, second), 1 - level / 2) * np.sqrt(a + b)


def _power(difference: float, first: int, second: int, comparisons: int) -> float:
    thresholds, error = (
        _thresholds(first, second, LEVEL / comparisons),
        math.sqrt(1 / first + 1 / second),
    )
    beyond = special.ndtr((difference - thresholds) / error) + special.ndtr(
        (-difference - thresholds) / error
    )
    return float(beyond.mean())


@functools.cache
def _detectable(counts: tuple[int, ...], comparisons: int) -> float:
    """The difference, in standard deviations, that is found with a power of 80%; of pairs for a
    single count.
    """
    if len(counts) == 1:
        dof = counts[0] - 1
        critical = special.stdtrit(dof, 1 - LEVEL / comparisons / 2)
        return float(special.nctdtrinc(dof, 1 - POWER, critical) / math.sqrt(counts[0]))
    furthest = 10 * _thresholds(*counts, LEVEL / comparisons).max()
    return optimize.brentq(
        lambda difference: _power(difference, *counts, comparisons) - POWER, 0, furthest
    )


@functools.cache
def _longest_flight(steps: int, seeds: int) -> float:
    """The squared length that a random flight of unit steps in seeds - 1 dimensions passes with
    probability SHOWN.
    """
    steps_KVD = np.random.default_rng(0).standard_normal((20_000, steps, seeds - 1))
    steps_KVD /= np.linalg.norm(steps_KVD, axis=-1, keepdims=True)
    return float(np.quantile((steps_KVD.sum(1) ** 2).sum(-1), 1 - SHOWN))


def _sd(values: np.ndarray, like: np.ndarray) -> float:
    """Standard deviation; 0 where it is the rounding of numbers like these."""
    sd = float(values.std(ddof=1))
    return sd if sd > ROUNDING * abs(like).max() else 0.0


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + 's' * (number != 1)


def refuse_nonfinite(values: Mapping[str, Runs]) -> None:
    """Raises ValueError with the variant and seed of a number that is not finite."""
    for name, runs in values.items():
        for seed, value in runs.items():
            if not math.isfinite(value):
                raise ValueError(f'{name}, seed {seed}: {value} is not finite; leave the run out')


def references_of(names: Collection[str], reference: Reference) -> dict[str, str]:
    """Of each variant the one that it is compared with; raises ValueError where that is none
    of them.
    """
    references = {
        name: reference if isinstance(reference, str) else reference.get(name, '') for name in names
    }
    for home in references.values():
        if home not in names:
            raise ValueError(f'reference={home!r} is none of the variants: {", ".join(names)}')
    return references

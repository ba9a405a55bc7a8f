"""Differences between variants over seeds: intervals, tests and verdicts.

Pure functions of numbers. The family of tests is one metric of one table: all variants against
their references, 5% for all of them together by Holm (1979). Tables in which all variants are equal
(normal, with equal spreads) were simulated, 40,000 for each of 2 to 17 variants, 3 to 10 seeds, and
correlations of 0 to 0.9 between runs of a seed: the share with any false verdict was 0.035 to 0.059
(2 variants, 3 seeds that correlate: from 0.030). Two choices keep it there:

- Welch's test takes its degrees of freedom from Welch (1947), as Stata's `ttest, welch` does.
  Satterthwaite's (1946), which SciPy and R take, are too few where spreads are equal: with 3 to 5
  seeds and 5 or more variants the share is 0.018 to 0.036. Two seeds are too few for either; their
  degrees of freedom are kept at 2 or less, and the share is about 0.03, far less where
  seeds correlate.
- One decision for the whole table between Welch's test and the test paired by seed, from all
  variants' correlation at once (`seeds_correlate`). If each variant took the smaller p of both, the
  share would be 0.06 to 0.09.

Where spreads differ by a factor of 5 and the reference's is the small one, the share reaches 0.10
with 5 seeds and 0.17 with 3 (9 variants: 0.08 and 0.14; Satterthwaite's: 0.07 and 0.08): no test
knows a spread from 3 runs. Where the reference's is the large one, the share falls to 0.01: all
comparisons then depend on one mean.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from transformer_jax.ablation.power import LEVEL, detectable_difference, welch_freedom
from transformer_jax.ablation.seed_correlation import seeds_correlate
from transformer_jax.ablation.seed_values import (
    ROUNDING,
    Reference,
    SeedValues,
    references_of,
    refuse_nonfinite,
    standard_deviation,
)

# Verdicts of a Comparison.
BETTER, WORSE = 'better', 'worse'
NOT_DISTINGUISHABLE, NOT_TESTED = 'not distinguishable', 'not tested'
DIFFERENT = (BETTER, WORSE)
# Tests of a Comparison.
WELCH, PAIRED, PERMUTATION = 'welch', 'paired', 'permutation'


@dataclasses.dataclass(frozen=True)
class Summary:
    """One variant over its seeds.

    Attributes:
        seeds: how many.
        mean: NaN without seeds.
        sd: the standard deviation (ddof=1); None with fewer than two seeds, as `low` and `high`.
        low, high: the 95% interval of the mean, by Student's t.
        reason: why there is no interval; '' where there is one.
    """

    seeds: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    reason: str = ''


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One variant minus its reference.

    Attributes:
        verdict: BETTER or WORSE (`adjusted` is at most 0.05), NOT_DISTINGUISHABLE or NOT_TESTED.
        difference: of the means; of the paired test over the seeds that both have. None where
            nothing can be tested, as all that follow.
        low, high: the 95% interval of this difference alone.
        test: WELCH, PAIRED, or PERMUTATION: no run differs from the others of its variant.
        p: of this comparison alone.
        adjusted: p after Holm over all comparisons of the metric.
        detectable: the smallest difference that is found in 80% of tables, see `power`.
        reason: why numbers are missing.
    """

    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    test: str = ''
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None
    reason: str = ''


def summarize(values: SeedValues) -> Summary:
    """Compute mean, standard deviation and 95% interval of one variant's runs.

    Raises:
        ValueError: a value is not finite.
    """
    refuse_nonfinite({'this variant': values})
    x = np.array([*values.values()], float)
    if len(x) < 2:
        mean = float(x.mean()) if len(x) else math.nan
        reason = f'no interval from {_count(len(x), "seed")}, it needs two'
        return Summary(len(x), mean, None, None, None, reason)
    mean, sd = float(x.mean()), standard_deviation(x, x)
    half = special.stdtrit(len(x) - 1, 0.975) * sd / math.sqrt(len(x))
    return Summary(len(x), mean, sd, mean - half, mean + half)


def compare(
    values: Mapping[str, SeedValues], reference: Reference, lower_is_better: bool
) -> dict[str, Comparison]:
    """Compare every variant but the references with its own, in the order of `values`.

    Args:
        values: variant -> seed -> value. Seeds may be missing; a variant with fewer than two is
            not tested.
        reference: a variant, or that of each.
        lower_is_better: whether a lower value is better.

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
                NOT_TESTED, reason=f'not tested with {seeds}, a test needs two'
            )
    return comparisons


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values: rejecting those up to α, any false rejection has a chance of at most α.

    Holm (1979).
    """
    values = np.asarray(p, float)
    order = np.argsort(values)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted.tolist()


class _Test(NamedTuple):
    kind: str
    difference: float
    p: float
    half: float  # of the 95% interval
    spread: float  # welch: of one run, paired: of one difference
    counts: tuple[int, ...]


def _test(ours: SeedValues, theirs: SeedValues, paired: bool) -> _Test:
    """Test two variants by Welch's test, or paired by seed.

    The paired test needs two common seeds, and differences that vary.
    """
    x, y = np.array([*ours.values()], float), np.array([*theirs.values()], float)
    gaps = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    both = np.concatenate([x, y])
    if paired and len(gaps) >= 2 and (spread := standard_deviation(gaps, both)):
        error, dof = spread / math.sqrt(len(gaps)), len(gaps) - 1
        p, half = _student(float(gaps.mean()), error, dof)
        return _Test(PAIRED, float(gaps.mean()), p, half, spread, (len(gaps),))
    counts, difference = (len(x), len(y)), float(x.mean() - y.mean())
    a = standard_deviation(x, both) ** 2 / len(x)
    b = standard_deviation(y, both) ** 2 / len(y)
    if not a + b:
        # Nothing varies, so there is no t. The labels of the runs alone can be permuted, which
        # claims no more than so few seeds can say.
        equal = abs(difference) <= ROUNDING * abs(both).max()
        p = 1.0 if equal else 2 / math.comb(sum(counts), len(x))
        return _Test(PERMUTATION, difference, p, 0.0, 0.0, counts)
    spread = math.sqrt((a * len(x) + b * len(y)) / 2)
    p, half = _student(difference, math.sqrt(a + b), float(welch_freedom(a, b, *counts)))
    return _Test(WELCH, difference, p, half, spread, counts)


def _student(difference: float, error: float, dof: float) -> tuple[float, float]:
    """Return the two-sided p of a difference, and half of its 95% interval."""
    p = 2 * special.stdtr(dof, -abs(difference) / error)
    return float(p), float(special.stdtrit(dof, 0.975) * error)


def _judge(test: _Test, adjusted: float, comparisons: int, lower_is_better: bool) -> Comparison:
    if adjusted > LEVEL:
        verdict = NOT_DISTINGUISHABLE
    else:
        verdict = BETTER if (test.difference > 0) != lower_is_better else WORSE
    detectable, reason = None, 'no spread over seeds, so the t test has no interval'
    if test.kind != PERMUTATION:
        detectable = test.spread * detectable_difference(test.counts, comparisons)
        reason = ''
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


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'

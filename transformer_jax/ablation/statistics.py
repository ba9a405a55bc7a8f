"""Differences between variants over seeds: intervals, tests and verdicts.

Pure functions of numbers. A family is one metric of one table: all its comparisons, and those of
its claims. The chance of any false verdict in it is 5% where spreads are alike, and at most 8%
where they differ up to fivefold; `many_to_one` has the test, docs/explanation/statistics.md how
that was measured.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from transformer_jax.ablation.many_to_one import LEVEL, equal_tables
from transformer_jax.ablation.measured_table import MeasuredTable, Pair, measure_table
from transformer_jax.ablation.power import detectable_difference, seeds_to_find
from transformer_jax.ablation.scales import PLAIN, Scale
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
MODERATED, BLOCKED, PERMUTATION = 'moderated', 'moderated, blocks', 'permutation'


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
    """One variant minus what it is compared with, in units of the metric.

    Attributes:
        verdict: BETTER or WORSE (`low` to `high` is on one side of 0), NOT_DISTINGUISHABLE or
            NOT_TESTED.
        difference: of the means. None where nothing can be tested, as all that follow.
        low, high: the simultaneous interval: it holds the truth together with those of all other
            comparisons in 95% of tables (1 less the level).
        alone_low, alone_high: the 95% interval of this difference alone.
        test: MODERATED, BLOCKED, or PERMUTATION: no run differs from the others of its variant.
        p: of this comparison alone.
        adjusted: p for all comparisons together; at most the level where the verdict is a
            difference.
        detectable: the smallest difference that is found in 80% of tables, see `power`.
        seeds_needed: how many seeds would decide in 80% of tables, were this difference the true
            one; None if 100 are too few.
        seeds_for_equality: how many would decide whether it is within the margin; None as above.
        reason: why numbers are missing.
    """

    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    alone_low: float | None = None
    alone_high: float | None = None
    test: str = ''
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None
    seeds_needed: int | None = None
    seeds_for_equality: int | None = None
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
    values: Mapping[str, SeedValues],
    reference: Reference,
    lower_is_better: bool,
    scale: Scale = PLAIN,
) -> dict[str, Comparison]:
    """Compare every variant but the references with its own, in the order of `values`.

    Args:
        values: variant -> seed -> value. Seeds may be missing; a variant with fewer than two is
            not tested.
        reference: a variant, or that of each.
        lower_is_better: whether a lower value is better.
        scale: on which runs are compared, see `compare_pairs`.

    Raises:
        ValueError: a value is not finite, or a reference is no variant.
    """
    references = references_of(values, reference)
    pairs = [(name, home) for name, home in references.items() if name != home]
    found = compare_pairs(values, pairs, lower_is_better, scale)
    return {name: comparison for (name, _), comparison in found.items()}


def compare_pairs(
    values: Mapping[str, SeedValues],
    pairs: Sequence[Pair],
    lower_is_better: bool,
    scale: Scale = PLAIN,
    margins: Mapping[Pair, float] | None = None,
    level: float = LEVEL,
) -> dict[Pair, Comparison]:
    """Compare pairs of variants, all of them one family.

    Args:
        values: variant -> seed -> value.
        pairs: what is compared with what; none twice.
        lower_is_better: whether a lower value is better.
        scale: on which runs are compared; where it does not take all values, they are compared as
            they are. A share is a count of examples: no run is taken to vary less than such a count
            does, 1/(4n) on the scale. n is one over the smallest step between values of the table.
        margins: of pairs that may turn out equivalent; `seeds_needed` counts that too.
        level: the chance of any false verdict, see `looks`.

    Raises:
        ValueError: a value is not finite.
    """
    refuse_nonfinite(values)
    tested = [pair for pair in pairs if min(len(values[name]) for name in pair) >= 2]
    table = measure_table(values, tested, scale, level) if tested else None
    if table is None:
        found = {pair: _permute(values, pair, lower_is_better, level) for pair in tested}
    else:
        margins = margins or {}
        found = {
            pair: _judge(table, number, lower_is_better, margins.get(pair, 0.0))
            for number, pair in enumerate(tested)
        }
    return {pair: found.get(pair) or _not_tested(values, pair) for pair in pairs}


def _judge(table: MeasuredTable, number: int, lower_is_better: bool, margin: float) -> Comparison:
    layout, pair = table.layout, table.pairs[number]
    equal = equal_tables(layout)
    step, error, sd = table.difference(number), table.error(number), table.sd(number)
    ends = [equal.critical * error, float(equal.critical_alone[number]) * error]
    found = detectable_difference(layout, number) * sd
    steps = np.array(
        [step - ends[0], step + ends[0], step - ends[1], step + ends[1], found, -found]
    )
    shifted = table.scale.shift(table.center(number), steps)
    low, high, alone_low, alone_high, up, down = shifted.tolist()
    # It is decided where 0 is outside of the interval, or all of the interval within the margin.
    within = (table.on_scale(number, margin) or 0.0) - abs(step)
    means = [float(np.mean([*table.runs[name].values()])) for name in pair]
    return Comparison(
        _direction(step, lower_is_better) if low * high > 0 else NOT_DISTINGUISHABLE,
        means[0] - means[1],
        low,
        high,
        alone_low,
        alone_high,
        BLOCKED if layout.blocks else MODERATED,
        equal.p_alone(number, abs(step) / error),
        equal.p_value(abs(step) / error),
        max(up, -down),
        seeds_to_find(max(abs(step), within) / sd, layout, number),
        # All of the interval on one side of the margin.
        seeds_to_find(abs(within) / sd, layout, number) if margin else None,
    )


def _permute(
    values: Mapping[str, SeedValues], pair: Pair, lower_is_better: bool, level: float
) -> Comparison:
    """Compare two variants of which no run differs from the others: there is no t.

    The labels of the runs alone can be permuted, which claims no more than so few seeds can say.
    """
    x, y = (np.array([*values[name].values()], float) for name in pair)
    difference = float(x.mean() - y.mean())
    equal = abs(difference) <= ROUNDING * abs(np.concatenate([x, y])).max()
    p = 1.0 if equal else 2 / math.comb(len(x) + len(y), len(x))
    verdict = _direction(difference, lower_is_better) if p <= level else NOT_DISTINGUISHABLE
    reason = 'no spread over seeds, so there is no interval'
    return Comparison(verdict, *[difference] * 5, test=PERMUTATION, p=p, adjusted=p, reason=reason)


def _not_tested(values: Mapping[str, SeedValues], pair: Pair) -> Comparison:
    name, home = pair
    seeds = (
        _count(len(values[name]), 'seed')
        if len(values[name]) < 2
        else f'{_count(len(values[home]), "seed")} of {home}'
    )
    return Comparison(NOT_TESTED, reason=f'not tested with {seeds}, a test needs two')


def _direction(difference: float, lower_is_better: bool) -> str:
    return BETTER if (difference > 0) != lower_is_better else WORSE


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'

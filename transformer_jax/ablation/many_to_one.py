"""Many comparisons with few references, from few runs: one statistic, and its critical value.

The statistic of a variant i and its reference 0, of n runs each, is

    T = |ȳᵢ - ȳ₀| / √(tᵢ² s̃ᵢ²/nᵢ + t₀² s₀²/n₀),

with s̃ᵢ² moderated by the other variants (`moderation`), s₀² the reference's own, and Student
quantiles t for their degrees of freedom. By Banerjee's (1960) inequality T exceeds 1 no more often
than its quantiles say, however the spreads differ. All comparisons hang on the mean of their
reference: its spread is not taken from the table, and its quantile, one for all, is that of 6.7%;
those of the variants share 9.5%. T must exceed 1, and the value that the largest T of a table
exceeds in 5% of tables whose variants are equal: as Dunnett's (1955), but for this T. That value is
found by simulating such tables, with the same seeds missing. At another level than 5% these three
percentages are smaller in the same proportion.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import special

from transformer_jax.ablation.moderation import moderate

LEVEL = 0.05  # of all verdicts of a table together
VARIANT_LEVEL, REFERENCE_LEVEL = 1.9, 1.34  # of the quantiles in T, over that of all verdicts
TABLES = 20_000  # simulated
MOST_NUMBERS = 4_000_000  # of the runs of all simulated tables; larger tables get fewer


class Layout(NamedTuple):
    """Which runs a table has, and what is compared.

    Attributes:
        variants: of each run, counted from 0.
        seeds: of each run.
        pairs: (variant, its reference) of each comparison.
        blocks: whether the effect of a seed, the same for all variants, is taken away.
        level: the chance of a false verdict in the whole table.
    """

    variants: tuple[int, ...]
    seeds: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    blocks: bool = False
    level: float = LEVEL

    @property
    def counts(self) -> np.ndarray:
        """The number of runs of each variant."""
        return np.bincount(self.variants)

    @property
    def references(self) -> list[int]:
        """The variants that others are compared with."""
        return sorted({home for _, home in self.pairs})

    @property
    def shared(self) -> np.ndarray:
        """The places of the runs of the seeds that all variants have, [variants, seeds]."""
        runs = enumerate(zip(self.variants, self.seeds, strict=True))
        place, names = {run: place for place, run in runs}, range(len(self.counts))
        common = [s for s in sorted({*self.seeds}) if all((v, s) in place for v in names)]
        return np.array([[place[v, s] for s in common] for v in names], int)


def balanced(
    seeds: int, pairs: tuple[tuple[int, int], ...], blocks: bool = False, level: float = LEVEL
) -> Layout:
    """Make the layout of a table whose variants have the same seeds."""
    variants = range(1 + max(max(pair) for pair in pairs))
    return Layout(
        tuple(variant for variant in variants for _ in range(seeds)),
        tuple(seed for _ in variants for seed in range(seeds)),
        pairs,
        blocks,
        level,
    )


class Measured(NamedTuple):
    """The statistics of tables.

    Attributes:
        differences: of the means of each pair, [B, P].
        errors: the denominators of T, [B, P].
        variances: of one run: moderated, those of references as they are, [B, V].
    """

    differences: np.ndarray
    errors: np.ndarray
    variances: np.ndarray


def measure(runs_BN: np.ndarray, layout: Layout, least: float = 0.0) -> Measured:
    """Compute differences, their errors and variances of B tables of N runs.

    Args:
        runs_BN: the values.
        layout: whose they are.
        least: what the variance of one run is at least. One of 0 is taken as the smallest of the
            table.
    """
    variants, counts = np.array(layout.variants), layout.counts
    member_NV = np.eye(len(counts))[variants]
    mean_BV = runs_BN @ member_NV / counts
    rest_BN = runs_BN - mean_BV[:, variants]
    dof_V = counts - 1.0
    if layout.blocks:
        place_VC = layout.shared
        rest_BVC = rest_BN[:, place_VC]
        centered_BVC = rest_BVC - rest_BVC.mean(-1, keepdims=True)
        rest_BN[:, place_VC] -= centered_BVC.mean(1, keepdims=True)
        dof_V -= (place_VC.shape[1] - 1) / len(counts)
    s2_BV = np.maximum((rest_BN**2) @ member_NV / dof_V, least)
    some_BV = np.where(s2_BV > 0, s2_BV, np.inf)
    s2_BV = np.where(s2_BV > 0, s2_BV, some_BV.min(-1, keepdims=True))
    if layout.blocks and len(counts) == 2:
        dof_V = dof_V.sum() + 0 * dof_V  # Both have the spread of one difference.
    return _compare(mean_BV, s2_BV, dof_V, layout)


def _compare(mean_BV: np.ndarray, s2_BV: np.ndarray, dof_V: np.ndarray, layout: Layout) -> Measured:
    references, counts = layout.references, layout.counts
    others = [v for v in range(len(counts)) if v not in references]
    variance_BV, freedom_BV = s2_BV.copy(), np.broadcast_to(dof_V, s2_BV.shape).copy()
    variance_BV[:, others], freedom_BV[:, others] = moderate(
        s2_BV[:, others], dof_V[others], len(layout.pairs)
    )
    level_V = np.full(len(counts), VARIANT_LEVEL * layout.level / len(layout.pairs))
    level_V[references] = REFERENCE_LEVEL * layout.level / len(references)
    error_BV = _quantiles(freedom_BV, level_V) ** 2 * variance_BV / counts
    first, second = np.array(layout.pairs).T
    return Measured(
        mean_BV[:, first] - mean_BV[:, second],
        np.sqrt(error_BV[:, first] + error_BV[:, second]),
        variance_BV,
    )


def _quantiles(dof_BV: np.ndarray, level_V: np.ndarray) -> np.ndarray:
    """Student's two-sided quantiles; those of many degrees of freedom are interpolated."""
    if dof_BV.shape[0] == 1:
        return special.stdtrit(dof_BV, 1 - level_V / 2)
    found = np.empty(dof_BV.shape)
    for v, level in enumerate(level_V):
        low, high = dof_BV[:, v].min(), dof_BV[:, v].max()
        grid = np.geomspace(low, high * (1 + 1e-9), 100)
        logs = np.log(special.stdtrit(grid, 1 - level / 2))
        found[:, v] = np.exp(np.interp(np.log(dof_BV[:, v]), np.log(grid), logs))
    return found


class EqualTables(NamedTuple):
    """Simulated tables whose variants are equal, normal and of spread 1.

    Attributes:
        largest: the largest T of each table, ascending.
        alone: T of each comparison, each ascending, [P, B].
        stretch: by how much the need that T exceeds 1 lifts the critical values.
        critical: what T must exceed, for all comparisons together.
        critical_alone: what T of each comparison must exceed, were it the only one, [P].
        half_PB: of each table, half the simultaneous interval of a difference, in standard
            deviations of one run.
        error_PB: of each table, the estimate of a difference that is 0, in the same unit.
    """

    largest: np.ndarray
    alone: np.ndarray
    stretch: float
    critical: float
    critical_alone: np.ndarray
    half_PB: np.ndarray
    error_PB: np.ndarray

    def power(self, pair: int, difference: float) -> float:
        """The share of tables that find a true difference, in standard deviations of one run."""
        return float((self.half_PB[pair] - self.error_PB[pair] < abs(difference)).mean())

    def power_within(self, pair: int, margin: float) -> float:
        """The share of tables that find a difference of 0 within a margin, in the same unit."""
        return float((self.half_PB[pair] + abs(self.error_PB[pair]) < margin).mean())

    def p_value(self, t: float) -> float:
        """The share of equal tables with a T as large in any comparison; `critical` has `level`."""
        return _share_above(self.largest, t / self.stretch)

    def p_alone(self, pair: int, t: float) -> float:
        """The share of equal tables with a T as large in this comparison."""
        return _share_above(self.alone[pair], t / self.stretch)


def _share_above(rising: np.ndarray, t: float) -> float:
    above = len(rising) - np.searchsorted(rising, t * (1 - 1e-12))
    return float((1 + above) / (1 + len(rising)))


@functools.lru_cache(256)
def equal_tables(layout: Layout, tables: int = TABLES) -> EqualTables:
    """Simulate equal tables of a layout; the same each time."""
    size = len(layout.variants)
    tables = max(min(tables, MOST_NUMBERS // size), 1000)
    runs_BN = np.random.default_rng(0).standard_normal((tables, size))
    found = measure(runs_BN, layout)
    t_BP = np.abs(found.differences) / found.errors
    largest, alone = np.sort(t_BP.max(1)), np.sort(t_BP.T, -1)
    simulated = float(np.quantile(largest, 1 - layout.level))
    critical = max(1.0, simulated)
    stretch = critical / simulated
    critical_alone = np.quantile(alone, 1 - LEVEL, axis=-1) * stretch
    half_PB, error_PB = critical * found.errors.T, found.differences.T
    return EqualTables(largest, alone, stretch, critical, critical_alone, half_PB, error_PB)

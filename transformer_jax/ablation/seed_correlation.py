"""A test of whether runs of the same seed vary together, over all variants of a table."""

import functools
from collections.abc import Mapping

import numpy as np

from transformer_jax.ablation.seed_values import SeedValues, standard_deviation

# With 2 variants, 0.01 would miss a correlation so often that the share of tables with a false
# verdict falls to 0.02, and 0.05 would let chance choose the test so often that it rises to 0.065.
CORRELATION_LEVEL = 0.03


def seeds_correlate(values: Mapping[str, SeedValues]) -> bool:
    """Test whether runs of one seed vary together.

    The seeds count that all variants have. Every variant's runs, less their mean, are scaled to
    length 1; the vectors are added. Runs that vary together give a long
    sum. For independent normal runs of any means and spreads the vectors point anywhere, and the
    sum is a random flight, whose law depends on the numbers of variants and seeds alone: the test
    is exact, and one-sided, since a negative correlation has no cause here. For two variants it is
    the test of Pearson's r.

    Args:
        values: variant -> seed -> value.
    """
    seeds = sorted(set.intersection(*(set(runs) for runs in values.values())))
    rows = [np.array([runs[seed] for seed in seeds]) for runs in values.values()]
    rows = [row for row in rows if len(seeds) >= 2 and standard_deviation(row, row)]
    return len(rows) >= 2 and bool(rows_correlate(np.array([rows]))[0])


def rows_correlate(values_BVC: np.ndarray) -> np.ndarray:
    """Test B tables of V variants with C seeds as `seeds_correlate` does; every row must vary."""
    rest_BVC = values_BVC - values_BVC.mean(-1, keepdims=True)
    rest_BVC = rest_BVC / np.linalg.norm(rest_BVC, axis=-1, keepdims=True)
    squared_B = (rest_BVC.sum(1) ** 2).sum(-1)
    return squared_B > _longest_flight(*values_BVC.shape[1:]) * (1 + 1e-9)


@functools.cache
def _longest_flight(steps: int, seeds: int) -> float:
    """The squared length that a random flight exceeds with probability CORRELATION_LEVEL.

    The flight has unit steps in seeds - 1 dimensions; 20,000 are simulated.
    """
    steps_KVD = np.random.default_rng(0).standard_normal((20_000, steps, seeds - 1))
    steps_KVD /= np.linalg.norm(steps_KVD, axis=-1, keepdims=True)
    return float(np.quantile((steps_KVD.sum(1) ** 2).sum(-1), 1 - CORRELATION_LEVEL))

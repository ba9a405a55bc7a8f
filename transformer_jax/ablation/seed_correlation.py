"""A test of whether runs of the same seed vary together, over all variants of a table."""

import functools

import numpy as np

from transformer_jax.ablation.many_to_one import Layout
from transformer_jax.ablation.moderation import fit_prior
from transformer_jax.ablation.seed_values import ROUNDING

# With 2 variants, 0.01 would miss a correlation so often that the share of tables with a false
# verdict falls to 0.02, and 0.05 would let chance choose the test so often that it rises to 0.065.
CORRELATION_LEVEL = 0.03


def varies_by_seed(runs_BN: np.ndarray, layout: Layout) -> np.ndarray:
    """Say of B tables whether seeds are blocks: whether runs of one seed vary together, and alike.

    The seeds count that all variants have. Where spreads differ by more than chance (`fit_prior`
    finds a finite d₀ among three or more variants), an effect of seeds that is the same for all is
    no model of them, and seeds are taken as independent, which is safe.

    Args:
        runs_BN: the values.
        layout: whose they are.
    """
    rows_BVC = runs_BN[:, layout.shared]
    if rows_BVC.shape[2] < 2:
        return np.zeros(len(runs_BN), bool)
    sizes_BV = abs(rows_BVC).max(-1)
    moves_BV = rows_BVC.std(-1, ddof=1) > ROUNDING * sizes_BV
    found_B = np.zeros(len(runs_BN), bool)
    for count in range(2, rows_BVC.shape[1] + 1):
        tables = moves_BV.sum(1) == count  # Constant rows show nothing.
        if tables.any():
            kept = rows_BVC[tables][moves_BV[tables]].reshape(-1, count, rows_BVC.shape[2])
            alike = _rows_correlate(kept) & _spreads_are_alike(kept)
            found_B[tables] = alike & _something_is_left(kept)
    return found_B


def _something_is_left(rows_BVC: np.ndarray) -> np.ndarray:
    """Say where runs still vary without the effect of seeds; a constant lead is no certainty."""
    rest_BVC = rows_BVC - rows_BVC.mean(-1, keepdims=True)
    left_BVC = rest_BVC - rest_BVC.mean(1, keepdims=True)
    return abs(left_BVC).max((1, 2)) > ROUNDING * abs(rows_BVC).max((1, 2))


def _spreads_are_alike(rows_BVC: np.ndarray) -> np.ndarray:
    variants, seeds = rows_BVC.shape[1:]
    if variants < 3:
        return np.ones(len(rows_BVC), bool)
    dof_V = np.full(variants, seeds - 1.0)
    return np.isinf(fit_prior(rows_BVC.var(-1, ddof=1), dof_V)[0])


def _rows_correlate(rows_BVC: np.ndarray) -> np.ndarray:
    """Test whether the rows of each table vary together.

    Every variant's runs, less their mean, are scaled to length 1; the vectors are added. Runs that
    vary together give a long sum. For independent normal runs of any means and spreads the vectors
    point anywhere, and the sum is a random flight, whose law depends on the numbers of variants and
    seeds alone: the test is exact, and one-sided, since a negative correlation has no cause here.
    For two variants it is the test of Pearson's r.
    """
    rest_BVC = rows_BVC - rows_BVC.mean(-1, keepdims=True)
    rest_BVC = rest_BVC / np.linalg.norm(rest_BVC, axis=-1, keepdims=True)
    squared_B = (rest_BVC.sum(1) ** 2).sum(-1)
    return squared_B > _longest_flight(*rows_BVC.shape[1:]) * (1 + 1e-9)


@functools.cache
def _longest_flight(steps: int, seeds: int) -> float:
    """The squared length that a random flight exceeds with probability CORRELATION_LEVEL.

    The flight has unit steps in seeds - 1 dimensions; 20,000 are simulated.
    """
    steps_KVD = np.random.default_rng(0).standard_normal((20_000, steps, seeds - 1))
    steps_KVD /= np.linalg.norm(steps_KVD, axis=-1, keepdims=True)
    return float(np.quantile((steps_KVD.sum(1) ** 2).sum(-1), 1 - CORRELATION_LEVEL))

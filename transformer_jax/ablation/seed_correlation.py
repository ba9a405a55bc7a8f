"""A test of whether runs of the same seed vary together, over all variants of a table."""

import functools
from collections.abc import Mapping

import numpy as np

from transformer_jax.ablation.seed_values import (
    Reference,
    SeedValues,
    references_of,
    standard_deviation,
)

# With 2 variants, 0.01 would miss a correlation so often that the share of tables with a false
# verdict falls to 0.02, and 0.05 would let chance choose the test so often that it rises to 0.065.
CORRELATION_LEVEL = 0.03


def seeds_correlate(values: Mapping[str, SeedValues], reference: Reference) -> bool:
    """Test whether runs of one seed vary together.

    All variants count that have the seeds which the references share. Every variant's runs, less
    their mean, are scaled to length 1; the vectors are added. Runs that vary together give a long
    sum. For independent normal runs of any means and spreads the vectors point anywhere, and the
    sum is a random flight, whose law depends on the numbers of variants and seeds alone: the test
    is exact, and one-sided, since a negative correlation has no cause here. For two variants it is
    the test of Pearson's r.

    Args:
        values: variant -> seed -> value.
        reference: a variant, or that of each.
    """
    homes = {*references_of(values, reference).values()}
    seeds = sorted(set.intersection(*(set(values[home]) for home in homes)))
    rows = [
        np.array([runs[seed] for seed in seeds])
        for runs in values.values()
        if set(seeds) <= set(runs)
    ]
    rows = [row - row.mean() for row in rows if len(seeds) >= 2 and standard_deviation(row, row)]
    if len(rows) < 2:
        return False
    flight = np.sum([row / np.linalg.norm(row) for row in rows], axis=0)
    return bool(flight @ flight > _longest_flight(len(rows), len(seeds)) * (1 + 1e-9))


@functools.cache
def _longest_flight(steps: int, seeds: int) -> float:
    """The squared length that a random flight exceeds with probability CORRELATION_LEVEL.

    The flight has unit steps in seeds - 1 dimensions; 20,000 are simulated.
    """
    steps_KVD = np.random.default_rng(0).standard_normal((20_000, steps, seeds - 1))
    steps_KVD /= np.linalg.norm(steps_KVD, axis=-1, keepdims=True)
    return float(np.quantile((steps_KVD.sum(1) ** 2).sum(-1), 1 - CORRELATION_LEVEL))

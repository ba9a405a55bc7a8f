"""Which differences a number of seeds can find, from simulated tables (`many_to_one`)."""

import functools

import numpy as np

from transformer_jax.ablation.many_to_one import LEVEL, TABLES, Layout, balanced, equal_tables

SEARCHED = 2000  # tables that are simulated for each number of seeds
LEAST = 1.5
POWER = 0.8  # at which a difference counts as one that the seeds could have detected
# Numbers of seeds among which the one that would decide is looked for.
SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30, 40, 50, 70, 100)


def power(difference: float, seeds: int, variants: int, level: float = LEVEL) -> float:
    """Compute the chance that a table finds one variant different from the reference.

    Spreads are taken to be equal, and seeds not to correlate; where they do the chance is larger.

    Args:
        difference: in standard deviations of one run.
        seeds: of each variant, two or more.
        variants: of the table, the reference among them, two or more.
        level: the chance of any false verdict.

    Raises:
        ValueError: fewer than two seeds or variants.
    """
    if min(seeds, variants) < 2:
        raise ValueError(f'{seeds} seeds of {variants} variants: a test needs two of each')
    layout = balanced(seeds, tuple((variant, 0) for variant in range(1, variants)), level=level)
    tables = equal_tables(layout)
    return float(np.mean([tables.power(pair, difference) for pair in range(variants - 1)]))


@functools.lru_cache(4096)
def detectable_difference(layout: Layout, pair: int, tables: int = TABLES) -> float:
    """Compute the difference that a comparison finds in 80% of tables, in standard deviations.

    Args:
        layout: of the table.
        pair: the place of the comparison.
        tables: how many are simulated.
    """
    found = equal_tables(layout, tables)
    return float(np.quantile(found.half_PB[pair] - found.error_PB[pair], POWER))


def seeds_to_find(difference: float, layout: Layout, pair: int) -> int | None:
    """Compute how many seeds find a difference in 80% of tables; None if 100 are too few.

    Args:
        difference: in standard deviations of one run.
        layout: of the table at hand; the new one has its comparisons and more seeds.
        pair: the place of the comparison.
    """
    # With LEAST standard errors nothing is found, whatever the test: no need to simulate.
    enough = (seeds for seeds in SEEDS if difference * (seeds / 2) ** 0.5 > LEAST)
    found = (n for n in enough if _found_with(n, layout, pair) <= difference)
    return next(found, None)


@functools.lru_cache(4096)
def _found_with(seeds: int, layout: Layout, pair: int) -> float:
    grown = balanced(seeds, layout.pairs, layout.blocks, layout.level)
    return detectable_difference(grown, pair, SEARCHED)

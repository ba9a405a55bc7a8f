"""Power of Welch's test: which differences a number of seeds can find."""

import functools
import math
from typing import cast

import numpy as np
from scipy import optimize, special

LEVEL = 0.05  # family-wise
POWER = 0.8  # at which a difference counts as one that the seeds could have detected


def power(difference: float, seeds: int, variants: int) -> float:
    """Compute the chance that a table finds one variant different from the reference.

    It is that of Holm's first and strictest step, 5% / (variants - 1), by Welch's test: all other
    variants are taken to equal the reference, spreads to be equal, and seeds not to correlate.
    Where others differ too, or seeds correlate strongly, the chance is larger.

    Args:
        difference: in standard deviations of one run.
        seeds: of each variant, two or more.
        variants: of the table, the reference among them, two or more.

    Raises:
        ValueError: fewer than two seeds or variants.
    """
    if min(seeds, variants) < 2:
        raise ValueError(f'{seeds} seeds of {variants} variants: a test needs two of each')
    return _welch_power(abs(difference), seeds, seeds, variants - 1)


@functools.cache
def detectable_difference(counts: tuple[int, ...], comparisons: int) -> float:
    """Compute the difference that is found with a power of 80%.

    Args:
        counts: the numbers of runs of both variants (Welch's test), or of pairs (one number: the
            paired test).
        comparisons: of the table.

    Returns:
        the difference in standard deviations of one run; of the paired test in those of one pair's
        difference.
    """
    if len(counts) == 1:
        dof = counts[0] - 1
        critical = special.stdtrit(dof, 1 - LEVEL / comparisons / 2)
        return float(special.nctdtrinc(dof, 1 - POWER, critical) / math.sqrt(counts[0]))
    furthest = 10 * _thresholds(*counts, LEVEL / comparisons).max()
    first, second = counts
    found = optimize.brentq(
        lambda difference: _welch_power(difference, first, second, comparisons) - POWER, 0, furthest
    )
    return cast(float, found)  # a tuple only with full_output


def welch_freedom(a, b, first: int, second: int):
    """Compute Welch's (1947) degrees of freedom of √(a + b).

    Args:
        a, b: the squared errors of two means, numbers or arrays.
        first, second: the numbers of runs behind them.
    """
    dof = (a + b) ** 2 / (a**2 / (first + 1) + b**2 / (second + 1)) - 2
    return np.minimum(dof, first + second - 2) if min(first, second) < 3 else dof


def _welch_power(difference: float, first: int, second: int, comparisons: int) -> float:
    thresholds = _thresholds(first, second, LEVEL / comparisons)
    error = math.sqrt(1 / first + 1 / second)
    above = special.ndtr((difference - thresholds) / error)
    below = special.ndtr((-difference - thresholds) / error)
    return float((above + below).mean())


@functools.cache
def _thresholds(first: int, second: int, level: float) -> np.ndarray:
    """How far apart means must be for Welch's test at `level`, [64, 64].

    One threshold for each of 64 × 64 equally likely pairs of sample variances.
    """
    quantiles = (np.arange(64) + 0.5) / 64
    a = (special.chdtri(first - 1, quantiles) / (first - 1) / first)[:, None]
    b = (special.chdtri(second - 1, quantiles) / (second - 1) / second)[None]
    return special.stdtrit(welch_freedom(a, b, first, second), 1 - level / 2) * np.sqrt(a + b)

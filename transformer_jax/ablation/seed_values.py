"""Values of runs by seed, and the reference of each variant: what all statistics start from."""

import math
from collections.abc import Collection, Mapping

import numpy as np

SeedValues = Mapping[int, float]  # seed -> the value of that run
Reference = str | Mapping[str, str]  # the variant that all are compared with; or variant -> its own
ROUNDING = 1e-12  # a spread below this share of the numbers is their rounding


def references_of(names: Collection[str], reference: Reference) -> dict[str, str]:
    """Return for each variant the one that it is compared with.

    Raises:
        ValueError: a reference is none of the variants.
    """
    references = {
        name: reference if isinstance(reference, str) else reference.get(name, '') for name in names
    }
    for home in references.values():
        if home not in names:
            raise ValueError(f'reference={home!r} is none of the variants: {", ".join(names)}')
    return references


def refuse_nonfinite(values: Mapping[str, SeedValues]) -> None:
    """Raise ValueError with the variant and seed of a number that is not finite."""
    for name, runs in values.items():
        for seed, value in runs.items():
            if not math.isfinite(value):
                raise ValueError(f'{name}, seed {seed}: {value} is not finite; leave the run out')


def standard_deviation(values: np.ndarray, like: np.ndarray) -> float:
    """Compute the standard deviation (ddof=1) of values; 0 where it is mere rounding.

    Args:
        values: two or more.
        like: numbers of the size at which rounding happened.
    """
    sd = float(values.std(ddof=1))
    return sd if sd > ROUNDING * abs(like).max() else 0.0

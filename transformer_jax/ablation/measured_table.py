"""A table as it was measured, on the scale of its metric: what verdicts and plans start from."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from transformer_jax.ablation.many_to_one import Layout, Measured, measure
from transformer_jax.ablation.scales import PLAIN, SCALES, Scale
from transformer_jax.ablation.seed_correlation import varies_by_seed
from transformer_jax.ablation.seed_values import SeedValues, standard_deviation

Pair = tuple[str, str]  # a variant, and what it is compared with


@dataclasses.dataclass(frozen=True)
class MeasuredTable:
    """Differences, errors and spreads of the runs of a table.

    Attributes:
        layout: whose runs they are, and what is compared; the comparisons are counted from 0.
        measured: the numbers, of one table.
        runs: variant -> seed -> value.
        pairs: the comparisons by name.
        scale: on which all of this is.
    """

    layout: Layout
    measured: Measured
    runs: Mapping[str, SeedValues]
    pairs: Sequence[Pair]
    scale: Scale

    def difference(self, number: int) -> float:
        """The difference of the means of a comparison, on the scale."""
        return float(self.measured.differences[0, number])

    def error(self, number: int) -> float:
        """The denominator of T of a comparison."""
        return float(self.measured.errors[0, number])

    def sd(self, number: int) -> float:
        """The standard deviation of one run of a comparison: the mean of both its variances."""
        return math.sqrt(self.measured.variances[0, list(self.layout.pairs[number])].mean())

    def center(self, number: int) -> float:
        """The value of the metric that the mean of the reference of a comparison stands for."""
        home = np.array([*self.runs[self.pairs[number][1]].values()], float)
        return float(self.scale.inverse(self.scale.forward(home).mean()))

    def on_scale(self, number: int, difference: float) -> float | None:
        """Bring a difference from the reference to the scale; None where it leads beyond it."""
        center = self.center(number)
        if not self.scale.takes(np.array([center + difference])):
            return None
        start, end = self.scale.forward(np.array([center, center + difference]))
        return float(end - start)


def measure_table(
    values: Mapping[str, SeedValues], pairs: Sequence[Pair], scale: Scale, level: float
) -> MeasuredTable | None:
    """Measure a table; None where no run differs from the others of its variant.

    Args:
        values: variant -> seed -> value; finite, two or more of each variant that is in a pair.
        pairs: what is compared with what.
        scale: on which runs are compared; where it does not take all values, as they are.
        level: the chance of any false verdict.
    """
    runs = {name: values[name] for name in values if any(name in pair for pair in pairs)}
    if not any(_varies(seeds) for seeds in runs.values()):
        return None
    flat = np.array([value for seeds in runs.values() for value in seeds.values()], float)
    scale = scale if scale.takes(flat) else PLAIN
    place = {name: index for index, name in enumerate(runs)}
    layout = Layout(
        tuple(place[name] for name, seeds in runs.items() for _ in seeds),
        tuple(seed for seeds in runs.values() for seed in seeds),
        tuple((place[name], place[home]) for name, home in pairs),
        level=level,
    )
    numbers = scale.forward(flat)[None]
    layout = layout._replace(blocks=bool(varies_by_seed(numbers, layout)[0]))
    least = float(np.diff(np.unique(flat)).min()) / 4 if scale is SCALES['share'] else 0.0
    return MeasuredTable(layout, measure(numbers, layout, least), runs, pairs, scale)


def _varies(seeds: SeedValues) -> bool:
    x = np.array([*seeds.values()], float)
    return bool(standard_deviation(x, x))

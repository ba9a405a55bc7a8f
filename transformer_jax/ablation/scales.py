"""Scales on which the spread over seeds is alike at all levels of a metric.

Runs are compared on the scale of their metric (`MetricKind.scale`); what is shown is brought back.
A loss varies in proportion to itself, so that its logarithm has one spread. A share varies most in
the middle and not at all at 0 and 1: arcsin √x has the variance 1/(4n) for a share of n examples
wherever it is (Bartlett 1936), and unlike the logit is finite at both ends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Function = Callable[[Any], Any]  # of numbers and arrays


class Scale(NamedTuple):
    """A monotone, rising function of a metric, and its inverse.

    Attributes:
        words: its formula in x, for a reader; '' where runs are compared as they are.
        forward: from the metric to the scale.
        inverse: back; beyond the ends of the scale it stays at the end.
        lowest, highest: of the metric's values that it takes; `lowest` itself only where `closed`.
        closed: whether both ends are allowed.
    """

    words: str
    forward: Function
    inverse: Function
    lowest: float = -np.inf
    highest: float = np.inf
    closed: bool = True

    def takes(self, values: np.ndarray) -> bool:
        """Say whether all values are within its range."""
        above = values >= self.lowest if self.closed else values > self.lowest
        return bool(np.all(above & (values <= self.highest)))

    def shift(self, home: float, steps: np.ndarray) -> np.ndarray:
        """Return how far steps on the scale from a value `home` go, in units of the metric.

        Args:
            home: a value of the metric.
            steps: differences on the scale.
        """
        start = self.forward(np.asarray(home, float))
        return self.inverse(start + steps) - self.inverse(start)


def _share(highest: float) -> Scale:
    """Make the arcsine scale of a share of `highest`."""
    words = 'arcsin √x' if highest == 1 else f'arcsin √(x/{highest:g})'
    return Scale(
        words,
        lambda x: np.arcsin(np.sqrt(x / highest)),
        lambda y: highest * np.sin(np.clip(y, 0, np.pi / 2)) ** 2,
        lowest=0.0,
        highest=highest,
    )


PLAIN = Scale('', lambda x: x, lambda y: y)
SCALES = {
    'plain': PLAIN,
    'log': Scale('log x', np.log, np.exp, lowest=0.0, closed=False),
    'share': _share(1.0),
    'percent': _share(100.0),
}

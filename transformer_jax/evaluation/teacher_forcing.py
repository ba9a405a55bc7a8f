"""What teacher forcing measures: sums over tokens, and which examples are right."""

import dataclasses
from typing import NamedTuple

import numpy as np

from transformer_jax.batch import Batch
from transformer_jax.data.batching import Step


class ScoredBatch(NamedTuple):
    """A batch of a split, whole, and what the model says of its target tokens.

    `nll_BT` (float32, nats) and `predicted_BT` (int32) are those of `losses.token_scores`, as
    NumPy arrays. `step` says which example is in which row.
    """

    step: Step
    batch: Batch
    nll_BT: np.ndarray
    predicted_BT: np.ndarray

    @property
    def counted_BT(self) -> np.ndarray:
        """True where a target token counts."""
        return self.batch.weights_BT > 0

    @property
    def correct_BT(self) -> np.ndarray:
        """True where a target token counts and is the most likely one."""
        return (self.predicted_BT == self.batch.targets_BT) & self.counted_BT

    def exact_E(self) -> np.ndarray:
        """Return for each of `step.examples` whether all its counted tokens are correct.

        Works for rows of one example and for packed rows, where an example is a segment.
        """
        row_E = self.step.row
        segment_E = np.arange(len(row_E)) - np.searchsorted(row_E, row_E) + 1
        wrong_BT = self.counted_BT & ~self.correct_BT
        own_ET = self.batch.segments_BT[row_E] == segment_E[:, None]
        return ~(wrong_BT[row_E] & own_ET).any(1)


@dataclasses.dataclass
class TokenTotals:
    """Sums over the counted tokens of a split, in float64; each token counts as its weight."""

    nll: float = 0.0  # nats, without label smoothing
    correct: float = 0.0
    weight: float = 0.0

    def add(self, scored: ScoredBatch) -> None:
        """Add the tokens of a batch."""
        weights_BT = scored.batch.weights_BT.astype(np.float64)
        self.nll += float((scored.nll_BT * weights_BT).sum())
        self.correct += float((scored.correct_BT * weights_BT).sum())
        self.weight += float(weights_BT.sum())

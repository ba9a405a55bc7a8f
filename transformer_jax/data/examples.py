"""Examples as token ids: the containers that the batch plan reads, and pairs as one sequence."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np


class Ragged(NamedTuple):
    """Sequences of unequal length: sequence i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The length of every sequence, [sequences]."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequences of `index` end to end, and their lengths."""
        start = self.offsets[index]
        lengths = self.offsets[index + 1] - start
        begin = np.cumsum(lengths) - lengths
        return self.values[np.arange(lengths.sum()) + np.repeat(start - begin, lengths)], lengths


class Taken(NamedTuple):
    """Some examples end to end: (flat tokens, lengths) of each side, and the targets' weights."""

    source: tuple[np.ndarray, np.ndarray] | None
    target: tuple[np.ndarray, np.ndarray]
    weights: np.ndarray | None = None  # of each target token; None: all 1
    starts: np.ndarray | None = None  # the token before each example's first target; None: BOS


class Examples(Protocol):
    """The examples of a split, as the batch plan reads them."""

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths or upper bounds of them, [examples, 2]; 0: no source."""
        ...

    def take(self, index: np.ndarray) -> Taken:
        """Return the examples of `index`, in that order."""
        ...


@dataclasses.dataclass(frozen=True)
class Uncounted:
    """Examples whose first target tokens do not count in the loss: the model is shown them.

    Attributes:
        examples: the same examples, all of whose targets may count.
        first: how many targets of each example do not.
    """

    examples: Examples
    first: int

    @property
    def lengths(self) -> np.ndarray:
        """See Examples."""
        return self.examples.lengths

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        taken = self.examples.take(index)
        tokens, lengths = taken.target
        begin = np.cumsum(lengths) - lengths
        counts = np.arange(len(tokens)) - np.repeat(begin, lengths) >= self.first
        weights = np.ones(len(tokens), np.float32) if taken.weights is None else taken.weights
        return taken._replace(weights=weights * counts)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Pairs as a language model reads them, as one sequence: only the target counts in the loss."""

    pairs: Examples

    @property
    def lengths(self) -> np.ndarray:
        """See Examples."""
        total = self.pairs.lengths.sum(axis=1)
        return np.stack([np.zeros_like(total), total], axis=1)

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        taken = self.pairs.take(index)
        assert taken.source is not None, 'only pairs are joined'
        (source, source_lengths), (target, target_lengths) = taken.source, taken.target
        # Sorted by 2 · example + side, all tokens of an example follow one another, source first.
        keys = [
            np.repeat(2 * np.arange(len(lengths)) + side, lengths)
            for side, lengths in enumerate((source_lengths, target_lengths))
        ]
        order = np.argsort(np.concatenate(keys), kind='stable')
        weights = np.ones(len(target), np.float32) if taken.weights is None else taken.weights
        return Taken(
            None,
            (np.concatenate([source, target])[order], source_lengths + target_lengths),
            np.concatenate([np.zeros(len(source), np.float32), weights])[order],
        )

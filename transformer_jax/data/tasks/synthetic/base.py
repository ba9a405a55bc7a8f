"""Synthetic tasks: examples as a pure function of (seed, split, index), in disjoint splits."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.data.tasks.symbols import Example, SymbolTask
from transformer_jax.ranges import number

# A length with fewer different examples than FEW is for training alone. From MANY on, two equal
# examples are not to be expected: 10⁶ training and 10⁴ held-out examples have a pair with
# probability 10⁻¹⁴. In between a hash decides to which split an example belongs.
FEW, MANY = 1000, 2**80


class Stream:
    """The random numbers of one example.

    They are made of the raw output of PCG64, which NumPy promises to keep, as it does not that of
    Generator's methods (NEP 19): a test set is the same in every version.
    """

    def __init__(self, *key: int):
        self._bits = np.random.PCG64(key)

    def uniform(self, count: int) -> np.ndarray:
        """Return [count] float64 numbers in [0, 1)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def integers(self, below: int, count: int) -> np.ndarray:
        """Return [count] int32 integers in [0, below)."""
        return (self.uniform(count) * below).astype(np.int32)

    def distinct(self, below: int, count: int) -> np.ndarray:
        """Return [count] different integers in [0, below), in random order."""
        keys = self.uniform(below)
        smallest = np.argpartition(keys, count - 1)[:count]
        return smallest[np.argsort(keys[smallest])]

    def weighted(self, weights: np.ndarray, count: int) -> np.ndarray:
        """Return [count] different indices, sampled one after the other in proportion to `weights`.

        They are the smallest of exponential variables with these rates (Efraimidis & Spirakis
        2006).
        """
        return np.argsort(-np.log1p(-self.uniform(len(weights))) / weights, kind='stable')[:count]


@dataclasses.dataclass(frozen=True)
class SyntheticTask(SymbolTask):
    """A task whose examples are sampled when they are asked for.

    Validation has the lengths of training and no example that training could ever see, whatever its
    seed; the test split has longer examples if the task has a `test_length`, else it is as
    validation. The lengths of a split take turns, so that each occurs equally often.
    """

    examples: int = number(100_000, low=1, high=1_000_000_000, kw_only=True)
    # In validation and in test each.
    held_out: int = number(2_000, low=1, high=1_000_000_000, kw_only=True)
    seed: int = number(0, low=0, high=2**32 - 1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        self.check_relations()
        if not self.lengths('validation'):
            raise ValueError(
                f'there are fewer than {FEW} different examples, too few to hold some out; '
                'make them longer or more varied'
            )

    def check_relations(self) -> None:
        """Raise ValueError where options that are within their ranges do not go together."""

    @abc.abstractmethod
    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the lengths of training, ascending, and those of the test split.

        The second is empty where the test split has the lengths of training.
        """

    @abc.abstractmethod
    def _sizes(self, length: int) -> tuple[int, int]:
        """Return upper bounds of the source's and the target's tokens at a length; no source: 0."""

    @abc.abstractmethod
    def _outcomes(self, length: int) -> int:
        """Return a lower bound of 1 / (the chance that two examples of a length are equal).

        It grows with the length.
        """

    @abc.abstractmethod
    def _sample(self, stream: Stream, length: int) -> Example:
        """Sample an example of a length."""

    def count(self, split: str) -> int:
        """See SymbolTask."""
        return self.examples if split == 'train' else self.held_out

    def lengths(self, split: str) -> Sequence[int]:
        """Return the lengths of a split's examples, in the task's own measure."""
        train, longer = self._lengths()
        if split == 'train':
            return train
        if split == 'test' and longer:
            return longer
        enough = (index for index, length in enumerate(train) if self._outcomes(length) >= FEW)
        return train[next(enough, len(train)) :]

    def length_at(self, split: str, index: int) -> int:
        """Return the length of an example, without sampling it."""
        lengths = self.lengths(split)
        return lengths[index % len(lengths)]

    def sizes(self, split: str, count: int) -> np.ndarray:
        """See SymbolTask."""
        bound = functools.cache(self._sizes)
        return np.array([bound(self.length_at(split, index)) for index in range(count)])

    def longest(self, split: str) -> tuple[int, int]:
        """See SymbolTask."""
        return self._sizes(self.lengths(split)[-1])

    def make_example(self, seed: int, split: str, index: int) -> Example:
        """See SymbolTask."""
        stream, length = Stream(seed, SPLITS.index(split), index), self.length_at(split, index)
        shared = FEW <= self._outcomes(length) < MANY and length in self._lengths()[0]
        while True:
            example = self._sample(stream, length)
            if not shared or _split_of(example) == split:
                return example


def _split_of(example: Example) -> str:
    """Return the split of an example by its hash.

    Eight tenths of all examples are for training, one tenth each for validation and test.
    """
    content = example.target if example.source is None else example.source
    digest = hashlib.blake2b(content.astype('<i4').tobytes(), digest_size=8).digest()
    return {0: 'validation', 1: 'test'}.get(int.from_bytes(digest, 'little') % 10, 'train')

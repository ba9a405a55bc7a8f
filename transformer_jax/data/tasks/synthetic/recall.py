"""Recall from the context: associations, copies, and a symbol far back."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from transformer_jax.data.tasks.symbols import FIRST, Example, sentence
from transformer_jax.data.tasks.synthetic.base import Stream, SyntheticTask
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Recall(SyntheticTask):
    """A task with one length for training and another, if given, for the test split."""

    length: int = number(256, low=1, high=10_000_000, kw_only=True)
    test_length: int = number(0, low=1, high=10_000_000, also=(0,), kw_only=True)  # 0: as length

    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        longer = () if self.test_length in (0, self.length) else (self.test_length,)
        return (self.length,), longer


@dataclasses.dataclass(frozen=True)
class MQAR(Recall):
    """Multi-query associative recall, `k3 v8 k5 v2 _ _ k5 v2 _ _ k3 v8`.

    Arora et al. (2023), "Zoology", section 4.

    Key-value pairs, then every key once more, whose value is to be predicted: only these values
    count. Keys come from the lower half of the vocabulary, values from the upper; no key and no
    value occurs in two pairs. After the pairs the sequence consists of two-token slots: each query
    takes one, slot i = 1, 2, … with probability proportional to a·i^(a−1), and blanks fill the
    others, so that most gaps are short, as in text. In the paper's data the answer is a label
    alone; here it is also in the sequence, after its query, as in the paper's definition of the
    problem. The settings are those of its Figure 2 at T = 64; the others are (length, pairs) =
    (128, 8), (256, 16) and (512, 64).
    """

    has_source = False

    vocab_size: int = number(8192, low=8, high=1_000_000)
    pairs: int = number(4, low=1, high=10_000)
    power_a: float = number(0.01, above=0, high=1_000)
    length: int = number(64, low=4, high=10_000_000, kw_only=True)
    test_length: int = number(0, low=4, high=10_000_000, also=(0,), kw_only=True)
    held_out: int = number(3_000, low=1, high=1_000_000_000, kw_only=True)

    def check_relations(self) -> None:
        """See SyntheticTask."""
        if self.pairs >= self.vocab_size // 2:
            raise ValueError(
                f'pairs={self.pairs} of vocab_size={self.vocab_size}: the lower half of the '
                f'vocabulary has {self.vocab_size // 2 - 1} keys'
            )
        for name in ('length', 'test_length') if self.test_length else ('length',):
            if getattr(self, name) % 2 or getattr(self, name) < 4 * self.pairs:
                raise ValueError(
                    f'{name}={getattr(self, name)} must be even, and at least '
                    f'4·pairs={4 * self.pairs}: a pair and its query take two tokens each'
                )

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        half = self.vocab_size // 2
        return (
            '_',
            *(f'k{key}' for key in range(1, half)),
            *(f'v{value}' for value in range(half, self.vocab_size)),
        )

    def _sizes(self, length: int) -> tuple[int, int]:
        return 0, length

    def _outcomes(self, length: int) -> int:
        half = self.vocab_size // 2
        return max(1, half - self.pairs) ** (2 * self.pairs)

    def _sample(self, stream: Stream, length: int) -> Example:
        half, slots = self.vocab_size // 2, length // 2 - self.pairs
        keys = 1 + stream.distinct(half - 1, self.pairs)
        values = half + stream.distinct(self.vocab_size - half, self.pairs)
        queried = self.pairs + stream.weighted(
            np.arange(1, slots + 1) ** (self.power_a - 1), self.pairs
        )
        rows, weights = np.zeros((length // 2, 2), np.int32), np.zeros((length // 2, 2), np.float32)
        rows[: self.pairs] = rows[queried] = np.stack([keys, values], axis=1)
        weights[queried, 1] = 1
        return Example(None, rows.reshape(-1) + FIRST, weights.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Induction(Recall):
    """Induction heads, `4 * 7 2 … 5 * 7`: what followed the first `*` follows the second.

    Olsson et al. (2022).

    The form and the defaults are those of Gu & Dao (2023), "Mamba", section 4.1 and appendix E.1:
    one `*` among random symbols and one at the end, 16 symbols, trained at length 256 and tested
    from 64 to 2²⁰. The length is that of the sequence, the answer included. An epoch has as many
    examples as the paper's 204,800 steps of 8.
    """

    has_source = False

    alphabet: int = number(16, low=3, high=1_000_000)  # `*` included
    length: int = number(256, low=4, high=10_000_000, kw_only=True)
    test_length: int = number(512, low=4, high=10_000_000, also=(0,), kw_only=True)
    examples: int = number(1_638_400, low=1, high=1_000_000_000, kw_only=True)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return ('*', *map(str, range(1, self.alphabet)))

    def _sizes(self, length: int) -> tuple[int, int]:
        return 0, length

    def _outcomes(self, length: int) -> int:
        return (self.alphabet - 1) ** (length - 3)

    def _sample(self, stream: Stream, length: int) -> Example:
        symbols = 1 + stream.integers(self.alphabet - 1, length)
        place = stream.integers(length - 3, 1)[0]
        symbols[[place, -2]] = 0
        symbols[-1] = symbols[place + 1]
        return Example(None, symbols + FIRST, _last(length, 1))


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Recall):
    """`_ 3 _ _ 1 _ 7 _ > 3 1 7`: the symbols among the blanks, in order (Gu & Dao 2023, "Mamba").

    The settings are those of its appendix E.1: 16 symbols to memorize among `length` = 4,096
    tokens, of 16 kinds with the blank. Only the answer counts; each symbol of it sees those before
    it. The paper samples new examples for each of its 400,000 steps of 64; here an epoch has a
    million examples.
    """

    has_source = False

    alphabet: int = number(16, low=3, high=1_000_000)  # the blank included
    items: int = number(16, low=1, high=1_000)
    length: int = number(4096, low=1, high=10_000_000, kw_only=True)
    examples: int = number(1_000_000, low=1, high=1_000_000_000, kw_only=True)

    def check_relations(self) -> None:
        """See SyntheticTask."""
        shortest = min(self.length, self.test_length or self.length)
        if self.items > shortest:
            raise ValueError(f'items={self.items} do not fit into a length of {shortest}')

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return ('_', *map(str, range(1, self.alphabet)), '>')

    def _sizes(self, length: int) -> tuple[int, int]:
        return 0, length + 1 + self.items

    def _outcomes(self, length: int) -> int:
        return (self.alphabet - 1) ** self.items * math.comb(length, self.items)

    def _sample(self, stream: Stream, length: int) -> Example:
        items = 1 + stream.integers(self.alphabet - 1, self.items)
        context = np.zeros(length, np.int32)
        context[np.sort(stream.distinct(length, self.items))] = items
        target = np.concatenate([context, [self.alphabet], items]).astype(np.int32)
        return Example(None, target + FIRST, _last(len(target), self.items))


@dataclasses.dataclass(frozen=True)
class Dependency(SyntheticTask):
    """`3 1 4 * 7 5 0 2` → `7`: the symbol after `*`, among noise.

    `distance` noise symbols come before the pair of `*` and the symbol, and as many after it.

    A recurrent state has to carry the symbol over the noise, as over the long time lags of
    Hochreiter & Schmidhuber (1997), section 5. The noise on both sides makes the distance the same
    for a bidirectional encoder.
    """

    distance: int = number(50, low=1, high=10_000_000)
    test_distance: int = number(0, low=0, high=10_000_000)  # 0: as distance
    alphabet: int = number(10, low=2, high=1_000_000)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return (*map(str, range(self.alphabet)), '*')

    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        longer = () if self.test_distance in (0, self.distance) else (self.test_distance,)
        return (self.distance,), longer

    def _sizes(self, length: int) -> tuple[int, int]:
        return 2 * length + 3, 2

    def _outcomes(self, length: int) -> int:
        return self.alphabet ** (2 * length + 1)

    def _sample(self, stream: Stream, length: int) -> Example:
        symbols = stream.integers(self.alphabet, 2 * length + 2)
        symbols[length] = self.alphabet
        return Example(sentence(symbols), sentence(symbols[length + 1 : length + 2]))


def _last(length: int, count: int) -> np.ndarray:
    """Return [length] float32 weights: 1 for the last `count` tokens, else 0."""
    return (np.arange(length) >= length - count).astype(np.float32)

"""Algorithms on sequences, trained on short ones and tested on longer ones."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from transformer_jax.data.tasks.symbols import FIRST, Example, sentence
from transformer_jax.data.tasks.synthetic.base import Stream, SyntheticTask
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Growing(SyntheticTask):
    """A task with training lengths up to `length` and longer ones, up to `test_length`, for tests.

    Where both are equal, the test split has the lengths of training.

    Unless a task says otherwise, the defaults are those of Kazemnejad et al. (2023), "The Impact of
    Positional Encoding on Length Generalization in Transformers", section 3 and appendix D.1:
    lengths up to L = 20, each equally often, tests up to 2 L (of which the test split here has
    those above L), 100,000 training and 10,000 test examples.
    """

    length: int = number(20, low=1, high=100_000, kw_only=True)
    test_length: int = number(40, low=1, high=100_000, kw_only=True)
    held_out: int = number(10_000, low=1, high=1_000_000_000, kw_only=True)

    def check_relations(self) -> None:
        """See SyntheticTask."""
        if self.test_length < self.length:
            raise ValueError(
                f'test_length={self.test_length}, it takes at least length={self.length}'
            )

    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        return range(1, self.length + 1), range(self.length + 1, self.test_length + 1)


@dataclasses.dataclass(frozen=True)
class Copy(Growing):
    """`4 1 3` → `4 1 3` (Kazemnejad et al. 2023).

    Symbols of the alphabet, 50 as in the paper's sorting task, are equally likely.
    """

    alphabet: int = number(50, low=2, high=1_000_000)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return tuple(map(str, range(self.alphabet)))

    def _sizes(self, length: int) -> tuple[int, int]:
        return length + 1, length + 1

    def _outcomes(self, length: int) -> int:
        return self.alphabet**length

    def _sample(self, stream: Stream, length: int) -> Example:
        symbols = stream.integers(self.alphabet, length)
        return Example(sentence(symbols), sentence(self._answer(symbols)))

    def _answer(self, symbols: np.ndarray) -> np.ndarray:
        return symbols


@dataclasses.dataclass(frozen=True)
class Reverse(Copy):
    """`4 1 3` → `3 1 4` (Kazemnejad et al. 2023)."""

    def _answer(self, symbols: np.ndarray) -> np.ndarray:
        return symbols[::-1]


@dataclasses.dataclass(frozen=True)
class Sort(Copy):
    """`4 1 3` → `1 3 4`, the single-token variant of Kazemnejad et al. (2023).

    The alphabet has 50 symbols in a fixed order.
    """

    def _answer(self, symbols: np.ndarray) -> np.ndarray:
        return np.sort(symbols)


@dataclasses.dataclass(frozen=True)
class Addition(Growing):
    """`9 5 + 7` → `1 0 2` (Kazemnejad et al. 2023).

    The longer number has `length` digits, the other any number of them up to that; either comes
    first. With `reversed` the answer starts at its last digit, as carries run (Lee et al. 2023,
    "Teaching Arithmetic to Small Transformers").
    """

    reversed: bool = False

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return (*map(str, range(10)), '+')

    def _sizes(self, length: int) -> tuple[int, int]:
        return 2 * length + 2, length + 2

    def _outcomes(self, length: int) -> int:
        # Two equal numbers of `length` digits, and two short ones of equally few digits.
        return 8 * length**2 * 10**length

    def _sample(self, stream: Stream, length: int) -> Example:
        numbers = [
            _number(stream, digits) for digits in (length, 1 + int(stream.integers(length, 1)[0]))
        ]
        first, second = numbers if stream.integers(2, 1)[0] else numbers[::-1]
        total = sum(int(''.join(map(str, number))) for number in numbers)
        answer = np.array(list(map(int, str(total))))
        source = np.concatenate([first, [10], second])
        return Example(sentence(source), sentence(answer[::-1] if self.reversed else answer))


def _number(stream: Stream, digits: int) -> np.ndarray:
    """Sample the digits of a number that starts with 0 only if it is 0."""
    number = stream.integers(10, digits)
    if digits > 1:
        number[0] = 1 + stream.integers(9, 1)[0]
    return number


@dataclasses.dataclass(frozen=True)
class Parity(Growing):
    """`1 0 0 1 1` → class 1: whether the number of ones is odd, without intermediate steps.

    The lengths and numbers of strings are those of Bhattamishra et al. (2020), "On the Ability and
    Limitations of Transformers to Recognize Formal Languages": up to 50, tests up to 100, 10,000
    and 2,000 strings.
    """

    length: int = number(50, low=1, high=100_000, kw_only=True)
    test_length: int = number(100, low=1, high=100_000, kw_only=True)
    examples: int = number(10_000, low=1, high=1_000_000_000, kw_only=True)
    held_out: int = number(2_000, low=1, high=1_000_000_000, kw_only=True)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return '0', '1'

    def classes(self) -> tuple[str, ...]:
        """See Task."""
        return 'even', 'odd'

    def _sizes(self, length: int) -> tuple[int, int]:
        return length + 1, 1

    def _outcomes(self, length: int) -> int:
        return 2**length

    def _sample(self, stream: Stream, length: int) -> Example:
        bits = stream.integers(2, length)
        return Example(sentence(bits), np.array([bits.sum() % 2], np.int32))


@dataclasses.dataclass(frozen=True)
class Dyck(Growing):
    """Well-nested brackets of `kinds` kinds, at most `depth` open: Dyck-(k, m).

    A string comes from the automaton of Hewitt et al. (2020), given its length in brackets: open,
    close and end are equally likely where they are possible, and so are the kinds. Only closing
    brackets count, as the paper evaluates: only their kinds are determined by the tokens before
    them. `every_token=True` counts all tokens, EOS included, as the paper trains. Its setting:
    lengths up to 84 for depth 3 (180 for depth 5), tests up to twice that; 100,000 strings are
    about 4 million tokens, between its 2 and 20 million.
    """

    has_source = False

    kinds: int = number(2, low=1, high=100_000)
    depth: int = number(3, low=1, high=1_000)
    every_token: bool = False
    length: int = number(84, low=2, high=100_000, kw_only=True)
    test_length: int = number(168, low=1, high=100_000, kw_only=True)
    held_out: int = number(2_000, low=1, high=1_000_000_000, kw_only=True)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return tuple(bracket for kind in range(self.kinds) for bracket in (f'({kind}', f'{kind})'))

    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        longer = self.length // 2 * 2 + 2
        return range(2, self.length + 1, 2), range(longer, self.test_length + 1, 2)

    def _sizes(self, length: int) -> tuple[int, int]:
        return 0, length + 1

    def _outcomes(self, length: int) -> int:
        # Every four brackets may be ()() or, from depth 2 on, (()).
        shapes = 2 ** (length // 4) if self.depth > 1 else 1
        return self.kinds ** (length // 2) * shapes

    def _sample(self, stream: Stream, length: int) -> Example:
        chances, uniform = _openings(self.depth, length), stream.uniform(length).tolist()
        kinds = iter(stream.integers(self.kinds, length // 2).tolist())
        brackets, stack = [], []
        for left, chance in zip(range(length, 0, -1), uniform, strict=True):
            if chance < chances[left][len(stack)]:
                stack.append(next(kinds))
                brackets.append(2 * stack[-1])
            else:
                brackets.append(2 * stack.pop() + 1)
        target = sentence(np.array(brackets))
        closing = (target >= FIRST) & ((target - FIRST) % 2 == 1)
        return Example(None, target, np.where(self.every_token | closing, 1, 0).astype(np.float32))


@functools.lru_cache(maxsize=64)
def _openings(depth: int, length: int) -> list[list[float]]:
    """Return [left][open]: the chance that the next bracket opens.

    `left` brackets are still to come, `open` of those before are open, and all must be closed at
    the end.
    """
    up = np.array([0.5] * depth + [0])
    down = np.array([0] + [0.5] * (depth - 1) + [1])
    # For each depth the chance that the rest of the string ends with none open, up to a factor.
    ends = np.eye(depth + 1)[0]
    chances = [np.zeros(depth + 1)]
    for _ in range(length):
        opening, closing = up * np.append(ends[1:], 0), down * np.append(0, ends[:-1])
        ends = opening + closing
        chances.append(opening / np.where(ends > 0, ends, 1))
        ends = ends / ends.max()
    return [row.tolist() for row in chances]

"""ListOps: nested operations on lists of digits, and their value."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transformer_jax.data.tasks.symbols import Example, sentence
from transformer_jax.data.tasks.synthetic.base import Stream, SyntheticTask
from transformer_jax.ranges import number

DIGITS = 10
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    '[MIN': min,
    '[MAX': max,
    '[MED': lambda values: _median(sorted(values)),
    '[SM': lambda values: sum(values) % DIGITS,
}
CLOSE = DIGITS + len(OPERATORS)
OPERATION_P = 0.25  # the probability that an argument is itself an operation, not a digit
GOLDEN = (math.sqrt(5) - 1) / 2
COSTLIEST = 10**10  # multiplications; Long Range Arena's settings take 4·10⁸
RAREST = 1e-250  # probabilities of a whole expression below this begin to underflow float64


@dataclasses.dataclass(frozen=True)
class ListOps(SyntheticTask):
    """`[MAX 4 [MIN 7 2 ] 0 ]` → class 4 (Nangia & Bowman 2018).

    The settings are those of Long Range Arena (Tay et al. 2021).

    Operators are the minimum, the maximum, the median (of an even number of digits the mean of the
    two in the middle, rounded down) and the sum modulo 10. An argument is a digit with probability
    3/4, else an operation with 2 to `max_args` arguments, all numbers equally likely; the outermost
    operation is at depth 1, and at `max_depth` there are digits only. An expression has
    `min_length` to `max_length` tokens: an operator with its bracket, a digit and a closing bracket
    are one token each (EOS is not counted).

    The published set was made by sampling expressions and dropping those that were too short or too
    long. Here each length is chosen first, as often as it occurs among those, and then an
    expression of that length: the same distribution, without retries. 96,000 training examples,
    2,000 each for validation and test.
    """

    min_length: int = number(500, low=4, high=20_000)
    max_length: int = number(2000, low=4, high=20_000)
    max_depth: int = number(10, low=2, high=100)
    max_args: int = number(10, low=2, high=100)
    examples: int = number(96_000, low=1, high=1_000_000_000, kw_only=True)

    def check_relations(self) -> None:
        """See SyntheticTask."""
        if self.max_length < self.min_length:
            raise ValueError(
                f'max_length={self.max_length}, it takes at least min_length={self.min_length}'
            )
        cost = self.max_depth * self.max_args * self.max_length**2
        if cost > COSTLIEST:
            raise ValueError(
                f'max_depth={self.max_depth}, max_args={self.max_args} and max_length='
                f'{self.max_length}: their product, with the square of max_length, is {cost:.1e}, '
                f'but it takes {COSTLIEST:.0e} at most: the time to count all expressions'
            )

    def __post_init__(self):
        super().__post_init__()
        longest = _longest(self.max_depth, self.max_args)
        if self.max_length > longest:
            raise ValueError(
                f'max_length={self.max_length}, but with max_depth={self.max_depth} and max_args='
                f'{self.max_args} an expression has at most {longest} tokens; lower max_length, or '
                'raise max_depth or max_args'
            )
        if self._probabilities(self.lengths('validation')).sum() < RAREST:
            raise ValueError(
                f'min_length={self.min_length}, max_length={self.max_length}: with max_depth='
                f'{self.max_depth} and max_args={self.max_args} next to no expression is as long '
                'as that; lower min_length, or raise max_depth or max_args'
            )

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask."""
        return (*map(str, range(DIGITS)), *OPERATORS, ']')

    def classes(self) -> tuple[str, ...]:
        """See Task: the digits."""
        return tuple(map(str, range(DIGITS)))

    def length_at(self, split: str, index: int) -> int:
        """See SyntheticTask.

        Lengths have their natural frequencies; multiples of the golden ratio spread consecutive
        indices evenly over them.
        """
        lengths = self.lengths(split)
        sums = np.cumsum(self._probabilities(lengths))
        return lengths[int(np.searchsorted(sums, (1 - (index * GOLDEN) % 1) * sums[-1]))]

    def _lengths(self) -> tuple[Sequence[int], Sequence[int]]:
        return range(self.min_length, self.max_length + 1), ()

    def _sizes(self, length: int) -> tuple[int, int]:
        return length + 1, 1

    def _outcomes(self, length: int) -> int:
        # Each operation adds two tokens and at least one digit.
        return DIGITS ** -(-(length + 2) // 3)

    def _probabilities(self, lengths: Sequence[int]) -> np.ndarray:
        forests = _forests(self.max_depth, self.max_args, self.max_length)
        return forests[1][1, lengths[0] : lengths[-1] + 1]

    def _sample(self, stream: Stream, length: int) -> Example:
        forests = _forests(self.max_depth, self.max_args, self.max_length)
        symbols, value = _expression(forests, length, 1 - stream.uniform(3 * length))
        return Example(sentence(np.array(symbols)), np.array([value], np.int32))


def _median(ordered: list[int]) -> int:
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


def _longest(max_depth: int, max_args: int) -> int:
    """Return the tokens of the longest expression: all arguments above max_depth are operations."""
    longest = 1
    for _ in range(max_depth - 1):
        longest = 2 + max_args * longest
    return longest


@functools.lru_cache(maxsize=8)
def _forests(max_depth: int, max_args: int, max_length: int) -> list[np.ndarray]:
    """Return [depth][n, tokens]: the chance that n arguments at a depth have so many tokens."""
    nothing, tree = np.zeros((2, max_length + 1))
    nothing[0] = tree[1] = 1  # no argument has 0 tokens; at max_depth an argument is a digit
    forests = []
    for _ in range(max_depth):
        forest = [nothing]
        for _ in range(max_args):
            forest.append(np.convolve(forest[-1], tree)[: max_length + 1])
        forests.append(np.stack(forest))
        arguments = forests[-1][2:].mean(axis=0)
        tree = OPERATION_P * np.concatenate([[0, 0], arguments[:-2]])
        tree[1] += 1 - OPERATION_P
    return [np.zeros(0), *reversed(forests)]


def _expression(
    forests: list[np.ndarray], length: int, uniform: np.ndarray
) -> tuple[list[int], int]:
    """Sample an expression of `length` tokens, as likely as it is among all of that length.

    Each argument's number of tokens is sampled given the tokens that it shares with those to its
    right, by a search for the first cumulative sum that reaches a random number: what has
    probability 0 never occurs.

    Args:
        forests: see `_forests`.
        length: tokens of the expression.
        uniform: random numbers in (0, 1], three for each token.

    Returns:
        (the symbols, the value).
    """
    numbers = iter(uniform.tolist())
    operators = list(OPERATORS.values())
    symbols = []
    # (operator, values so far) of each list that is not closed; around them the expression itself
    open_lists: list[tuple[Any, list[int]]] = [(None, [])]
    # (depth, arguments, tokens of them together) that are still to be written, innermost last
    waiting = [(1, 1, length)]
    while waiting:
        depth, arguments, tokens = waiting.pop()
        if not arguments:
            if depth > 1:
                operator, values = open_lists.pop()
                open_lists[-1][1].append(operator(values))
                symbols.append(CLOSE)
            continue
        size = _first_size(forests[depth], arguments, tokens, next(numbers))
        waiting.append((depth, arguments - 1, tokens - size))
        if size == 1:
            symbols.append(math.ceil(next(numbers) * DIGITS) - 1)
            open_lists[-1][1].append(symbols[-1])
            continue
        operator = math.ceil(next(numbers) * len(operators)) - 1
        symbols.append(DIGITS + operator)
        open_lists.append((operators[operator], []))
        sums = forests[depth + 1][2:, size - 2].cumsum()
        inner = 2 + int(sums.searchsorted(next(numbers) * sums[-1]))
        waiting.append((depth + 1, inner, size - 2))
    return symbols, open_lists[0][1][0]


def _first_size(forest: np.ndarray, arguments: int, tokens: int, uniform: float) -> int:
    """Sample the tokens of the first of some arguments that have `tokens` together."""
    if arguments == 1:
        return tokens
    if tokens == arguments:
        return 1
    reached = uniform * forest.item(arguments, tokens)
    if reached <= forest.item(1, 1) * forest.item(arguments - 1, tokens - 1):  # a digit: most are
        return 1
    most = tokens - arguments + 1
    sums = (forest[1, 1 : most + 1] * forest[arguments - 1, tokens - most : tokens][::-1]).cumsum()
    return 1 + int(sums.searchsorted(min(reached, sums[-1])))

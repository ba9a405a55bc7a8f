"""Symbolic masks: predicates on (query position, key position, segments), combined with & and |.

A mask is a frozen dataclass that says which keys a query may see; nothing is materialised until
`allowed` is asked for the tile at hand, so that an engine that tiles never holds a T×S matrix.
Positions count within a segment, and patterns look both ways: causality and segments are the site's
to add.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.batch import Tokens


class Mask(abc.ABC):
    """The base of all masks: hashable, so that compiled programs are keyed by it."""

    def reach(self) -> tuple[float, float]:
        """How far back and ahead of its own position a query may see at most; math.inf where
        nothing bounds it.
        """
        return math.inf, math.inf

    @abc.abstractmethod
    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        """allowed_BTS: whether each query may see each key."""

    def within(self, site: 'Mask') -> 'Mask':
        """What a site and this mask allow; a `Prefix` anywhere in this mask opens the
        site's causality.
        """
        return site.opened(self.prefix_length()) & self

    def prefix_length(self) -> int:
        """How many first positions of a segment every query may see, even ahead of it."""
        return 0

    def opened(self, length: int) -> 'Mask':
        """The mask with causality, and nothing else, giving way to a prefix of
        `length` positions.
        """
        return self

    def __and__(self, other: 'Mask') -> 'Mask':
        return And(self, other)

    def __or__(self, other: 'Mask') -> 'Mask':
        return Or(self, other)


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
    left: Mask
    right: Mask
    symbol: ClassVar[str]  # as a spec writes it

    def prefix_length(self) -> int:
        return max(self.left.prefix_length(), self.right.prefix_length())

    def opened(self, length: int) -> Mask:
        return type(self)(self.left.opened(length), self.right.opened(length))


class And(_Pair):
    """What both allow."""

    symbol = '&'

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) & self.right.allowed(query, key)

    def reach(self) -> tuple[float, float]:
        return tuple(map(min, self.left.reach(), self.right.reach()))


class Or(_Pair):
    """What either allows."""

    symbol = '|'

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) | self.right.allowed(query, key)

    def reach(self) -> tuple[float, float]:
        return tuple(map(max, self.left.reach(), self.right.reach()))


@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Keys of the query's own segment; padding (segment 0) is never seen and sees nothing."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        same_BTS = query.segments_BT[:, :, None] == key.segments_BT[:, None, :]
        return same_BTS & (key.segments_BT != 0)[:, None, :]


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every key."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return jnp.ones((*query.positions_BT.shape, key.positions_BT.shape[1]), bool)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Keys at or before the query's position."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return _offsets(query, key) >= 0

    def reach(self) -> tuple[float, float]:
        return math.inf, 0

    def opened(self, length: int) -> Mask:
        return Prefix(length) if length else self


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Keys at or before the query's position, and the first `length` positions: prefix-LM (Raffel
    et al. 2020, 3.2.1).

    In a decoder it takes the place of causality, also where it is combined:
    `window(64) & prefix(8)` looks ahead within both. The prefix must then be there from the start:
    its positions see each other, so a cache takes them in one step (one by one, each would miss
    those after it), and the loss leaves out the tokens that they would predict.
    """

    length: int

    def __post_init__(self):
        _at_least(1, length=self.length)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return (_offsets(query, key) >= 0) | (key.positions_BT < self.length)[:, None, :]

    def reach(self) -> tuple[float, float]:
        return math.inf, self.length - 1

    def prefix_length(self) -> int:
        return self.length


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Keys fewer than `size` positions away, the query's own position counted."""

    size: int

    def __post_init__(self):
        _at_least(1, size=self.size)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return abs(_offsets(query, key)) < self.size

    def reach(self) -> tuple[float, float]:
        return self.size - 1, self.size - 1


@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """Every `rate`-th key of a window of size·rate: a dilated sliding window (Beltagy et al. 2020,
    section 3.1).
    """

    size: int
    rate: int

    def __post_init__(self):
        _at_least(1, size=self.size, rate=self.rate)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        offsets_BTS = _offsets(query, key)
        return (abs(offsets_BTS) < self.size * self.rate) & (offsets_BTS % self.rate == 0)

    def reach(self) -> tuple[float, float]:
        return (self.size - 1) * self.rate, (self.size - 1) * self.rate


@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """A window of `stride`, and every `stride`-th key beyond (Sparse Transformer, Child et al.
    2019, section 4.3).
    """

    stride: int

    def __post_init__(self):
        _at_least(1, stride=self.stride)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        offsets_BTS = _offsets(query, key)
        return (abs(offsets_BTS) < self.stride) | (offsets_BTS % self.stride == 0)


@dataclasses.dataclass(frozen=True)
class Fixed(Mask):
    """The query's own block of `stride`, and the last `summary` positions of every block (Child
    et al. 2019, 4.3).
    """

    stride: int
    summary: int = 1

    def __post_init__(self):
        _at_least(1, stride=self.stride, summary=self.summary)
        if self.summary > self.stride:
            raise ValueError(f'summary={self.summary} must be at most stride={self.stride}')

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        own_BTS = _offsets(query, key, self.stride) == 0
        return own_BTS | (key.positions_BT % self.stride >= self.stride - self.summary)[:, None, :]


@dataclasses.dataclass(frozen=True)
class GlobalTokens(Mask):
    """The first `tokens` positions, which see all and are seen by all.

    `window(64) | global_tokens(1)` is Longformer's pattern (Beltagy et al. 2020, section 3.1); in a decoder
    the attention sinks of StreamingLLM (Xiao et al. 2024).
    """

    tokens: int

    def __post_init__(self):
        _at_least(1, tokens=self.tokens)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return (query.positions_BT < self.tokens)[:, :, None] | (key.positions_BT < self.tokens)[
            :, None, :
        ]


@dataclasses.dataclass(frozen=True)
class BigBird(Mask):
    """BigBird in blocks of `block` positions (Zaheer et al. 2020, BIGBIRD-ITC; the defaults are the
    base model's).

    A query block sees the `window` blocks around it, the `first` blocks, and `random` others, drawn
    by `seed` among the blocks of the first `length` positions of a segment; the `first` blocks see
    all. Query blocks beyond `length` have no random ones. In a decoder those random blocks that lie
    ahead are lost.
    """

    block: int = 64
    window: int = 3
    first: int = 2
    random: int = 3
    length: int = 4096
    seed: int = 0

    def __post_init__(self):
        _at_least(1, block=self.block, window=self.window)
        _at_least(0, first=self.first, random=self.random, seed=self.seed)
        _at_least(self.block, length=self.length)
        if self.window % 2 == 0:
            raise ValueError(f'window={self.window} must be odd: the query block is its middle')

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        near_BTS = abs(_offsets(query, key, self.block)) <= self.window // 2
        allowed_BTS = (
            near_BTS | GlobalTokens(self.first * self.block).allowed(query, key)
            if self.first
            else near_BTS
        )
        draws_CR = jnp.asarray(_draws(self))  # C query blocks, R draws
        blocks_BT = query.positions_BT // self.block
        draws_BTR = jnp.where(
            (blocks_BT < len(draws_CR))[:, :, None], draws_CR[blocks_BT % len(draws_CR)], -1
        )
        for draw in range(draws_CR.shape[1]):
            allowed_BTS |= (
                draws_BTR[:, :, draw, None] == (key.positions_BT // self.block)[:, None, :]
            )
        return allowed_BTS


@functools.cache
def _draws(mask: BigBird) -> np.ndarray:
    """The random key blocks of each query block, −1 where there are too few blocks to draw from."""
    rng = np.random.default_rng(mask.seed)
    blocks = np.arange(mask.length // mask.block)
    draws = np.full((len(blocks), mask.random), -1)
    for block in blocks[mask.first :]:
        others = blocks[(blocks >= mask.first) & (abs(blocks - block) > mask.window // 2)]
        drawn = rng.permutation(others)[: mask.random]
        draws[block, : len(drawn)] = drawn
    return draws


def neg_inf(dtype: Any) -> jax.Array:
    """The score of a forbidden key: finite, so that a row that may see nothing stays finite."""
    return jnp.asarray(jnp.finfo(dtype).min, dtype)


def _offsets(query: Tokens, key: Tokens, block: int = 1) -> jax.Array:
    """offsets_BTS: how many positions, or blocks of them, the query is ahead of the key."""
    return (query.positions_BT // block)[:, :, None] - (key.positions_BT // block)[:, None, :]


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(
                f'{name}={value} must be {"positive" if least == 1 else f"{least} or more"}'
            )


# What a spec may name; segments are the model's to add, and causality in a decoder.
MASKS: dict[str, type[Mask]] = {
    'full': Full,
    'causal': Causal,
    'prefix': Prefix,
    'window': Window,
    'dilated': Dilated,
    'strided': Strided,
    'fixed': Fixed,
    'global_tokens': GlobalTokens,
    'bigbird': BigBird,
}

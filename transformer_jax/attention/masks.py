"""Masks: which keys a query may see. The table MASKS has those that a spec can name.

They combine with & and |, as in `window(64) | global_tokens(1)`; see `mask_base`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.mask_base import Mask, offsets
from transformer_jax.batch import Tokens
from transformer_jax.ranges import number

MOST_POSITIONS = 10_000_000
MOST_BLOCKS = 10_000  # of BigBird: the time to choose random ones grows with their square


@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Keys of the query's own segment; padding (segment 0) is never seen and sees nothing."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        same_BTS = query.segments_BT[:, :, None] == key.segments_BT[:, None, :]
        return same_BTS & (key.segments_BT != 0)[:, None, :]


@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every key; the default of all kinds."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return jnp.ones((*query.positions_BT.shape, key.positions_BT.shape[1]), bool)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Keys at or before the query's position."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return offsets(query, key) >= 0

    def reach(self) -> tuple[float, float]:
        return math.inf, 0

    def opened(self, length: int) -> Mask:
        return Prefix(length) if length else self


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Prefix-LM: keys at or before the query's position, and the first `length` positions.

    Raffel et al. 2020, section 3.2.1. In a decoder it replaces the causal mask, also where it is
    part of a combination: `window(64) & prefix(8)` looks ahead to keys that are in both. The
    positions of the prefix see each other, so that a cache must take the whole prefix in one step
    (one by one, each token would miss those after it). Targets within the prefix are visible
    inputs and do not count in the loss.
    """

    length: int = number(low=1, high=10_000_000)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return (offsets(query, key) >= 0) | (key.positions_BT < self.length)[:, None, :]

    def reach(self) -> tuple[float, float]:
        return math.inf, self.length - 1

    def prefix_length(self) -> int:
        return self.length


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Keys fewer than `size` positions away; the query's own position counts as one of them."""

    size: int = number(low=1, high=10_000_000)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return abs(offsets(query, key)) < self.size

    def reach(self) -> tuple[float, float]:
        return self.size - 1, self.size - 1


@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """Every `rate`-th key of a window of size·rate positions.

    The dilated sliding window of Beltagy et al. 2020 (Longformer), section 3.1.
    """

    size: int = number(low=1, high=10_000_000)
    rate: int = number(low=1, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if self.size * self.rate > MOST_POSITIONS:
            raise ValueError(
                f'size={self.size} times rate={self.rate} must be {MOST_POSITIONS:,} at most'
            )

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        offsets_BTS = offsets(query, key)
        return (abs(offsets_BTS) < self.size * self.rate) & (offsets_BTS % self.rate == 0)

    def reach(self) -> tuple[float, float]:
        return (self.size - 1) * self.rate, (self.size - 1) * self.rate


@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """A window of `stride` positions, and every `stride`-th key beyond it.

    Child et al. 2019 (Sparse Transformer), section 4.3.
    """

    stride: int = number(low=1, high=10_000_000)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        offsets_BTS = offsets(query, key)
        return (abs(offsets_BTS) < self.stride) | (offsets_BTS % self.stride == 0)


@dataclasses.dataclass(frozen=True)
class Fixed(Mask):
    """The query's own block of `stride` positions, and the last `summary` positions of every block.

    Child et al. 2019 (Sparse Transformer), section 4.3.
    """

    stride: int = number(low=1, high=10_000_000)
    summary: int = number(1, low=1, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if self.summary > self.stride:
            raise ValueError(f'summary={self.summary} must be at most stride={self.stride}')

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        own_BTS = offsets(query, key, self.stride) == 0
        return own_BTS | (key.positions_BT % self.stride >= self.stride - self.summary)[:, None, :]


@dataclasses.dataclass(frozen=True)
class GlobalTokens(Mask):
    """The first `tokens` positions see every key, and every query sees them.

    `window(64) | global_tokens(1)` is the pattern of Longformer (Beltagy et al. 2020, section 3.1).
    In a decoder these are the attention sinks of StreamingLLM (Xiao et al. 2024).
    """

    tokens: int = number(low=1, high=10_000_000)

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        query_BT1 = (query.positions_BT < self.tokens)[:, :, None]
        return query_BT1 | (key.positions_BT < self.tokens)[:, None, :]


@dataclasses.dataclass(frozen=True)
class BigBird(Mask):
    """BigBird in blocks of `block` positions: BIGBIRD-ITC of Zaheer et al. 2020.

    A block of queries sees the `window` blocks around it, the `first` blocks, and `random` other
    blocks, which are chosen by `seed` among the blocks of the first `length` positions of a
    segment. The `first` blocks see all keys. Blocks of queries beyond `length` have no random
    blocks. In a decoder, random blocks that are ahead of the query are not seen and are not
    replaced. The defaults are those of the paper's base model.
    """

    block: int = number(64, low=1, high=10_000_000)
    window: int = number(3, low=1, high=10_000_000)
    first: int = number(2, low=0, high=10_000_000)
    random: int = number(3, low=0, high=1_000)
    length: int = number(4096, low=1, high=10_000_000)
    seed: int = number(0, low=0, high=2**32 - 1)

    def __post_init__(self):
        super().__post_init__()
        if not self.block <= self.length <= MOST_BLOCKS * self.block:
            raise ValueError(
                f'length={self.length} must be 1 to {MOST_BLOCKS:,} times block={self.block}'
            )
        if self.first * self.block > MOST_POSITIONS:
            raise ValueError(
                f'first={self.first} times block={self.block} must be {MOST_POSITIONS:,} at most'
            )
        if self.window % 2 == 0:
            raise ValueError(f'window={self.window} must be odd: the query block is its middle')

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        allowed_BTS = abs(offsets(query, key, self.block)) <= self.window // 2
        if self.first:
            allowed_BTS |= GlobalTokens(self.first * self.block).allowed(query, key)
        random_CR = jnp.asarray(_random_blocks(self))  # C blocks of queries, R key blocks for each
        blocks_BT = query.positions_BT // self.block
        random_BTR = jnp.where(
            (blocks_BT < len(random_CR))[:, :, None], random_CR[blocks_BT % len(random_CR)], -1
        )
        for index in range(random_CR.shape[1]):
            allowed_BTS |= (
                random_BTR[:, :, index, None] == (key.positions_BT // self.block)[:, None, :]
            )
        return allowed_BTS


@functools.cache
def _random_blocks(mask: BigBird) -> np.ndarray:
    """Return the random key blocks of each query block [C, R]; R is at most `random`.

    −1 stands where fewer blocks are left to choose from than elsewhere.
    """
    rng = np.random.default_rng(mask.seed)
    blocks = np.arange(mask.length // mask.block)
    chosen = np.full((len(blocks), mask.random), -1)
    for block in blocks[mask.first :]:
        others = blocks[(blocks >= mask.first) & (abs(blocks - block) > mask.window // 2)]
        permuted = rng.permutation(others)[: mask.random]
        chosen[block, : len(permuted)] = permuted
    # Columns that no block fills would only cost the compiler time.
    return chosen[:, (chosen >= 0).any(0)]


# Masks that a spec can name. The model adds `Segments` everywhere and `Causal` in a decoder.
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

"""Encodings of the relative position that add a number to each score.

The number does not depend on what queries and keys contain.
"""

import bisect
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions.base import Position, Tile, broadcast_heads, group_bias
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Alibi(Position):
    """Attention with linear biases: −slope · |i − j|, with a fixed slope for each head.

    Press et al. 2022, section 3. The paper is causal; in encoders, keys before and after the query
    get the same bias.
    """

    def score(self, params: Any, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        slopes_1KG11 = broadcast_heads(
            jnp.asarray(alibi_slopes(tile.heads[0]), jnp.float32), tile.heads
        )
        return scores_BKGTS - slopes_1KG11 * _distance_B11TS(tile)


def alibi_slopes(heads: int) -> np.ndarray:
    """Return slopes_N of N heads: 2^(−8/N), 2^(−16/N), …, 2^−8 where N is a power of 2.

    For other N: those of the next lower power of 2, then every other one of those of the next
    higher power, as in the authors' code (Press et al. 2022, section 3).
    """
    power = 1 << (heads.bit_length() - 1)
    below_P = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between_P = 2.0 ** (-4 / power * np.arange(1, 2 * power, 2))
    return np.concatenate([below_P, between_P[: heads - power]])


@dataclasses.dataclass(frozen=True)
class T5(Position):
    """A learned number for each head and bucket of offsets; far buckets have more offsets.

    Raffel et al. 2020, section 2.1. Half of the buckets have one distance each, the others have
    limits in a geometric progression up to `max_distance`, and the last one has all distances
    beyond. Where no query sees ahead, all buckets are for keys before the query. Elsewhere half of
    them are for keys before it and half for keys after it; the bucket of distance 0 after it is
    never used, and kept, as in the authors' code.

    Options:
        shared: one table for all layers of a stack, as in the paper, or one for each layer.
        buckets: how many, an even number.
        max_distance: see above.
    """

    shared: bool = dataclasses.field(default=True, kw_only=True)
    buckets: int = number(32, low=4, high=1_000)
    max_distance: int = number(128, low=1, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if self.buckets % 2:
            raise ValueError(f'buckets={self.buckets}, it takes an even number')
        if self.max_distance <= self.buckets // 2:
            raise ValueError(
                f'max_distance={self.max_distance} must be more than half of buckets={self.buckets}'
            )

    def params(self, scope: ParamScope) -> jax.Array:
        return scope.parameter(
            'buckets',
            (self.buckets, scope.heads.num_heads),
            ('position', 'heads'),
            jax.nn.initializers.normal(0.02),
        )

    def score(self, params: jax.Array, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        # The bucket of every offset is known at trace time, so that a score costs one lookup.
        far = self.max_distance
        buckets_O = t5_buckets(np.arange(-far, far + 1), self.buckets, far, tile.causal)
        bias_ON = params[buckets_O]
        return scores_BKGTS + group_bias(
            bias_ON[jnp.clip(tile.offsets_BTS(), -far, far) + far], tile.heads
        )


def t5_buckets(offsets_O: np.ndarray, buckets: int, max_distance: int, causal: bool) -> np.ndarray:
    """Return the bucket of each offset, query position − key position.

    With n buckets for a side, distance d < n/2 has bucket d, and a larger one has bucket
    min(n − 1, n/2 + ⌊n/2 · log(d / (n/2)) / log(max_distance / (n/2))⌋). The limits between buckets
    are computed with integers, because rounded logarithms can be wrong at them.
    """
    size = buckets if causal else buckets // 2
    near, wide = size // 2, size - size // 2  # how many buckets have one distance, and several
    distances_O = np.maximum(offsets_O, 0) if causal else np.abs(offsets_O)
    limits = [
        bisect.bisect_left(
            range(max_distance), max_distance**m * near ** (wide - m), key=lambda d: d**wide
        )
        for m in range(1, wide)
    ]
    far_O = near + np.searchsorted(limits, distances_O, side='right')
    return np.where(distances_O < near, distances_O, far_O) + (
        0 if causal else size * (offsets_O < 0)
    )


@dataclasses.dataclass(frozen=True)
class Kerple(Position):
    """Conditionally positive definite kernels of the distance (Chi et al. 2022).

    r₁ and r₂ are learned for each head, both above 0; r₂ < 2 in the power form.

    Options:
        form: log, −r₁ log(1 + r₂ |i − j|); or power, −r₁ |i − j|^r₂.
    """

    form: str = 'log'

    def __post_init__(self):
        super().__post_init__()
        if self.form not in ('log', 'power'):
            raise ValueError(f'form={self.form!r}, it takes log, power')

    def params(self, scope: ParamScope) -> dict[str, jax.Array]:
        shape, init = (scope.heads.num_heads,), jax.nn.initializers.normal(1.0)
        return {name: scope.parameter(name, shape, ('heads',), init) for name in ('r1', 'r2')}

    def score(self, params: dict[str, jax.Array], scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        r1_1KG11, r2_1KG11 = (broadcast_heads(params[name], tile.heads) for name in ('r1', 'r2'))
        distance_B11TS = _distance_B11TS(tile)
        if self.form == 'log':
            kernel_BKGTS = jnp.log1p(jax.nn.softplus(r2_1KG11) * distance_B11TS)
        else:  # distance 0 separately, because the derivative of 0^r by r is computed as 0 · log 0
            power_BKGTS = jnp.maximum(distance_B11TS, 1) ** (2 * jax.nn.sigmoid(r2_1KG11))
            kernel_BKGTS = jnp.where(distance_B11TS > 0, power_BKGTS, 0)
        return scores_BKGTS - jax.nn.softplus(r1_1KG11) * kernel_BKGTS


@dataclasses.dataclass(frozen=True)
class Fire(Position):
    """f(ψ(|i − j|) / ψ(max(L, i))) with ψ(x) = log(c x + 1), in float32.

    FIRE (Li et al. 2024, section 3). f is a perceptron with one hidden layer. c and L are learned,
    starting from 0.1 and `length`. The paper is causal; in encoders, keys before and after the
    query are treated alike, and the ratio can be more than 1 for keys after it.

    Options:
        shared: one f for all layers of a stack (FIRE-S), or one for each layer.
        width: of the hidden layer.
        length: the initial L, in tokens.
    """

    shared: bool = dataclasses.field(default=False, kw_only=True)
    width: int = number(32, low=1, high=100_000)
    length: float = number(512.0, low=1e-6, high=1e9)

    def params(self, scope: ParamScope) -> dict[str, jax.Array]:
        normal, F, N = jax.nn.initializers.normal(1.0), self.width, scope.heads.num_heads
        return {
            'c': scope.parameter('c', (), (), jax.nn.initializers.constant(0.1)),
            # A factor of `length`, because a step of the optimizer is too small for L itself.
            'length': scope.parameter('length', (), (), jax.nn.initializers.ones),
            'w_F': scope.parameter('in_kernel', (F,), ('rank',), normal),
            'b_F': scope.parameter('in_bias', (F,), ('rank',), normal),
            # Without a bias: a number added to all scores of a row does not change the softmax.
            'w_FN': scope.parameter(
                'out_kernel', (F, N), ('rank', 'heads'), jax.nn.initializers.lecun_normal()
            ),
        }

    def score(self, params: dict[str, jax.Array], scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        c, length = jnp.abs(params['c']), jnp.abs(params['length']) * self.length
        furthest_BT1 = jnp.maximum(length, tile.query_tokens.positions_BT.astype(jnp.float32))[
            ..., None
        ]
        x_BTS = jnp.log1p(c * jnp.abs(tile.offsets_BTS())) / (jnp.log1p(c * furthest_BT1) + 1e-6)
        w_F, b_F, w_FN = params['w_F'], params['b_F'], params['w_FN']
        h_BTSF = jax.nn.relu(x_BTS[..., None] * w_F[None, None, None] + b_F[None, None, None])
        bias_BTSN = jnp.einsum('BTSF,FN->BTSN', h_BTSF, w_FN)
        return scores_BKGTS + group_bias(bias_BTSN, tile.heads)


def _distance_B11TS(tile: Tile) -> jax.Array:
    return jnp.abs(tile.offsets_BTS())[:, None, None].astype(jnp.float32)

"""Encodings of the relative position that add a number to each score, whatever queries and
keys hold.
"""

import bisect
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions.base import Position, Tile, group_bias, broadcast_heads


@dataclasses.dataclass(frozen=True)
class Alibi(Position):
    """Attention with linear biases: −slope · |i − j|, a fixed slope per head (Press et al. 2022,
    section 3).

    The paper is causal; in encoders keys on both sides of the query are lowered alike.
    """

    def score(self, params: Any, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        slopes_1KG11 = broadcast_heads(
            jnp.asarray(alibi_slopes(tile.heads[0]), jnp.float32), tile.heads
        )
        return scores_BKGTS - slopes_1KG11 * _distance_B11TS(tile)


def alibi_slopes(heads: int) -> np.ndarray:
    """slopes_N: 2^(−8/N), 2^(−16/N), …, 2^−8 for N a power of two.

    For other N those of the power of two below, and then every other one of the next power's, as
    the authors' code has it (Press et al. 2022, section 3).
    """
    power = 1 << (heads.bit_length() - 1)
    below_P = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between_P = 2.0 ** (-4 / power * np.arange(1, 2 * power, 2))
    return np.concatenate([below_P, between_P[: heads - power]])


@dataclasses.dataclass(frozen=True)
class T5(Position):
    """A learned number per head and bucket of offsets, wider the further away (Raffel et al. 2020,
    section 2.1).

    Half of the buckets hold one distance each, the rest are spaced logarithmically up to
    `max_distance`, and the last one holds all beyond. Where no query sees ahead all buckets look
    back; else half of them look each way (the one for distance 0 ahead is kept, as in the authors'
    code, and never used). `shared`: one table for all layers of a stack, as in the paper.
    """

    shared: bool = dataclasses.field(default=True, kw_only=True)
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self):
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f'buckets={self.buckets}, it takes an even number of 4 or more')
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
        # Buckets are known at trace time, so that a score costs one lookup, of its offset.
        far = self.max_distance
        buckets_O = t5_buckets(np.arange(-far, far + 1), self.buckets, far, tile.causal)
        bias_ON = params[buckets_O]
        return scores_BKGTS + group_bias(
            bias_ON[jnp.clip(tile.offsets_BTS(), -far, far) + far], tile.heads
        )


def t5_buckets(offsets_O: np.ndarray, buckets: int, max_distance: int, causal: bool) -> np.ndarray:
    """buckets_O of offsets, query position − key position.

    With n buckets on a side, distance d < n/2 has bucket d, a larger one min(n − 1,
    n/2 + ⌊n/2 · log(d / (n/2)) / log(max_distance / (n/2))⌋). Limits between buckets are found in
    exact arithmetic: logarithms round at them.
    """
    size = buckets if causal else buckets // 2
    near, wide = size // 2, size - size // 2  # buckets of one distance, and of several
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

    `form` log: −r₁ log(1 + r₂ |i − j|); power: −r₁ |i − j|^r₂; r₁, r₂ > 0 are learned per head, and
    r₂ < 2 in a power.
    """

    form: str = 'log'

    def __post_init__(self):
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
        else:  # 0^r is 0, but its derivative by r is computed as 0 · log 0.
            power_BKGTS = jnp.maximum(distance_B11TS, 1) ** (2 * jax.nn.sigmoid(r2_1KG11))
            kernel_BKGTS = jnp.where(distance_B11TS > 0, power_BKGTS, 0)
        return scores_BKGTS - jax.nn.softplus(r1_1KG11) * kernel_BKGTS


@dataclasses.dataclass(frozen=True)
class Fire(Position):
    """f(ψ(|i − j|) / ψ(max(L, i))), ψ(x) = log(c x + 1) (Li et al. 2024, section 3), in float32.

    f is a perceptron with one hidden layer of `width`; c is learned from 0.1 and L from `length`.
    The paper is causal; in encoders keys on both sides of the query are treated alike, and the
    ratio may exceed 1 ahead. `shared`: one f for all layers of a stack (FIRE-S).
    """

    shared: bool = dataclasses.field(default=False, kw_only=True)
    width: int = 32
    length: float = 512.0

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f'width={self.width} must be positive')
        if self.length <= 0:
            raise ValueError(f'length={self.length} must be positive')

    def params(self, scope: ParamScope) -> dict[str, jax.Array]:
        normal, F, N = jax.nn.initializers.normal(1.0), self.width, scope.heads.num_heads
        return {
            'c': scope.parameter('c', (), (), jax.nn.initializers.constant(0.1)),
            # A factor of `length`, so that steps of the optimiser's size move it.
            'length': scope.parameter('length', (), (), jax.nn.initializers.ones),
            'w_F': scope.parameter('in_kernel', (F,), ('rank',), normal),
            'b_F': scope.parameter('in_bias', (F,), ('rank',), normal),
            # Without a bias: a number added to all scores of a row leaves the softmax as it is.
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

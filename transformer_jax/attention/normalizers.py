"""Normalizers: from scores to weights, the softmax and its alternatives.

All work in float32 on scores_BKGTS and allowed_BTS, and give a weight of exactly 0 to a forbidden
key, and so to every key of a row that may see nothing.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.attention.mask_base import neg_inf
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import Ranged


class Normalizer(Ranged, abc.ABC):
    """The base class of all normalizers."""

    needs_all_keys: ClassVar[bool] = True  # False: weights can be computed in tiles of keys
    dense: ClassVar[bool] = True  # True: every allowed key gets a weight above 0

    def params(self, scope: ParamScope) -> Any:
        """Declare the learned arrays that `weights` reads."""
        return ()

    @abc.abstractmethod
    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        """Return weights_BKGTS of the scores.

        Args:
            params: from `params`.
            scores_BKGTS: float32, of all keys of a row; forbidden keys hold anything.
            allowed_BTS: which keys each query may see.
        """


class Exponential(Normalizer):
    """exp(s) / (Σ exp(s) + exp(extra)): the family that engines can sum in tiles of keys."""

    needs_all_keys = False

    def extra_KG11(self, params: Any) -> jax.Array | None:
        """Return the logit of one more key, which has no value; None: there is no such key."""
        return None

    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        allowed_BKGTS = allowed_BTS[:, None, None]
        scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, neg_inf(scores_BKGTS.dtype))
        extra_KG11 = self.extra_KG11(params)
        top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
        if extra_KG11 is not None:
            top_BKGT1 = jnp.maximum(top_BKGT1, jax.lax.stop_gradient(extra_KG11)[None])
        weights_BKGTS = jnp.where(allowed_BKGTS, jnp.exp(scores_BKGTS - top_BKGT1), 0)
        total_BKGT1 = weights_BKGTS.sum(-1, keepdims=True)
        if extra_KG11 is not None:
            return weights_BKGTS / (total_BKGT1 + jnp.exp(extra_KG11[None] - top_BKGT1))
        # The sum is 0 in a row without allowed keys and at least exp(0) = 1 in all others. The
        # minimum of 0.5 changes the former alone. A minimum of 1 would be equal to the sum where
        # one key holds all the weight, and `maximum` halves the gradient of equal arguments.
        return weights_BKGTS / jnp.maximum(total_BKGT1, 0.5)


@dataclasses.dataclass(frozen=True)
class Softmax(Exponential):
    """exp(s) / Σ exp(s)."""


@dataclasses.dataclass(frozen=True)
class OffByOne(Exponential):
    """exp(s) / (1 + Σ exp(s)): the weights of a head may sum to less than 1.

    Miller 2023, "Attention Is Off By One".
    """

    def extra_KG11(self, params: Any) -> jax.Array:
        return jnp.zeros((1, 1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Sink(Exponential):
    """exp(s) / (exp(c) + Σ exp(s)), with a learned logit c for each head, initially 0.

    It is the logit of a key without a value, which can take the weight that a head does not need
    (Xiao et al. 2024, StreamingLLM, section 3.3); one logit for each head as in gpt-oss (OpenAI
    2025).
    """

    def params(self, scope: ParamScope) -> jax.Array:
        heads = scope.heads
        sink_N = scope.parameter('sink', (heads.num_heads,), ('heads',), jax.nn.initializers.zeros)
        return sink_N.reshape(heads.kv_heads, heads.num_heads // heads.kv_heads, 1, 1)

    def extra_KG11(self, params: jax.Array) -> jax.Array:
        return params


class Elementwise(Normalizer):
    """Each weight depends on its own score and on how many keys the row may see."""

    needs_all_keys = False

    @abc.abstractmethod
    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        """Return weights_BKGTS of any tile of keys.

        Args:
            params: from `params`.
            scores_BKGTS: float32 scores of the tile; 0 at forbidden keys.
            n_BT: how many keys of the whole row each query may see, at least 1.
        """

    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        allowed_BKGTS = allowed_BTS[:, None, None]
        n_BT = jnp.maximum(allowed_BTS.sum(-1), 1)
        weights_BKGTS = self.transform(params, jnp.where(allowed_BKGTS, scores_BKGTS, 0), n_BT)
        return jnp.where(allowed_BKGTS, weights_BKGTS, 0)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Elementwise):
    """σ(s − log n), where n is how many keys the row may see.

    Ramapuram et al. 2024, with their bias b = −log n.
    """

    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(scores_BKGTS - jnp.log(n_BT)[:, None, None, :, None])


@dataclasses.dataclass(frozen=True)
class Relu2(Elementwise):
    """max(s, 0)² / n, where n is how many keys the row may see.

    Squares: Hua et al. 2022. Division by n: Wortsman et al. 2023.
    """

    dense = False

    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.relu(scores_BKGTS)) / n_BT[:, None, None, :, None]


class Entmax(Normalizer):
    """α-entmax: argmax over p in the simplex of p·s + H_α(p), which has exact zeros.

    The solution is p = [(α − 1) s − τ]₊^(1/(α − 1)) (Peters et al. 2019, section 3). A subclass
    finds τ exactly, by sorting.
    """

    dense = False
    alpha: ClassVar[float]

    @abc.abstractmethod
    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        """Return τ_BKGT1 of z = (α − 1) s, sorted in decreasing order from its maximum 0."""

    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        allowed_BKGTS = allowed_BTS[:, None, None]
        scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, neg_inf(scores_BKGTS.dtype))
        return jnp.where(allowed_BKGTS, _entmax(scores_BKGTS, self), 0)


@dataclasses.dataclass(frozen=True)
class Sparsemax(Entmax):
    """The point of the simplex that is nearest to the scores: entmax with α = 2.

    Martins & Astudillo 2016, algorithm 1.
    """

    alpha = 2.0

    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        ranks_S = jnp.arange(1.0, z_BKGTS.shape[-1] + 1)
        inside_BKGTS = 1 + _row(ranks_S) * z_BKGTS > jnp.cumsum(z_BKGTS, axis=-1)
        sum_BKGT1 = jnp.where(inside_BKGTS, z_BKGTS, 0).sum(-1, keepdims=True)
        return (sum_BKGT1 - 1) / inside_BKGTS.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Entmax15(Entmax):
    """1.5-entmax, between softmax and sparsemax (Peters et al. 2019, algorithm 2)."""

    alpha = 1.5

    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        ranks_S = jnp.arange(1.0, z_BKGTS.shape[-1] + 1)
        mean_BKGTS = jnp.cumsum(z_BKGTS, axis=-1) / _row(ranks_S)
        squares_BKGTS = jnp.cumsum(jnp.square(z_BKGTS), axis=-1) / _row(ranks_S)
        variance_BKGTS = squares_BKGTS - jnp.square(mean_BKGTS)
        # τ for every possible support, the first 1, 2, … keys; the keys that are not below the τ
        # that ends with them are the support.
        taus_BKGTS = mean_BKGTS - jnp.sqrt(jnp.maximum(_row(1 / ranks_S) - variance_BKGTS, 0))
        inside_BKGTS = taus_BKGTS <= z_BKGTS
        # τ again for that support, with the mean subtracted first: cumulative sums of squares lose
        # digits in long rows in float32.
        size_BKGT1 = inside_BKGTS.sum(-1, keepdims=True)
        mean_BKGT1 = jnp.where(inside_BKGTS, z_BKGTS, 0).sum(-1, keepdims=True) / size_BKGT1
        squares_BKGTS = jnp.where(inside_BKGTS, jnp.square(z_BKGTS - mean_BKGT1), 0)
        rest_BKGT1 = jnp.maximum(1 - squares_BKGTS.sum(-1, keepdims=True), 0)
        return mean_BKGT1 - jnp.sqrt(rest_BKGT1 / size_BKGT1)


def _row(x_S: jax.Array) -> jax.Array:
    return x_S[None, None, None, None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(scores_BKGTS: jax.Array, kind: Entmax) -> jax.Array:
    z_BKGTS = (kind.alpha - 1) * (scores_BKGTS - scores_BKGTS.max(-1, keepdims=True))
    # The largest z is 0 and its weight is at most 1, so that τ ≥ −1: every z below −1 has weight 0.
    # −2 in its place avoids an overflow in the sums.
    z_BKGTS = jnp.maximum(z_BKGTS, -2)
    tau_BKGT1 = kind.threshold(-jnp.sort(-z_BKGTS, axis=-1))
    return jax.nn.relu(z_BKGTS - tau_BKGT1) ** (1 / (kind.alpha - 1))


@_entmax.defjvp
def _entmax_jvp(kind: Entmax, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """Apply the Jacobian diag(s) − s sᵀ / Σs, where s = p^(2 − α) on the support and 0 elsewhere.

    Peters et al. 2019, section 3.
    """
    weights_BKGTS, (tangent_BKGTS,) = _entmax(*primals, kind), tangents
    slope_BKGTS = jnp.where(weights_BKGTS > 0, weights_BKGTS ** (2 - kind.alpha), 0)
    total_BKGT1 = slope_BKGTS.sum(-1, keepdims=True)
    mean_BKGT1 = (slope_BKGTS * tangent_BKGTS).sum(-1, keepdims=True) / total_BKGT1
    return weights_BKGTS, slope_BKGTS * (tangent_BKGTS - mean_BKGT1)


NORMALIZERS: dict[str, type[Normalizer]] = {
    'softmax': Softmax,
    'off_by_one': OffByOne,
    'sink': Sink,
    'sigmoid': Sigmoid,
    'relu2': Relu2,
    'sparsemax': Sparsemax,
    'entmax15': Entmax15,
}

"""From scores to weights: the softmax and what has been put in its place.

All work in float32 on scores_BKGTS and the mask's allowed_BTS, and give 0 to a forbidden key and to
every key of a row that may see nothing.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.attention.masks import neg_inf
from transformer_jax.layers.param_scope import ParamScope


class Normalizer(abc.ABC):
    """The base of all normalizers."""

    needs_all_keys: ClassVar[bool] = True  # the weights cannot be had tile by tile along S
    dense: ClassVar[bool] = True  # every allowed key gets some weight

    def params(self, scope: ParamScope) -> Any:
        """The learned arrays that `weights` reads."""
        return ()

    @abc.abstractmethod
    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        """weights_BKGTS of the scores."""


class Exponential(Normalizer):
    """exp(s) / (Σ exp(s) + exp(extra)): the family that an engine may sum up tile by tile."""

    needs_all_keys = False

    def extra_KG11(self, params: Any) -> jax.Array | None:
        """The logit of a key that has no value and takes a share of the weight; None: there
        is none.
        """
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
        # A row with an allowed key sums to exp(0) = 1 or more, an empty one to 0: a floor between
        # them touches empty rows alone. A floor of 1 would tie where one key holds all the weight,
        # and a tie halves the gradient.
        return weights_BKGTS / jnp.maximum(total_BKGT1, 0.5)


@dataclasses.dataclass(frozen=True)
class Softmax(Exponential):
    """exp(s) / Σ exp(s)."""


@dataclasses.dataclass(frozen=True)
class OffByOne(Exponential):
    """exp(s) / (1 + Σ exp(s)): a head may look at nothing (Miller 2023, Attention Is Off
    By One).
    """

    def extra_KG11(self, params: Any) -> jax.Array:
        return jnp.zeros((1, 1, 1, 1))


@dataclasses.dataclass(frozen=True)
class Sink(Exponential):
    """exp(s) / (exp(c) + Σ exp(s)), with a learned logit c for each head, at first 0.

    A key without value for the weight to sink into (Xiao et al. 2024, StreamingLLM, section 3.3),
    one for each head as in gpt-oss (OpenAI 2025).
    """

    def params(self, scope: ParamScope) -> jax.Array:
        heads = scope.heads
        sink_N = scope.parameter('sink', (heads.num_heads,), ('heads',), jax.nn.initializers.zeros)
        return sink_N.reshape(heads.kv_heads, heads.num_heads // heads.kv_heads, 1, 1)

    def extra_KG11(self, params: jax.Array) -> jax.Array:
        return params


class Elementwise(Normalizer):
    """Each weight depends on its own score, and on how many keys the row may see."""

    needs_all_keys = False

    @abc.abstractmethod
    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        """weights_BKGTS of any tile of keys; n_BT ≥ 1 counts the keys of the whole row that it
        may see.
        """

    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        allowed_BKGTS = allowed_BTS[:, None, None]
        n_BT = jnp.maximum(allowed_BTS.sum(-1), 1)
        weights_BKGTS = self.transform(params, jnp.where(allowed_BKGTS, scores_BKGTS, 0), n_BT)
        return jnp.where(allowed_BKGTS, weights_BKGTS, 0)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Elementwise):
    """σ(s − log n), n the keys that the row may see (Ramapuram et al. 2024, with b = −log n)."""

    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(scores_BKGTS - jnp.log(n_BT)[:, None, None, :, None])


@dataclasses.dataclass(frozen=True)
class Relu2(Elementwise):
    """max(s, 0)² / n, n the keys that the row may see (squares: Hua et al. 2022; 1/n: Wortsman
    et al. 2023).
    """

    dense = False

    def transform(self, params: Any, scores_BKGTS: jax.Array, n_BT: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.relu(scores_BKGTS)) / n_BT[:, None, None, :, None]


class Entmax(Normalizer):
    """argmax_p p·s + H_α(p) over the simplex, which gives exact zeros (Peters et al. 2019,
    section 3).

    The solution is p = [(α − 1) s − τ]₊^(1/(α − 1)); a subclass finds τ exactly, by sorting.
    """

    dense = False
    alpha: ClassVar[float]

    @abc.abstractmethod
    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        """τ_BKGT1 of z = (α − 1) s, sorted from the largest, 0, downward."""

    def weights(self, params: Any, scores_BKGTS: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
        allowed_BKGTS = allowed_BTS[:, None, None]
        scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, neg_inf(scores_BKGTS.dtype))
        return jnp.where(allowed_BKGTS, _entmax(scores_BKGTS, self), 0)


@dataclasses.dataclass(frozen=True)
class Sparsemax(Entmax):
    """The point of the simplex nearest to the scores (Martins & Astudillo 2016, algorithm 1);
    α = 2.
    """

    alpha = 2.0

    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        ranks_S = jnp.arange(1.0, z_BKGTS.shape[-1] + 1)
        inside_BKGTS = 1 + _row(ranks_S) * z_BKGTS > jnp.cumsum(z_BKGTS, axis=-1)
        sum_BKGT1 = jnp.where(inside_BKGTS, z_BKGTS, 0).sum(-1, keepdims=True)
        return (sum_BKGT1 - 1) / inside_BKGTS.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Entmax15(Entmax):
    """1.5-entmax, between softmax and sparsemax (Peters et al. 2019, algorithm 2); α = 1.5."""

    alpha = 1.5

    def threshold(self, z_BKGTS: jax.Array) -> jax.Array:
        ranks_S = jnp.arange(1.0, z_BKGTS.shape[-1] + 1)
        mean_BKGTS = jnp.cumsum(z_BKGTS, axis=-1) / _row(ranks_S)
        variance_BKGTS = jnp.cumsum(jnp.square(z_BKGTS), axis=-1) / _row(ranks_S) - jnp.square(
            mean_BKGTS
        )
        # τ if the support were the first so many; those that lie above their own τ are the support.
        taus_BKGTS = mean_BKGTS - jnp.sqrt(jnp.maximum(_row(1 / ranks_S) - variance_BKGTS, 0))
        inside_BKGTS = taus_BKGTS <= z_BKGTS
        # Once more for that support, centred: sums of squares in float32 lose digits in long rows.
        size_BKGT1 = inside_BKGTS.sum(-1, keepdims=True)
        mean_BKGT1 = jnp.where(inside_BKGTS, z_BKGTS, 0).sum(-1, keepdims=True) / size_BKGT1
        squares_BKGTS = jnp.where(inside_BKGTS, jnp.square(z_BKGTS - mean_BKGT1), 0)
        return mean_BKGT1 - jnp.sqrt(
            jnp.maximum(1 - squares_BKGTS.sum(-1, keepdims=True), 0) / size_BKGT1
        )


def _row(x_S: jax.Array) -> jax.Array:
    return x_S[None, None, None, None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entmax(scores_BKGTS: jax.Array, kind: Entmax) -> jax.Array:
    z_BKGTS = (kind.alpha - 1) * (scores_BKGTS - scores_BKGTS.max(-1, keepdims=True))
    # The largest z is 0 and has at most the weight 1, so τ ≥ −1: what lies below −1 is outside,
    # however far.
    z_BKGTS = jnp.maximum(z_BKGTS, -2)
    tau_BKGT1 = kind.threshold(-jnp.sort(-z_BKGTS, axis=-1))
    return jax.nn.relu(z_BKGTS - tau_BKGT1) ** (1 / (kind.alpha - 1))


@_entmax.defjvp
def _entmax_jvp(kind: Entmax, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """The Jacobian is diag(s) − s sᵀ / Σs, s = p^(2 − α) on the support, else 0 (Peters et al.
    2019, section 3).
    """
    weights_BKGTS, (tangent_BKGTS,) = _entmax(*primals, kind), tangents
    slope_BKGTS = jnp.where(weights_BKGTS > 0, weights_BKGTS ** (2 - kind.alpha), 0)
    mean_BKGT1 = (slope_BKGTS * tangent_BKGTS).sum(-1, keepdims=True) / slope_BKGTS.sum(
        -1, keepdims=True
    )
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

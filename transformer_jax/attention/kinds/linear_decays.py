"""Decays of linear attention: the factor that each token applies to the state of the past.

Letters of this file: R features of a head, L rank of a gate.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import Ranged, number


class Decay(Ranged, abc.ABC):
    """The base class of all decays."""

    chunk: ClassVar[int] = 64  # the chunk of `linear`, in tokens, where its own option is 0

    @abc.abstractmethod
    def log(self, scope: ParamScope, x_BSD: jax.Array, features: int) -> jax.Array:
        """Return log a ≤ 0 in float32, the logarithm of the factor of each token.

        Args:
            scope: declares learned arrays.
            x_BSD: activations.
            features: R.

        Returns:
            an array [B, S, K, R]; K and R may be 1 where all heads or all features share it.
        """


@dataclasses.dataclass(frozen=True)
class NoDecay(Decay):
    """a = 1, no decay: every key keeps its weight."""

    def log(self, scope: ParamScope, x_BSD: jax.Array, features: int) -> jax.Array:
        return jnp.zeros((*x_BSD.shape[:2], 1, 1), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Fixed(Decay):
    """a = 1 − 2^(−5−n) in key-value head n (RetNet, Sun et al. 2023, equation 8)."""

    def log(self, scope: ParamScope, x_BSD: jax.Array, features: int) -> jax.Array:
        log_K = jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(scope.heads.kv_heads)))), jnp.float32)
        return jnp.broadcast_to(log_K[None, None, :, None], (*x_BSD.shape[:2], log_K.size, 1))


@dataclasses.dataclass(frozen=True)
class Gated(Decay):
    """a = sigmoid(x W₁ W₂ + b)^(1/τ), a factor for each feature of a key head.

    GLA (Yang et al. 2024, section 4.4).

    Options:
        rank: the size between W₁ and W₂.
        tau: τ; a larger one makes the decay weaker.
    """

    rank: int = number(16, low=1, high=1_000_000)
    tau: float = number(16.0, low=1e-6, high=1e6)
    chunk: ClassVar[int] = 16  # tiles have a number for each pair of tokens and each feature

    def log(self, scope: ParamScope, x_BSD: jax.Array, features: int) -> jax.Array:
        D, K = x_BSD.shape[-1], scope.heads.kv_heads
        normal = jax.nn.initializers.lecun_normal
        w_DL = scope.parameter('decay_in', (D, self.rank), ('embed', 'rank'), normal())
        w_LKR = scope.parameter(
            'decay_out',
            (self.rank, K, features),
            ('rank', 'kv_heads', 'head_dim'),
            normal(in_axis=0, out_axis=(1, 2)),
        )
        b_KR = scope.parameter(
            'decay_bias', (K, features), ('kv_heads', 'head_dim'), jax.nn.initializers.zeros
        )
        low_BSL = jnp.einsum('BSD,DL->BSL', x_BSD, w_DL.astype(x_BSD.dtype))
        logits_BSKR = jnp.einsum('BSL,LKR->BSKR', low_BSL.astype(jnp.float32), w_LKR)
        return jax.nn.log_sigmoid(logits_BSKR + b_KR[None, None]) / self.tau


def sum_between(decay_BCKR: jax.Array) -> jax.Array:
    """Return Σ decay over the tokens after key s up to query c, an array [B, C, S, K, R].

    C queries and S keys are the tokens of a chunk; 0 where there are no tokens between. Each pair
    has a sum of its own: the difference of two sums from the start of the chunk would lose a weak
    decay after a strong one, by rounding.
    """
    C = decay_BCKR.shape[1]
    after_CS = jnp.arange(C)[:, None] > jnp.arange(C)[None]
    decay_BCSKR = jnp.where(after_CS[None, :, :, None, None], decay_BCKR[:, :, None], 0)
    return jnp.cumsum(decay_BCSKR, axis=1)


DECAYS: dict[str, type[Decay]] = {
    'none': NoDecay,
    'fixed': Fixed,
    'gated': Gated,
}

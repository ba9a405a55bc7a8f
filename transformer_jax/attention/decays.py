"""Decays of linear attention's state: what of the past a token lets through.

Letters of this file: R features of a head, L rank of a gate.
"""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.layers.param_scope import ParamScope


class Decay(abc.ABC):
    """The base of all decays."""

    chunk: ClassVar[int] = 64  # tokens, where the kind does not say

    @abc.abstractmethod
    def log(self, scope: ParamScope, x_BSD: jax.Array, features: int) -> jax.Array:
        """float32 log a_BSKR ≤ 0; K and R may be 1 where all heads or features share it."""


@dataclasses.dataclass(frozen=True)
class NoDecay(Decay):
    """a = 1: nothing is forgotten."""

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
    """a = sigmoid(x W₁ W₂ + b)^(1/τ), a number for each feature of a key (GLA, Yang et al. 2024,
    section 4.4).

    `rank`: the width between W₁ and W₂.
    """

    rank: int = 16
    tau: float = 16.0
    chunk: ClassVar[int] = 16  # its tiles hold a number for each pair of tokens and feature

    def __post_init__(self):
        for name in ('rank', 'tau'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name}={getattr(self, name)}, it takes a positive number')

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


DECAYS: dict[str, type[Decay]] = {
    'none': NoDecay,
    'fixed': Fixed,
    'gated': Gated,
}

"""Feature maps of linear attention: φ(q)·φ(k) is the weight of a key before it is normalised.

R stands for the features of a head. All work in float32.
"""

import abc
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np


class FeatureMap(abc.ABC):
    """The base of all feature maps."""

    positive: ClassVar[bool] = True  # φ(q)·φ(k) > 0, so that a sum of weights can divide

    def size(self, head_dim: int) -> int:
        """R, the features that `head_dim` numbers become."""
        return head_dim

    @abc.abstractmethod
    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        """φ_BTNR of keys."""

    def map_queries(self, x_BTNH: jax.Array) -> jax.Array:
        """φ_BTNR of queries, up to a positive factor for each: it cancels in the division by the
        sum of weights.
        """
        return self.map_keys(x_BTNH)


@dataclasses.dataclass(frozen=True)
class Identity(FeatureMap):
    """x / d^¼: the weight is q·k / √d, of either sign (Sun et al. 2023; Yang et al. 2024)."""

    positive = False

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        return x_BTNH.astype(jnp.float32) * x_BTNH.shape[-1] ** -0.25


@dataclasses.dataclass(frozen=True)
class Elu(FeatureMap):
    """elu(x) + 1 (Katharopoulos et al. 2020, equation 7)."""

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        # Below 0 it is exp(x), which jax.nn.elu(x) + 1 would round away from −17 on.
        x_BTNH = x_BTNH.astype(jnp.float32)
        return jnp.where(x_BTNH > 0, x_BTNH + 1, jnp.exp(jnp.where(x_BTNH > 0, 0, x_BTNH)))


@dataclasses.dataclass(frozen=True)
class Relu(FeatureMap):
    """max(0, x) + 10⁻³ (Performer-ReLU of Choromanski et al. 2021); the small number keeps
    sums positive.
    """

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        return jax.nn.relu(x_BTNH.astype(jnp.float32)) + 1e-3


@dataclasses.dataclass(frozen=True)
class Taylor(FeatureMap):
    """[1, x, x⊗x/√2] of x / d^¼: the weight is 1 + s + s²/2 with s = q·k / √d (Based, Arora
    et al. 2024).

    It has 1 + d + d² features: meant for a small model.head_dim (16 in the paper) beside a larger
    model.value_dim.
    """

    def size(self, head_dim: int) -> int:
        return 1 + head_dim + head_dim**2

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        x_BTNH = x_BTNH.astype(jnp.float32) * x_BTNH.shape[-1] ** -0.25
        squares_BTNHH = x_BTNH[..., :, None] * x_BTNH[..., None, :] * 2**-0.5
        one_BTN1 = jnp.ones_like(x_BTNH[..., :1])
        return jnp.concatenate(
            [one_BTN1, x_BTNH, squares_BTNHH.reshape(*x_BTNH.shape[:-1], -1)], axis=-1
        )


@dataclasses.dataclass(frozen=True)
class Favor(FeatureMap):
    """FAVOR+: exp(ω·x − |x|²/2) / √R of x / d^¼ (Choromanski et al. 2021, Lemma 1).

    The expected weight is exp(q·k / √d), so that `features` → ∞ is softmax attention; `seed`
    redraws the ω. Queries are divided by their own largest feature. Keys are not: a maximum over
    keys would let the future reach the past. Their features are at most exp(|ω|²/2) / √R, and
    underflow to 0 from |k|² ≈ 100·√d on, where the estimate has long been of no use.
    """

    features: int = 256
    seed: int = 0

    def __post_init__(self):
        for name in ('features', 'seed'):
            if getattr(self, name) < (name == 'features'):
                raise ValueError(
                    f'{name}={getattr(self, name)}, it takes '
                    f'{"a positive number" if name == "features" else "0 or more"}'
                )

    def size(self, head_dim: int) -> int:
        return self.features

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        return jnp.exp(self._exponents(x_BTNH)) * self.features**-0.5

    def map_queries(self, x_BTNH: jax.Array) -> jax.Array:
        exponents_BTNR = self._exponents(x_BTNH)
        return jnp.exp(exponents_BTNR - exponents_BTNR.max(-1, keepdims=True)) * self.features**-0.5

    def _exponents(self, x_BTNH: jax.Array) -> jax.Array:
        x_BTNH = x_BTNH.astype(jnp.float32) * x_BTNH.shape[-1] ** -0.25
        w_RH = jnp.asarray(orthogonal_gaussians(self.features, x_BTNH.shape[-1], self.seed))
        products_BTNR = jnp.einsum('BTNH,RH->BTNR', x_BTNH, w_RH)
        return products_BTNR - 0.5 * jnp.square(x_BTNH).sum(-1, keepdims=True)


@functools.lru_cache(maxsize=32)
def orthogonal_gaussians(features: int, head_dim: int, seed: int) -> np.ndarray:
    """w_RH, each row N(0, I), float32; rows are orthogonal within blocks of `head_dim` (Choromanski
    et al. 2021).

    A block is the Q of a Gaussian matrix, uniform over rotations once the signs of R's diagonal are
    positive; its rows get norms of Gaussian vectors drawn anew.
    """
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-features // head_dim)):
        q_HH, r_HH = np.linalg.qr(rng.normal(size=(head_dim, head_dim)))
        norms_H = np.linalg.norm(rng.normal(size=(head_dim, head_dim)), axis=-1)
        blocks.append((q_HH * np.sign(np.diag(r_HH))).T * norms_H[:, None])
    return np.concatenate(blocks)[:features].astype(np.float32)


FEATURES: dict[str, type[FeatureMap]] = {
    'none': Identity,
    'elu': Elu,
    'relu': Relu,
    'taylor': Taylor,
    'favor': Favor,
}

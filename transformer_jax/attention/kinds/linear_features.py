"""Feature maps of linear attention: φ(q)·φ(k) is the weight of a key before the division.

Letter of this file: R features of a head. All feature maps work in float32.
"""

import abc
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.ranges import Ranged, number


class FeatureMap(Ranged, abc.ABC):
    """The base class of all feature maps."""

    positive: ClassVar[bool] = True  # φ(q)·φ(k) > 0, so that weights can be divided by their sum

    def size(self, head_dim: int) -> int:
        """Return R, the number of features of a head with `head_dim` dimensions."""
        return head_dim

    @abc.abstractmethod
    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        """Return the features of keys [B, T, N, R] in float32."""

    def map_queries(self, x_BTNH: jax.Array) -> jax.Array:
        """Return the features of queries [B, T, N, R] in float32.

        They may have any positive factor for each query and head: it cancels in the division by the
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
        # exp(x) below 0, because `jax.nn.elu(x) + 1` rounds to 0 for x < −17 in float32.
        x_BTNH = x_BTNH.astype(jnp.float32)
        return jnp.where(x_BTNH > 0, x_BTNH + 1, jnp.exp(jnp.where(x_BTNH > 0, 0, x_BTNH)))


@dataclasses.dataclass(frozen=True)
class Relu(FeatureMap):
    """max(0, x) + 10⁻³, the Performer-ReLU of Choromanski et al. 2021.

    10⁻³ keeps the sum of weights positive.
    """

    def map_keys(self, x_BTNH: jax.Array) -> jax.Array:
        return jax.nn.relu(x_BTNH.astype(jnp.float32)) + 1e-3


@dataclasses.dataclass(frozen=True)
class Taylor(FeatureMap):
    """[1, x, x⊗x/√2] of x / d^¼, so that the weight is 1 + s + s²/2 with s = q·k / √d.

    Based (Arora et al. 2024). There are 1 + d + d² features, so it is meant for a small
    `model.head_dim` (16 in the paper) with a larger `model.value_dim`.
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
    """FAVOR+: exp(ω·x − |x|²/2) / √R of x / d^¼, with random ω (Choromanski et al. 2021, Lemma 1).

    The expected weight is exp(q·k / √d): with R → ∞ this is softmax attention.

    For numerical range, the features of a query are divided by the largest of them. Those of keys
    are not, because a maximum over keys would let later tokens influence earlier ones. They are at
    most exp(|ω|²/2) / √R, and underflow to 0 where |k|² is more than about 100·√d. The estimate is
    useless for much smaller keys already.

    Options:
        features: R, the number of ω.
        seed: from which the ω are sampled; they are not learned.
    """

    features: int = number(256, low=1, high=100_000)
    seed: int = number(0, low=0, high=2**32 - 1)

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
    """Return float32 w_RH whose rows are N(0, I), orthogonal within blocks of `head_dim` rows.

    Choromanski et al. 2021. A block is the Q of a QR decomposition of a Gaussian matrix, with the
    signs that make the diagonal of R positive: it is then uniform over rotations. Its rows are
    multiplied by the norms of independent Gaussian vectors.
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

"""Rotary position embeddings, and how their rotations are slowed down for longer texts than were
trained on.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import spec
from transformer_jax.positions.base import Position

PAIRS = ('half', 'interleaved')


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The base of all scalings: `none`, every pair of dimensions turns as it was trained."""

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        """Radians per position of each pair of dimensions, the fastest first, from those
        without scaling.
        """
        return rates_F

    def gain(self) -> float:
        """What queries and keys are multiplied by."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Stretched(Scaling):
    """The base of the scalings for texts `factor` times as long."""

    factor: float

    def __post_init__(self):
        if self.factor < 1:
            raise ValueError(f'factor={self.factor}, it takes a number of 1 or more')


@dataclasses.dataclass(frozen=True)
class Linear(Stretched):
    """Position interpolation: positions divided by `factor` (Chen et al. 2023, section 2.3)."""

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        return rates_F / self.factor


@dataclasses.dataclass(frozen=True)
class Ntk(Stretched):
    """A larger base: the slowest pair is slowed by `factor`, the fastest not (Peng et al. 2023,
    definition 1).

    θ' = θ · factor^(R / (R − 2)) for R rotated dimensions.
    """

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        F = len(rates_F)
        return rates_F * self.factor ** (-np.arange(F) / max(F - 1, 1))


@dataclasses.dataclass(frozen=True)
class Yarn(Stretched):
    """YaRN (Peng et al. 2023, definitions 2 and 3).

    Pairs that turn more than `beta_fast` times in the `original` length of training are left alone,
    those that turn less than `beta_slow` times are slowed by `factor`, in between there is a ramp;
    and queries and keys are multiplied by √(1/t) = 0.1 ln(factor) + 1 each, so that scores are
    sharper by 1/t.
    """

    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.original < 1:
            raise ValueError(f'original={self.original} must be positive')
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f'beta_fast={self.beta_fast} must be more than beta_slow={self.beta_slow}'
            )

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        turns_F = self.original * rates_F / (2 * math.pi)
        kept_F = np.clip((turns_F - self.beta_slow) / (self.beta_fast - self.beta_slow), 0, 1)
        return kept_F * rates_F + (1 - kept_F) * rates_F / self.factor

    def gain(self) -> float:
        return 0.1 * math.log(self.factor) + 1


SCALINGS: dict[str, type[Scaling]] = {
    'none': Scaling,
    'linear': Linear,
    'ntk': Ntk,
    'yarn': Yarn,
}


@dataclasses.dataclass(frozen=True)
class Rope(Position):
    """Pairs of dimensions turned by an angle in proportion to the position (Su et al. 2021,
    equation 34).

    Pair i of the R rotated dimensions turns by θ^(−2i/R) radians per position, so that products of
    queries and keys depend on the offset alone. `fraction` of a head's dimensions, the first ones,
    are rotated (GPT-J, GPT-NeoX). `pairs`: 'half' pairs dimension i with i + R/2 (GPT-NeoX, Llama),
    'interleaved' 2i with 2i + 1 (the paper, GPT-J).
    """

    theta: float = 1e4
    fraction: float = 1.0
    pairs: str = 'half'
    scaling: Scaling = spec.nested(SCALINGS, Scaling())

    def __post_init__(self):
        if self.theta <= 1:
            raise ValueError(f'theta={self.theta}, it takes a number above 1')
        if not 0 < self.fraction <= 1:
            raise ValueError(f'fraction={self.fraction} is outside 0 < value ≤ 1')
        if self.pairs not in PAIRS:
            raise ValueError(f'pairs={self.pairs!r}, it takes {", ".join(PAIRS)}')

    def incompatibility(self, d_model: int, head_dim: int) -> str:
        width = round(self.fraction * head_dim)
        if width and width % 2 == 0:
            return ''
        return f'{width} of the {head_dim} dimensions of a head (model.head_dim) would be rotated'

    def rotate(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        R = round(self.fraction * x_BTNH.shape[-1])
        rates_F = self.scaling.rates(self.theta ** (-np.arange(0, R, 2) / R)).astype(np.float32)
        angles_BT1F = positions_BT[:, :, None, None].astype(jnp.float32) * rates_F[None, None, None]
        cos_BT1F, sin_BT1F = jnp.cos(angles_BT1F), jnp.sin(angles_BT1F)
        axis, shape = (-2, (2, R // 2)) if self.pairs == 'half' else (-1, (R // 2, 2))
        x32_BTNH = x_BTNH.astype(jnp.float32) * self.scaling.gain()
        pairs_BTNR, rest_BTNX = x32_BTNH[..., :R], x32_BTNH[..., R:]
        a_BTNF, b_BTNF = jnp.moveaxis(pairs_BTNR.reshape(*x_BTNH.shape[:-1], *shape), axis, 0)
        turned = jnp.stack(
            [a_BTNF * cos_BT1F - b_BTNF * sin_BT1F, a_BTNF * sin_BT1F + b_BTNF * cos_BT1F], axis
        )
        return jnp.concatenate([turned.reshape(pairs_BTNR.shape), rest_BTNX], axis=-1).astype(
            x_BTNH.dtype
        )

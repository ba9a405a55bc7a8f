"""Rotary position embeddings (RoPE), and their scalings for texts longer than those of training.

Letters of this file: R rotated dimensions, F = R/2 pairs of them, X the other dimensions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import spec
from transformer_jax.positions.base import Position
from transformer_jax.ranges import Ranged, number

PAIRS = ('half', 'interleaved')


@dataclasses.dataclass(frozen=True)
class Scaling(Ranged):
    """The base class of all scalings, and the scaling `none`."""

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        """Return the angle in radians per position of each pair, given those without scaling.

        Pairs are in the order of decreasing angles.
        """
        return rates_F

    def gain(self) -> float:
        """Return the factor of queries and of keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Stretched(Scaling):
    """The base class of the scalings for texts that are `factor` times as long."""

    factor: float = number(low=1, high=1e6)


@dataclasses.dataclass(frozen=True)
class Linear(Stretched):
    """Position interpolation: positions divided by `factor` (Chen et al. 2023, section 2.3)."""

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        return rates_F / self.factor


@dataclasses.dataclass(frozen=True)
class Ntk(Stretched):
    """NTK-aware scaling: a larger base θ' = θ · factor^(R / (R − 2)).

    Peng et al. 2023, definition 1. The angle of the slowest pair is divided by `factor`, and that
    of the fastest pair does not change.
    """

    def rates(self, rates_F: np.ndarray) -> np.ndarray:
        F = len(rates_F)
        return rates_F * self.factor ** (-np.arange(F) / max(F - 1, 1))


@dataclasses.dataclass(frozen=True)
class Yarn(Stretched):
    """YaRN (Peng et al. 2023, definitions 2 and 3).

    Pairs that turn more than `beta_fast` times within the length of training are unchanged. The
    angles of those that turn less than `beta_slow` times are divided by `factor`. Between them the
    change is linear in the number of turns. Queries and keys are multiplied by
    √(1/t) = 0.1 ln(factor) + 1 each, so that scores are multiplied by 1/t.

    Options:
        factor: how many times longer the texts are.
        original: the length of training, in tokens.
        beta_fast, beta_slow: numbers of turns, see above.
    """

    original: int = number(low=1, high=10_000_000)
    beta_fast: float = number(32.0, low=0, high=1e6)
    beta_slow: float = number(1.0, low=0, high=1e6)

    def __post_init__(self):
        super().__post_init__()
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
    """Pairs of dimensions of queries and keys, rotated by an angle in proportion to the position.

    Su et al. 2021, equation 34. Pair i of the R rotated dimensions is rotated by θ^(−2i/R) radians
    per position, so that q·k depends on the offset alone.

    Options:
        theta: the base θ.
        fraction: of the dimensions of a head, from the first, that are rotated (GPT-J, GPT-NeoX).
        pairs: half, dimension i with i + R/2 (GPT-NeoX, Llama); or interleaved, 2i with 2i + 1 (the
            paper, GPT-J).
        scaling: for longer texts: none, linear, ntk or yarn.
    """

    theta: float = number(1e4, above=1, high=1e12)
    fraction: float = number(1.0, above=0, high=1)
    pairs: str = 'half'
    scaling: Scaling = spec.nested(SCALINGS, Scaling())

    def __post_init__(self):
        super().__post_init__()
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
        rotated = jnp.stack(
            [a_BTNF * cos_BT1F - b_BTNF * sin_BT1F, a_BTNF * sin_BT1F + b_BTNF * cos_BT1F], axis
        )
        return jnp.concatenate([rotated.reshape(pairs_BTNR.shape), rest_BTNX], axis=-1).astype(
            x_BTNH.dtype
        )

"""Encodings of the absolute position, which are added to the embedded tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions.base import Position
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Position):
    """Sines and cosines with wavelengths in a geometric progression (Vaswani et al. 2017, 3.5)."""

    def incompatibility(self, d_model: int, head_dim: int) -> str:
        return f'model.d_model={d_model} is odd' if d_model % 2 else ''

    def embed(self, scope: ParamScope, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return x_BTD + sinusoids(positions_BT, x_BTD.shape[-1]).astype(x_BTD.dtype)


@dataclasses.dataclass(frozen=True)
class Learned(Position):
    """A learned vector for each of `max_len` positions (Vaswani et al. 2017, Table 3, row E)."""

    max_len: int = number(512, low=1, high=10_000_000)

    def embed(self, scope: ParamScope, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        table_TD = scope.parameter(
            'positions',
            (self.max_len, D),
            ('position', 'embed'),
            jax.nn.initializers.normal(D**-0.5),
        )
        return x_BTD + table_TD.astype(x_BTD.dtype)[positions_BT]


def sinusoids(positions_BT: jax.Array, D: int) -> jax.Array:
    """Return PE(pos, 2i) = sin(pos / 10000^(2i/D)) and PE(pos, 2i+1) = cos(pos / 10000^(2i/D)).

    Vaswani et al. 2017, section 3.5.

    Args:
        positions_BT: of the tokens.
        D: the number of dimensions, even.

    Returns:
        a float32 array [B, T, D].
    """
    rates_H = 10000.0 ** (-jnp.arange(0, D, 2, dtype=jnp.float32) / D)
    angles_BTH = positions_BT[..., None].astype(jnp.float32) * rates_H[None, None]
    pairs_BTH2 = jnp.stack([jnp.sin(angles_BTH), jnp.cos(angles_BTH)], axis=-1)
    return pairs_BTH2.reshape(*positions_BT.shape, D)

"""Parameters with logical axes, projections into and out of heads, embedding, dropout."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.functional import drop

Initializer = Callable[..., jax.Array]

# Which tables are one with the target embedding's, by model.tie_embeddings.
TIES = {'all': ('source', 'output'), 'decoder': ('output',), 'inputs': ('source',), 'none': ()}


def parameter(
    module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str], init: Initializer
) -> jax.Array:
    """A float32 parameter of `module` whose dimensions carry the logical `axes`."""
    return module.param(
        name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.float32
    )


def constrain(x_BTD: jax.Array) -> jax.Array:
    """Pins activations to the mesh at a block's edge; does nothing where no mesh is set."""
    return nn.with_logical_constraint(x_BTD, ('batch', 'length', 'activation'))


def dropout(module: nn.Module, x_BTD: jax.Array, rate: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest; `rate` may be traced, None is
    no dropout.
    """
    return x_BTD if rate is None else drop(module.make_rng('dropout'), x_BTD, rate)


def product(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    """x[B, T, *inner] · w[*inner, *outer], summed over the `contracted` inner dimensions.

    As one product of two matrices: XLA's CPU kernels lose up to half their speed on more dimensions
    than that.
    """
    inner, outer = w.shape[:contracted], w.shape[contracted:]
    size = math.prod(inner)
    y = x.reshape(-1, size) @ w.astype(x.dtype).reshape(size, -1)
    return y.reshape(*x.shape[:-contracted], *outer)


class HeadsIn(nn.Module):
    """x_BTD to x_BTNH; no bias unless asked for, as in the paper's equation for MultiHead."""

    heads: int
    size: int
    axis: str
    bias: bool = False
    gain: float = 1.0  # of the initial kernel: 1 is Glorot's

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        init = nn.initializers.variance_scaling(
            self.gain**2, 'fan_avg', 'uniform', in_axis=0, out_axis=(1, 2)
        )
        w_DNH = parameter(
            self, 'kernel', (D, self.heads, self.size), ('embed', self.axis, 'head_dim'), init
        )
        x_BTNH = product(x_BTD, w_DNH, 1)
        if not self.bias:
            return x_BTNH
        b_NH = parameter(
            self, 'bias', (self.heads, self.size), (self.axis, 'head_dim'), nn.initializers.zeros
        )
        return x_BTNH + b_NH.astype(x_BTD.dtype)[None, None]


class HeadsOut(nn.Module):
    """o_BTNH to o_BTD: W^O of MultiHead."""

    d_model: int
    bias: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, o_BTNH: jax.Array) -> jax.Array:
        N, H = o_BTNH.shape[-2:]
        init = nn.initializers.variance_scaling(
            self.gain**2, 'fan_avg', 'uniform', in_axis=(0, 1), out_axis=2
        )
        w_NHD = parameter(
            self, 'kernel', (N, H, self.d_model), ('heads', 'head_dim', 'embed'), init
        )
        o_BTD = product(o_BTNH, w_NHD, 2)
        if not self.bias:
            return o_BTD
        b_D = parameter(self, 'bias', (self.d_model,), ('norm',), nn.initializers.zeros)
        return o_BTD + b_D.astype(o_BTD.dtype)[None, None]


class Embedding(nn.Module):
    """Tokens to vectors times `scale`, and back to logits (Vaswani et al. 2017, section 3.4,
    has √d_model).
    """

    vocab_size: int
    d_model: int
    dtype: str
    scale: float = 1.0

    def setup(self):
        # N(0, 1/d): the logits of a unit-variance output have unit variance, and times √d the input
        # has it too.
        self.table_VD = parameter(
            self,
            'table',
            (self.vocab_size, self.d_model),
            ('vocab', 'embedding'),
            nn.initializers.normal(self.d_model**-0.5),
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.table_VD.astype(self.dtype)[tokens_BT] * jnp.asarray(self.scale, self.dtype)

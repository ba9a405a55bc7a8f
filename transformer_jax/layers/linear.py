"""Matrix products, and the projections into and out of heads."""

import math

import flax.linen as nn
import jax

from transformer_jax.layers.parameters import parameter


def matmul(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    """x[B, T, *inner] · w[*inner, *outer], summed over the `contracted` inner dimensions.

    As one product of two matrices: XLA's CPU kernels lose up to half their speed on more dimensions
    than that.
    """
    inner, outer = w.shape[:contracted], w.shape[contracted:]
    size = math.prod(inner)
    y = x.reshape(-1, size) @ w.astype(x.dtype).reshape(size, -1)
    return y.reshape(*x.shape[:-contracted], *outer)


class ProjectToHeads(nn.Module):
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
        x_BTNH = matmul(x_BTD, w_DNH, 1)
        if not self.bias:
            return x_BTNH
        b_NH = parameter(
            self, 'bias', (self.heads, self.size), (self.axis, 'head_dim'), nn.initializers.zeros
        )
        return x_BTNH + b_NH.astype(x_BTD.dtype)[None, None]


class ProjectFromHeads(nn.Module):
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
        o_BTD = matmul(o_BTNH, w_NHD, 2)
        if not self.bias:
            return o_BTD
        b_D = parameter(self, 'bias', (self.d_model,), ('norm',), nn.initializers.zeros)
        return o_BTD + b_D.astype(o_BTD.dtype)[None, None]

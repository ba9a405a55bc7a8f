"""Matrix products, and the projections into and out of heads."""

import math

import flax.linen as nn
import jax
from flax.linen.spmd import with_logical_constraint

from transformer_jax.layers.parameters import parameter


def matmul(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
    """Multiply x [B, T, *inner] by w [*inner, *outer], summing over the inner dimensions.

    Both are reshaped to matrices first: XLA's CPU kernels take up to twice as long with more
    dimensions.

    Args:
        x: activations; the result has their type.
        w: a kernel, cast to the type of `x`.
        contracted: how many dimensions are inner ones, 1 or more.

    Returns:
        y [B, T, *outer].
    """
    inner, outer = w.shape[:contracted], w.shape[contracted:]
    size = math.prod(inner)
    y = x.reshape(-1, size) @ w.astype(x.dtype).reshape(size, -1)
    return y.reshape(*x.shape[:-contracted], *outer)


class ProjectToHeads(nn.Module):
    """Projects x_BTD to heads x_BTNH: W^Q, W^K or W^V of MultiHead.

    Vaswani et al. (2017), section 3.2.2, whose equation has no bias.

    Attributes:
        heads: how many.
        size: of a head.
        axis: the logical axis of the heads, 'heads' or 'kv_heads'.
        bias: whether to add one.
        gain: factor on the initial kernel; 1 is Glorot's.
    """

    heads: int
    size: int
    axis: str
    bias: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Project x_BTD to x_BTNH."""
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
    """Projects heads o_BTNH to o_BTD: W^O of MultiHead; attributes as of `ProjectToHeads`."""

    d_model: int
    bias: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, o_BTNH: jax.Array) -> jax.Array:
        """Project o_BTNH to o_BTD."""
        N, H = o_BTNH.shape[-2:]
        init = nn.initializers.variance_scaling(
            self.gain**2, 'fan_avg', 'uniform', in_axis=(0, 1), out_axis=2
        )
        w_NHD = parameter(
            self, 'kernel', (N, H, self.d_model), ('heads', 'head_dim', 'embed'), init
        )
        # As a matrix that is cut like the kernel: otherwise XLA sums its whole gradient over
        # 'fsdp', since it does not see the cut of the last dimension through the reshape.
        w_ND = with_logical_constraint(w_NHD.reshape(N * H, -1), ('heads', 'embed'))
        o_BTD = matmul(o_BTNH.reshape(*o_BTNH.shape[:-2], N * H), w_ND, 1)
        if not self.bias:
            return o_BTD
        b_D = parameter(self, 'bias', (self.d_model,), ('norm',), nn.initializers.zeros)
        return o_BTD + b_D.astype(o_BTD.dtype)[None, None]

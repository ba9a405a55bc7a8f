"""Norms, and their placement along the residual path."""

import abc
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax

from transformer_jax.layers.functional import layer_norm, rms_norm
from transformer_jax.layers.parameters import parameter
from transformer_jax.ranges import Ranged, number


@dataclasses.dataclass(frozen=True)
class NormKind(Ranged, abc.ABC):
    """A norm; `eps` is the ε that is added before the square root."""

    eps: float = number(1e-6, low=1e-30, high=1)

    @abc.abstractmethod
    def __call__(self, module: nn.Module, x_BTD: jax.Array) -> jax.Array:
        """Normalize the last axis of x_BTD with parameters that `module` owns."""


@dataclasses.dataclass(frozen=True)
class LayerNorm(NormKind):
    """Normalize to mean 0 and variance 1 (Ba et al. 2016), with statistics in float32."""

    bias: bool = True

    def __call__(self, module: nn.Module, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        scale_D = parameter(module, 'scale', (D,), ('norm',), nn.initializers.ones)
        if not self.bias:
            return layer_norm(x_BTD, scale_D, None, self.eps)
        bias_D = parameter(module, 'bias', (D,), ('norm',), nn.initializers.zeros)
        return layer_norm(x_BTD, scale_D, bias_D, self.eps)


@dataclasses.dataclass(frozen=True)
class RmsNorm(NormKind):
    """Normalize to root mean square 1 (Zhang & Sennrich 2019), with statistics in float32.

    `offset`: the factor is 1 + scale and scale starts at 0, as in Gemma; else it is scale, which
    starts at 1.
    """

    offset: bool = False

    def __call__(self, module: nn.Module, x_BTD: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale_D = parameter(module, 'scale', x_BTD.shape[-1:], ('norm',), init)
        return rms_norm(x_BTD, scale_D + 1 if self.offset else scale_D, self.eps)


NORMS: dict[str, type] = {
    'layer': LayerNorm,
    'rms': RmsNorm,
}


class Norm(nn.Module):
    """The parameters of a norm kind."""

    kind: NormKind

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.kind(self, x_BTD)


class Placement(NamedTuple):
    """Where the residual path x + s(x) past a sublayer s has its norms n."""

    # 'before': s reads n(x), and the stack ends with a norm; 'after': the sum is normalized.
    outer: str
    inner: bool = False  # the output of s is normalized before it is added
    deep: bool = False  # x and the initial weights of s are scaled by DeepNorm's constants


PLACEMENTS: dict[str, Placement] = {
    # n(x + s(x)): Vaswani et al. (2017)
    'post': Placement('after'),
    # x + s(n(x))
    'pre': Placement('before'),
    # x + n'(s(n(x))): Ding et al. (2021, CogView), Gemma 2
    'sandwich': Placement('before', inner=True),
    # n(αx + s(x)): Wang et al. (2022)
    'deepnorm': Placement('after', deep=True),
}


def deepnorm(stack: str, encoder_layers: int, decoder_layers: int) -> tuple[float, float]:
    """Compute DeepNorm's constants (Wang et al. 2022, Figure 2).

    Args:
        stack: 'encoder' or 'decoder'.
        encoder_layers: N; 0 in a model without an encoder.
        decoder_layers: M; 0 in a model without a decoder.

    Returns:
        (α, β): α multiplies x in the residual sum; β multiplies the initial kernels of the
        feed-forward network, the values and the output projection.
    """
    N, M = encoder_layers, decoder_layers
    if not N or not M:
        return (2 * (N + M)) ** 0.25, (8 * (N + M)) ** -0.25
    if stack == 'encoder':
        return 0.81 * (N**4 * M) ** 0.0625, 0.87 * (N**4 * M) ** -0.0625
    return (3 * M) ** 0.25, (12 * M) ** -0.25

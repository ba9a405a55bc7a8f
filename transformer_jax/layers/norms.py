"""Norms, and where a block has them."""

import abc
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax

from transformer_jax.layers.functional import layer_norm, rms_norm
from transformer_jax.layers.parameters import parameter


@dataclasses.dataclass(frozen=True)
class NormKind(abc.ABC):
    """Divides by a root of mean squares, ε among them."""

    eps: float = 1e-6

    def __post_init__(self):
        if not self.eps > 0:
            raise ValueError(f'eps={self.eps} must be positive')

    @abc.abstractmethod
    def __call__(self, module: nn.Module, x_BTD: jax.Array) -> jax.Array:
        """The norm of x_BTD, its parameters being those of `module`."""


@dataclasses.dataclass(frozen=True)
class LayerNorm(NormKind):
    """Mean 0 and variance 1 (Ba et al. 2016), with statistics in float32."""

    bias: bool = True

    def __call__(self, module: nn.Module, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        scale_D = parameter(module, 'scale', (D,), ('norm',), nn.initializers.ones)
        bias_D = (
            parameter(module, 'bias', (D,), ('norm',), nn.initializers.zeros) if self.bias else None
        )
        return layer_norm(x_BTD, scale_D, bias_D, self.eps)


@dataclasses.dataclass(frozen=True)
class RmsNorm(NormKind):
    """Root mean square 1 (Zhang & Sennrich 2019), with statistics in float32.

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
    """Owns the parameters of a norm kind."""

    kind: NormKind

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.kind(self, x_BTD)


class Placement(NamedTuple):
    """Where the residual path x + s(x) past a sublayer s has its norms."""

    # before: s reads the norm of x, and the stack ends with a norm; after: the sum is normalised
    outer: str
    inner: bool = False  # s's output is normalised before it is added
    deep: bool = False  # x and the initial weights of s are scaled by DeepNorm's constants


PLACEMENTS: dict[str, Placement] = {
    'post': Placement('after'),  # n(x + s(x)): Vaswani et al. (2017)
    'pre': Placement('before'),  # x + s(n(x))
    'sandwich': Placement(
        'before', inner=True
    ),  # x + n'(s(n(x))): Ding et al. (2021, CogView), Gemma 2
    'deepnorm': Placement('after', deep=True),  # n(αx + s(x)): Wang et al. (2022)
}


def deepnorm(stack: str, encoder_layers: int, decoder_layers: int) -> tuple[float, float]:
    """(α, β) of Wang et al. (2022), Figure 2: α weighs x; β the initial kernels of feed-forward,
    values and output.

    Args:
        stack: 'encoder' or 'decoder'.
        encoder_layers: N; 0 in a model that is a decoder alone.
        decoder_layers: M; 0 in a model that is an encoder alone.
    """
    N, M = encoder_layers, decoder_layers
    if not N or not M:
        return (2 * (N + M)) ** 0.25, (8 * (N + M)) ** -0.25
    if stack == 'encoder':
        return 0.81 * (N**4 * M) ** 0.0625, 0.87 * (N**4 * M) ** -0.0625
    return (3 * M) ** 0.25, (12 * M) ** -0.25

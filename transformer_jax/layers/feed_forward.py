"""Position-wise feed-forward layers: plain, gated, or a mixture of experts."""

import abc
import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax import spec
from transformer_jax.batch import Tokens
from transformer_jax.layers import moe
from transformer_jax.layers.linear import matmul
from transformer_jax.layers.parameters import parameter
from transformer_jax.ranges import Ranged, number


class FeedForward(nn.Module):
    """The parameters of a plain or gated feed-forward network.

    Attributes:
        kind: the network.
        d_ff: F, the hidden units.
        gain: factor on the initial kernels; 1 is Glorot's.
    """

    kind: 'Plain | Gated'
    d_ff: int
    gain: float = 1.0

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, tokens: Tokens | None = None, rate: jax.Array | None = None
    ) -> jax.Array:
        """Map x_BTD to y_BTD; only MixtureOfExperts uses `tokens` and dropout's `rate`."""
        return self.kind(self, x_BTD)

    @nn.nowrap
    def widen(self, name: str, x_BTD: jax.Array, width: int) -> jax.Array:
        """Compute the hidden units h_BTF = x W + b, `width` of them; b only if `kind.bias`."""
        return self._affine(name, x_BTD, width, ('embed', 'mlp'), 'mlp')

    @nn.nowrap
    def narrow(self, name: str, h_BTF: jax.Array, d_model: int) -> jax.Array:
        """Compute y_BTD = h W + b, back in `d_model` dimensions; b only if `kind.bias`."""
        return self._affine(name, h_BTF, d_model, ('mlp', 'embed'), 'norm')

    @nn.nowrap
    def _affine(
        self, name: str, x_BTI: jax.Array, width: int, axes: tuple[str, str], bias_axis: str
    ) -> jax.Array:
        """Map I inputs to O outputs: x W + b."""
        init = nn.initializers.variance_scaling(self.gain**2, 'fan_avg', 'uniform')
        y_BTO = matmul(
            x_BTI, parameter(self, f'{name}_kernel', (x_BTI.shape[-1], width), axes, init), 1
        )
        if not self.kind.bias:
            return y_BTO
        b_O = parameter(self, f'{name}_bias', (width,), (bias_axis,), nn.initializers.zeros)
        return y_BTO + b_O.astype(x_BTI.dtype)[None, None]


class FeedForwardKind(Ranged):
    """The base of all rows of FFNS; a kind of another package derives from Plain or Gated."""


class DenseKind(FeedForwardKind, abc.ABC):
    """A network that every token passes through, alone or as one of a mixture."""

    @abc.abstractmethod
    def __call__(self, layer: FeedForward, x_BTD: jax.Array) -> jax.Array:
        """Map x_BTD to y_BTD with the parameters of `layer`."""


@dataclasses.dataclass(frozen=True)
class Plain(DenseKind):
    """Two matrices with an activation between: f(x W₁ + b₁) W₂ + b₂ with d_ff hidden units."""

    bias: bool = True

    def __call__(self, layer: FeedForward, x_BTD: jax.Array) -> jax.Array:
        """Map x_BTD to y_BTD with the parameters of `layer`."""
        h_BTF = self.activation(layer.widen('in', x_BTD, layer.d_ff))
        return layer.narrow('out', h_BTF, x_BTD.shape[-1])

    @abc.abstractmethod
    def activation(self, h_BTF: jax.Array) -> jax.Array:
        """Apply the activation f."""


@dataclasses.dataclass(frozen=True)
class Gated(DenseKind):
    """Three matrices, one of them a gate: (f(x W) ⊙ x V) W₂ (Shazeer 2020, equation 6).

    `equal_parameters`: ⅔ d_ff hidden units, rounded down, so that the three matrices have as many
    parameters as the two of a plain layer (at most 2 d_model fewer); else d_ff hidden units.
    """

    bias: bool = False
    equal_parameters: bool = True

    def __call__(self, layer: FeedForward, x_BTD: jax.Array) -> jax.Array:
        """Map x_BTD to y_BTD with the parameters of `layer`."""
        width = max(2 * layer.d_ff // 3, 1) if self.equal_parameters else layer.d_ff
        gate_BTF = self.activation(layer.widen('gate', x_BTD, width))
        return layer.narrow('out', gate_BTF * layer.widen('in', x_BTD, width), x_BTD.shape[-1])

    @abc.abstractmethod
    def activation(self, h_BTF: jax.Array) -> jax.Array:
        """Apply the activation f of the gate."""


class Relu(Plain):
    """f(x) = max(0, x) (Vaswani et al. 2017, equation 2)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.relu(h_BTF)


class SquaredRelu(Plain):
    """f(x) = max(0, x)² (So et al. 2021, Primer)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return jnp.square(nn.relu(h_BTF))


@dataclasses.dataclass(frozen=True)
class Gelu(Plain):
    """f(x) = x Φ(x) (Hendrycks & Gimpel 2016); `approximate`: Φ by tanh, as in GPT-2."""

    approximate: bool = True

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.gelu(h_BTF, self.approximate)


class SwiGlu(Gated):
    """A gate f(x) = x sigmoid(x) (Shazeer 2020)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.silu(h_BTF)


@dataclasses.dataclass(frozen=True)
class GeGlu(Gated):
    """A gate f(x) = x Φ(x) (Shazeer 2020); `approximate` as for `gelu`."""

    approximate: bool = True

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.gelu(h_BTF, self.approximate)


DENSE: dict[str, type] = {
    'relu': Relu,
    'gelu': Gelu,
    'relu2': SquaredRelu,
    'swiglu': SwiGlu,
    'geglu': GeGlu,
}


@dataclasses.dataclass(frozen=True)
class Moe(FeedForwardKind):
    """A mixture of experts: each token passes through `k` of `experts` networks.

    Shazeer et al. (2017). Each network is an `expert` with d_ff hidden units. A router, in float32,
    chooses the experts. In training an expert has room for `capacity` times the
    tokens of an even load, and choices beyond that are dropped; in evaluation none is dropped.
    Padding is not routed. `balance` and `z` are the weights of the losses `moe.balance` and
    `moe.z_loss`, which every layer adds in training. These losses are means over a microbatch, so
    they depend on `train.accumulate` and, with parallel.mode='pmap', on the number of devices.

    Raises:
        ValueError: a number out of range.
    """

    experts: int = number(8, low=1, high=100_000)
    k: int = number(2, low=1, high=100_000)
    capacity: float = number(1.25, above=0, high=1e6)
    expert: Plain | Gated = spec.nested(DENSE, Relu())
    balance: float = number(0.01, low=0, high=1_000)
    z: float = number(0.0, low=0, high=1_000)

    def __post_init__(self):
        super().__post_init__()
        if self.k > self.experts:
            raise ValueError(f'k={self.k}, it takes 1 … experts={self.experts}')


class Experts(FeedForward):
    """The networks of a mixture: all parameters have a leading axis of E experts.

    Attributes:
        number: E.
        multiply: (x, w_EIO, b_EO or None) → y, each expert's affine map; see `moe.limited`.
    """

    number: int = 1
    multiply: Callable[..., jax.Array] = matmul

    @nn.nowrap
    def _affine(
        self, name: str, x_BTI: jax.Array, width: int, axes: tuple[str, str], bias_axis: str
    ) -> jax.Array:
        init = nn.initializers.variance_scaling(self.gain**2, 'fan_avg', 'uniform', batch_axis=0)
        shape = (self.number, x_BTI.shape[-1], width)
        w_EIO = parameter(self, f'{name}_kernel', shape, ('experts', *axes), init)
        w_EIO = w_EIO.astype(x_BTI.dtype)
        if not self.kind.bias:
            return self.multiply(x_BTI, w_EIO, None)
        shape, axes = (self.number, width), ('experts', bias_axis)
        b_EO = parameter(self, f'{name}_bias', shape, axes, nn.initializers.zeros)
        return self.multiply(x_BTI, w_EIO, b_EO.astype(x_BTI.dtype))


class MixtureOfExperts(nn.Module):
    """The router and the experts of a mixture; attributes as of `FeedForward`."""

    kind: Moe
    d_ff: int
    gain: float = 1.0

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, tokens: Tokens | None = None, rate: jax.Array | None = None
    ) -> jax.Array:
        """Map x_BTD to y_BTD, 0 at padding.

        Args:
            x_BTD: activations.
            tokens: of x_BTD; None: there is no padding.
            rate: dropout's. Any number means training, where the capacity of experts is limited
                and `moe.Load` is sown into the collection 'load'; None means evaluation.
        """
        kind, D = self.kind, x_BTD.shape[-1]
        x_ZD = x_BTD.reshape(-1, D)
        real_Z = (
            jnp.ones(len(x_ZD), bool) if tokens is None else tokens.segments_BT.reshape(-1) != 0
        )
        init = nn.initializers.glorot_uniform()
        w_DE = parameter(self, 'router_kernel', (D, kind.experts), ('embed', 'experts'), init)
        logits_ZE = jnp.matmul(x_ZD.astype(jnp.float32), w_DE, precision='highest')
        routing = moe.route(logits_ZE, real_Z, kind.k)

        def network(x_ECD, multiply):
            return Experts(
                kind.expert, self.d_ff, self.gain, kind.experts, multiply, name='experts'
            )(x_ECD)

        if rate is None:
            return moe.dropless(x_ZD, routing, kind.experts, network).reshape(x_BTD.shape)
        y_ZD, kept_E = moe.limited(x_ZD, routing, kind.experts, kind.capacity, network)
        chosen_E = moe.counts(routing.experts_ZJ, kind.experts)
        balance = moe.balance(logits_ZE, chosen_E, real_Z)
        loss = kind.balance * balance + kind.z * moe.z_loss(logits_ZE, real_Z)
        load = moe.Load(loss, balance, chosen_E.astype(jnp.float32), kept_E.astype(jnp.float32))
        self.sow('load', 'load', load)
        return y_ZD.reshape(x_BTD.shape)


FFNS: dict[str, type] = {**DENSE, 'moe': Moe}

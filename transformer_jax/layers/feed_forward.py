"""Position-wise feed-forward layers: two matrices with an activation between, three with a gate, or
many experts.
"""

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


class FeedForward(nn.Module):
    """Owns the parameters of a feed-forward kind."""

    kind: 'Plain | Gated'
    d_ff: int
    gain: float = 1.0  # of the initial kernels: 1 is Glorot's

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, tokens: Tokens | None = None, rate: jax.Array | None = None
    ) -> jax.Array:
        """y_BTD; what `tokens` are padding and what dropout's rate is matters to
        MixtureOfExperts alone.
        """
        return self.kind(self, x_BTD)

    @nn.nowrap
    def wide(self, name: str, x_BTD: jax.Array, width: int) -> jax.Array:
        """X W + b into `width` hidden units, h_BTF; the bias only where the kind has it."""
        return self._affine(name, x_BTD, width, ('embed', 'mlp'), 'mlp')

    @nn.nowrap
    def narrow(self, name: str, h_BTF: jax.Array, d_model: int) -> jax.Array:
        """H W + b back to y_BTD."""
        return self._affine(name, h_BTF, d_model, ('mlp', 'embed'), 'norm')

    @nn.nowrap
    def _affine(
        self, name: str, x_BTI: jax.Array, width: int, axes: tuple[str, str], bias_axis: str
    ) -> jax.Array:
        """I inputs, O outputs."""
        init = nn.initializers.variance_scaling(self.gain**2, 'fan_avg', 'uniform')
        y_BTO = matmul(
            x_BTI, parameter(self, f'{name}_kernel', (x_BTI.shape[-1], width), axes, init), 1
        )
        if not self.kind.bias:
            return y_BTO
        b_O = parameter(self, f'{name}_bias', (width,), (bias_axis,), nn.initializers.zeros)
        return y_BTO + b_O.astype(x_BTI.dtype)[None, None]


@dataclasses.dataclass(frozen=True)
class Plain(abc.ABC):
    """f(x W₁ + b₁) W₂ + b₂ with d_ff hidden units."""

    bias: bool = True

    def __call__(self, layer: FeedForward, x_BTD: jax.Array) -> jax.Array:
        h_BTF = self.activation(layer.wide('in', x_BTD, layer.d_ff))
        return layer.narrow('out', h_BTF, x_BTD.shape[-1])

    @abc.abstractmethod
    def activation(self, h_BTF: jax.Array) -> jax.Array:
        """F."""


@dataclasses.dataclass(frozen=True)
class Gated(abc.ABC):
    """(f(x W) ⊙ x V) W₂ (Shazeer 2020, equation 6).

    `equal_parameters`: ⅔ d_ff hidden units, rounded down, so that three matrices have what the two
    of a plain layer have (at most 2 d_model fewer); else d_ff hidden units.
    """

    bias: bool = False
    equal_parameters: bool = True

    def __call__(self, layer: FeedForward, x_BTD: jax.Array) -> jax.Array:
        width = max(2 * layer.d_ff // 3, 1) if self.equal_parameters else layer.d_ff
        gate_BTF = self.activation(layer.wide('gate', x_BTD, width))
        return layer.narrow('out', gate_BTF * layer.wide('in', x_BTD, width), x_BTD.shape[-1])

    @abc.abstractmethod
    def activation(self, h_BTF: jax.Array) -> jax.Array:
        """F."""


class Relu(Plain):
    """max(0, x) (Vaswani et al. 2017, equation 2)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.relu(h_BTF)


class SquaredRelu(Plain):
    """max(0, x)² (So et al. 2021, Primer)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return jnp.square(nn.relu(h_BTF))


@dataclasses.dataclass(frozen=True)
class Gelu(Plain):
    """x Φ(x) (Hendrycks & Gimpel 2016); `approximate`: by tanh, as GPT-2 has it."""

    approximate: bool = True

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.gelu(h_BTF, self.approximate)


class SwiGlu(Gated):
    """x sigmoid(x) for a gate (Shazeer 2020)."""

    def activation(self, h_BTF: jax.Array) -> jax.Array:
        return nn.silu(h_BTF)


@dataclasses.dataclass(frozen=True)
class GeGlu(Gated):
    """GELU for a gate (Shazeer 2020); `approximate` as for `gelu`."""

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
class Moe:
    """Each token through `k` of `experts` networks, each an `expert` of d_ff hidden units (Shazeer
    et al. 2017).

    A router, in float32, chooses them: see `moe.route`. In training an expert has `capacity` times
    the places that an even load of a microbatch would fill, and choices beyond them are dropped; in
    evaluation none is. Padding is not routed. `balance` and `z` weigh the losses `moe.balance` and
    `moe.z_loss`, added in training for every layer: means over a microbatch, hence other ones with
    another `train.accumulate`, or, with parallel.mode='pmap', on another number of devices.
    """

    experts: int = 8
    k: int = 2
    capacity: float = 1.25
    expert: Plain | Gated = spec.nested(DENSE, Relu())
    balance: float = 0.01
    z: float = 0.0

    def __post_init__(self):
        if self.experts < 1:
            raise ValueError(f'experts={self.experts}, it takes 1 or more')
        if not 1 <= self.k <= self.experts:
            raise ValueError(f'k={self.k}, it takes 1 … experts={self.experts}')
        if not self.capacity > 0:
            raise ValueError(f'capacity={self.capacity}, it takes a positive number')
        if not min(self.balance, self.z) >= 0:
            raise ValueError(f'balance={self.balance}, z={self.z}: they take 0 or more')


class Experts(FeedForward):
    """Networks side by side: parameters have an axis of experts in front; see `moe` for what
    `multiply` does.
    """

    number: int = 1
    multiply: Callable[..., jax.Array] = matmul

    @nn.nowrap
    def _affine(
        self, name: str, x_BTI: jax.Array, width: int, axes: tuple[str, str], bias_axis: str
    ) -> jax.Array:
        init = nn.initializers.variance_scaling(self.gain**2, 'fan_avg', 'uniform', batch_axis=0)
        shape = (self.number, x_BTI.shape[-1], width)
        w_EIO = parameter(self, f'{name}_kernel', shape, ('experts', *axes), init).astype(
            x_BTI.dtype
        )
        b_EO = (
            parameter(
                self,
                f'{name}_bias',
                (self.number, width),
                ('experts', bias_axis),
                nn.initializers.zeros,
            ).astype(x_BTI.dtype)
            if self.kind.bias
            else None
        )
        return self.multiply(x_BTI, w_EIO, b_EO)


class MixtureOfExperts(nn.Module):
    """Owns the parameters of `moe`."""

    kind: Moe
    d_ff: int
    gain: float = 1.0

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, tokens: Tokens | None = None, rate: jax.Array | None = None
    ) -> jax.Array:
        """y_BTD, 0 where `tokens` are padding; a `rate`, of whatever size, means training."""
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
        self.sow(
            'load',
            'load',
            moe.Load(loss, balance, *(a_E.astype(jnp.float32) for a_E in (chosen_E, kept_E))),
        )
        return y_ZD.reshape(x_BTD.shape)


FFNS: dict[str, type] = {**DENSE, 'moe': Moe}

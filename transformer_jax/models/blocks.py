"""Multi-head attention with its parameters, and the encoder's and decoder's layers."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.masks import Causal, Mask, Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.feed_forward import FeedForward, MixtureOfExperts, Moe
from transformer_jax.layers.linear import ProjectFromHeads, ProjectToHeads
from transformer_jax.layers.norms import Norm
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.layers.parameters import Initializer, constrain, parameter
from transformer_jax.models.architecture import Architecture
from transformer_jax.positions import Position

PAST = Segments() & Causal()  # what a decoder's token may see
VALUES = (
    'value',
    'up_value',
)  # parameters whose initial size DeepNorm sets: they make what attention mixes


class Projection(nn.Module):
    """Owns the parameters that a pure function asks of its ParamScope."""

    project: Callable[..., Any]  # (scope, *arguments)
    heads: HeadDims
    layer: int
    position: Position
    bias: bool = False
    gain: float = 1.0  # of the initial VALUES

    @nn.compact
    def __call__(self, *arguments: Any) -> Any:
        return self.project(self, *arguments)

    @nn.nowrap
    def project_to_heads(
        self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str
    ) -> jax.Array:
        """Projects x_BTD to x_BTNH with a learned kernel, and a bias where the configuration
        has one.
        """
        gain = self.gain if name in VALUES else 1.0
        return ProjectToHeads(heads, size, axis, self.bias, gain, name=name)(x_BTD)

    @nn.nowrap
    def parameter(
        self, name: str, shape: Sequence[int], axes: Sequence[str], init: Initializer
    ) -> jax.Array:
        """A float32 array whose dimensions carry the logical `axes`."""
        gain = self.gain if name in VALUES else 1.0
        return parameter(
            self, name, shape, axes, init if gain == 1 else lambda *args: gain * init(*args)
        )


class MultiHead(nn.Module):
    """The attention of a site, its parameters and heads: MultiHead of Vaswani et al. (2017),
    section 3.2.2.
    """

    architecture: Architecture
    site: str  # encoder, decoder, cross
    layer: int
    shared: nn.Module | None = None  # a position encoding that all layers share

    def setup(self):
        architecture = self.architecture
        attention = architecture.attention_at(self.site, self.layer)
        self.kind, self.position, self.engine = attention.kind, attention.position, attention.engine
        scope = (architecture.heads, self.layer, self.position)
        _, beta = architecture.residual_scales('encoder' if self.site == 'encoder' else 'decoder')
        self.queries = Projection(
            self.kind.project_queries, *scope, architecture.attention_bias != 'none'
        )
        self.keys = Projection(
            self.kind.project_keys_values, *scope, architecture.attention_bias != 'none', beta
        )
        self.mix = Projection(self.kind.attention_params, *scope, gain=beta)
        self.relative = self.shared or Projection(
            self.position.params, self.kind.tile_heads(architecture.heads), *scope[1:]
        )
        if self.kind.gate != 'none':
            heads = architecture.heads
            self.gate = ProjectToHeads(
                heads.num_heads,
                heads.value_dim if self.kind.gate == 'element' else 1,
                'heads',
                bias=True,
            )
        self.out = ProjectFromHeads(
            architecture.d_model, architecture.attention_bias == 'all', beta
        )

    def __call__(
        self, x_BTD: jax.Array, keys: Any, inputs: AttentionInputs, rate: jax.Array | None
    ) -> jax.Array:
        """Attends from x_BTD to projected `keys`; `inputs` holds mask and tokens."""
        queries = self.queries(x_BTD, inputs.query)
        inputs = self._complete(inputs.replace(engine=self.engine), rate)
        if self.is_mutable_collection('intermediates'):
            self.sow('intermediates', 'weights_BNTS', self.kind.weights(queries, keys, inputs))
        if self.is_mutable_collection('heads') and not self.is_initializing():
            self.sow('heads', 'inputs', (queries, keys, inputs))
        return self._out(x_BTD, self.kind.attend(queries, keys, inputs), inputs)

    def attend_decode(self, x_BTD: jax.Array, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """The same for the few queries of a decoding step."""
        queries, inputs = self.queries(x_BTD, inputs.query), self._complete(inputs, None)
        return self._out(x_BTD, self.kind.attend_decode(queries, keys, inputs), inputs)

    def step(
        self, x_BTD: jax.Array, tokens: Tokens, mask: Mask, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Attends from x_BTD to itself and to all that the cache holds."""
        inputs = self._complete(AttentionInputs(mask, tokens, tokens), None)
        o_BTNH, cache = self.kind.step(
            self.queries(x_BTD, tokens), self.keys(x_BTD, tokens), inputs, cache
        )
        return self._out(x_BTD, o_BTNH, inputs), cache

    def init_cache(self, x_B1D: jax.Array, tokens: Tokens, length: int, mask: Mask) -> Any:
        """An empty cache with room for `length` keys a row."""
        return self.kind.init_cache(self.keys(x_B1D, tokens), length, self.kind.mask.within(mask))

    def _complete(self, inputs: AttentionInputs, rate: jax.Array | None) -> AttentionInputs:
        drops = self.architecture.attention_dropout and rate is not None
        return inputs.replace(
            mask=self.kind.mask.within(inputs.mask),
            position=self.position,
            params=self.mix(),
            position_params=self.relative(),
            dropout=(self.make_rng('dropout'), rate) if drops else None,
        )

    def _out(self, x_BTD: jax.Array, o_BTNH: jax.Array, inputs: AttentionInputs) -> jax.Array:
        o_BTNH = self.kind.postprocess_heads(o_BTNH, inputs.params)
        if self.kind.gate != 'none':
            o_BTNH *= nn.sigmoid(self.gate(x_BTD))
        return self.out(o_BTNH)


class Connection(nn.Module):
    """The residual path past sublayers, with its norms: see norms.PLACEMENTS. Dropout acts on what
    is added.
    """

    architecture: Architecture
    stack: str  # encoder, decoder

    def setup(self):
        self.placement = self.architecture.placement
        self.norm = make_norm(self.architecture)
        if self.placement.inner:
            self.inner_norm = make_norm(self.architecture)

    def __call__(
        self, x_BTD: jax.Array, sublayer: Callable[[jax.Array], jax.Array], rate: jax.Array | None
    ) -> jax.Array:
        """x_BTD past one `sublayer`, which maps an array to another of the same shape."""
        return self.join(x_BTD, rate, sublayer(self.branch(x_BTD)))

    def branch(self, x_BTD: jax.Array) -> jax.Array:
        """What sublayers read."""
        return self.norm(x_BTD) if self.placement.outer == 'before' else x_BTD

    def join(self, x_BTD: jax.Array, rate: jax.Array | None, *outputs_BTD: jax.Array) -> jax.Array:
        """The sum of x_BTD and of sublayers' outputs."""
        alpha, _ = self.architecture.residual_scales(self.stack)
        y_BTD = x_BTD if alpha == 1 else alpha * x_BTD
        for output_BTD in outputs_BTD:
            y_BTD += dropout(
                self, self.inner_norm(output_BTD) if self.placement.inner else output_BTD, rate
            )
        return constrain(self.norm(y_BTD) if self.placement.outer == 'after' else y_BTD)


def make_norm(architecture: Architecture) -> Norm:
    """The norm that all places have."""
    return Norm(architecture.norm)


def make_ffn(architecture: Architecture, stack: str) -> FeedForward | MixtureOfExperts:
    """The position-wise feed-forward network."""
    kind, (_, beta) = architecture.ffn, architecture.residual_scales(stack)
    return (MixtureOfExperts if isinstance(kind, Moe) else FeedForward)(
        kind, architecture.d_ff, beta
    )


class Block(nn.Module):
    """A layer: self-attention, attention to a memory where it crosses, feed-forward (Vaswani et al.
    2017, Figure 1).

    With `model.block='parallel'` all of them read the same norm of the input, and their outputs are
    added at once.
    """

    architecture: Architecture
    stack: str  # encoder: sees both ways; decoder: sees the past
    layer: int
    relative: nn.Module | None = None  # a position encoding that all layers share
    crosses: bool = False

    def setup(self):
        architecture, stack = self.architecture, self.stack
        self.mask = PAST if stack == 'decoder' else Segments()
        self.attention = MultiHead(architecture, stack, self.layer, self.relative)
        self.attention_connection = Connection(architecture, stack)
        if self.crosses:
            self.cross = MultiHead(architecture, 'cross', self.layer)
        self.ffn = make_ffn(architecture, stack)
        if architecture.block == 'sequential':
            if self.crosses:
                self.cross_connection = Connection(architecture, stack)
            self.ffn_connection = Connection(architecture, stack)

    def __call__(
        self,
        x_BTD: jax.Array,
        tokens: Tokens,
        rate: jax.Array | None,
        memory: tuple[jax.Array, Tokens] | None = None,
    ) -> jax.Array:
        """All tokens at once; `memory` is (memory_BSD, its tokens) where the layer crosses."""
        y_BTD = self.attention_connection.branch(x_BTD)
        keys = self.attention.keys(y_BTD, tokens)
        o_BTD = self.attention(y_BTD, keys, AttentionInputs(self.mask, tokens, tokens), rate)
        cross = None
        if self.crosses:
            memory_keys, inputs = (
                self.cross.keys(*memory),
                AttentionInputs(Segments(), tokens, memory[1]),
            )

            def cross(y_BTD):
                return self.cross(y_BTD, memory_keys, inputs, rate)

        return self._rest((x_BTD, y_BTD, o_BTD), tokens, cross, rate)

    def init_cache(self, x_BSD: jax.Array, tokens: Tokens, length: int) -> Any:
        """The empty cache of self-attention, for as many rows as `x_BSD` has."""
        first_B1 = jax.tree.map(lambda a_BS: a_BS[:, :1], tokens)
        return self.attention.init_cache(x_BSD[:, :1], first_B1, length, self.mask)

    def step(
        self, x_RTD: jax.Array, tokens: Tokens, cache: Any, memory: tuple[Any, Tokens] | None = None
    ) -> tuple[jax.Array, Any]:
        """New tokens for each of R hypotheses, given the cache of those before; `memory` is
        (projected keys, tokens).

        Where the layer crosses there is one token for each of the hypotheses, as many for every row
        of the memory.
        """
        y_RTD = self.attention_connection.branch(x_RTD)
        o_RTD, cache = self.attention.step(y_RTD, tokens, self.mask, cache)
        if not self.crosses:
            return self._rest((x_RTD, y_RTD, o_RTD), tokens, None, None), cache
        # The hypotheses of a sentence are to its memory what the times of a target are: rows of one
        # matrix product.
        memory_keys, memory_tokens = memory
        begun, tokens = jax.tree.map(
            lambda a: a.reshape(len(memory_tokens.segments_BT), -1, *a.shape[2:]),
            ((x_RTD, y_RTD, o_RTD), tokens),
        )
        inputs = AttentionInputs(Segments(), tokens, memory_tokens)
        x_BTD = self._rest(
            begun, tokens, lambda y_BTD: self.cross.attend_decode(y_BTD, memory_keys, inputs), None
        )
        return x_BTD.reshape(x_RTD.shape), cache

    def _rest(
        self,
        begun: tuple[jax.Array, jax.Array, jax.Array],
        tokens: Tokens,
        cross: Callable[[jax.Array], jax.Array] | None,
        rate: jax.Array | None,
    ) -> jax.Array:
        """What follows self-attention, which took y_BTD, the branch of x_BTD, to o_BTD:
        `begun` = (x, y, o).
        """
        x_BTD, y_BTD, o_BTD = begun
        if self.architecture.block == 'parallel':
            others = (*([cross(y_BTD)] if cross else []), self.ffn(y_BTD, tokens, rate))
            return self.attention_connection.join(x_BTD, rate, o_BTD, *others)
        x_BTD = self.attention_connection.join(x_BTD, rate, o_BTD)
        if cross:
            x_BTD = self.cross_connection(x_BTD, cross, rate)
        return self.ffn_connection(x_BTD, lambda y_BTD: self.ffn(y_BTD, tokens, rate), rate)

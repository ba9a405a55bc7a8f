"""Multi-head attention with its parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.masks import Causal, Mask, Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.linear import ProjectFromHeads, ProjectToHeads
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.layers.parameters import Initializer, parameter
from transformer_jax.models.architecture import Architecture
from transformer_jax.positions import Position

PAST = Segments() & Causal()  # the mask of a decoder's self-attention

# Names of the parameters that project values: DeepNorm scales their initial kernels.
VALUES = ('value', 'up_value')


class Projection(nn.Module):
    """The module behind `ParamScope`: it owns the parameters that a pure function declares.

    Attributes:
        project: (scope, *arguments) → any pytree; `scope` is this module.
        heads: of the attention.
        layer: from 0.
        position: the position encoding of the attention.
        bias: whether projections to heads have one.
        gain: factor on the initial parameters named in VALUES.
    """

    project: Callable[..., Any]
    heads: HeadDims
    layer: int
    position: Position
    bias: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, *arguments: Any) -> Any:
        """Call the pure function with this module as its scope."""
        return self.project(self, *arguments)

    @nn.nowrap
    def project_to_heads(
        self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str
    ) -> jax.Array:
        """Project x_BTD to x_BTNH, see `ParamScope.project_to_heads`."""
        gain = self.gain if name in VALUES else 1.0
        return ProjectToHeads(heads, size, axis, self.bias, gain, name=name)(x_BTD)

    @nn.nowrap
    def parameter(
        self, name: str, shape: Sequence[int], axes: Sequence[str], init: Initializer
    ) -> jax.Array:
        """Declare a learned float32 array, see `ParamScope.parameter`."""
        gain = self.gain if name in VALUES else 1.0
        scaled = init if gain == 1 else lambda *args: gain * init(*args)
        return parameter(self, name, shape, axes, scaled)


class MultiHead(nn.Module):
    """An attention layer: MultiHead of Vaswani et al. (2017), section 3.2.2, for any kind.

    Attributes:
        architecture: of the model.
        site: 'encoder', 'decoder' or 'cross'.
        layer: from 0.
    """

    architecture: Architecture
    site: str
    layer: int

    def setup(self):
        architecture, heads, layer = self.architecture, self.architecture.heads, self.layer
        attention = architecture.attention_at(self.site, layer)
        self.kind, self.position, self.engine = attention.kind, attention.position, attention.engine
        kind, position, bias = self.kind, self.position, architecture.attention_bias
        _, beta = architecture.residual_scales('encoder' if self.site == 'encoder' else 'decoder')
        self.queries = Projection(kind.project_queries, heads, layer, position, bias != 'none')
        self.keys = Projection(
            kind.project_keys_values, heads, layer, position, bias != 'none', beta
        )
        self.mix = Projection(kind.attention_params, heads, layer, position, gain=beta)
        self.relative = Projection(position.params, kind.tile_heads(heads), layer, position)
        if kind.gate != 'none':
            size = heads.value_dim if kind.gate == 'element' else 1
            self.gate = ProjectToHeads(heads.num_heads, size, 'heads', bias=True)
        self.out = ProjectFromHeads(architecture.d_model, bias == 'all', beta)

    def __call__(
        self, x_BTD: jax.Array, keys: Any, inputs: AttentionInputs, rate: jax.Array | None
    ) -> jax.Array:
        """Attend from x_BTD to projected keys and values: o_BTD.

        Args:
            x_BTD: what queries are projected from.
            keys: keys and values, as `self.keys` projects them.
            inputs: mask, tokens and what layers share; the rest is filled in.
            rate: dropout's of the attention weights; None: no dropout.
        """
        queries = self.queries(x_BTD, inputs.query_tokens)
        inputs = self._complete(dataclasses.replace(inputs, engine=self.engine), rate)
        if self.is_mutable_collection('intermediates'):
            self.sow('intermediates', 'weights_BNTS', self.kind.weights(queries, keys, inputs))
        if self.is_mutable_collection('heads') and not self.is_initializing():
            self.sow('heads', 'inputs', (queries, keys, inputs))
        return self._out(x_BTD, self.kind.attend(queries, keys, inputs), inputs)

    def attend_decode(self, x_BTD: jax.Array, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """Attend from the few queries of a decoding step, without dropout: o_BTD."""
        queries, inputs = self.queries(x_BTD, inputs.query_tokens), self._complete(inputs, None)
        return self._out(x_BTD, self.kind.attend_decode(queries, keys, inputs), inputs)

    def step(self, x_BTD: jax.Array, inputs: AttentionInputs, cache: Any) -> tuple[jax.Array, Any]:
        """Attend from new tokens x_BTD to themselves and to the cache: (o_BTD, new cache)."""
        tokens, inputs = inputs.query_tokens, self._complete(inputs, None)
        o_BTNH, cache = self.kind.step(
            self.queries(x_BTD, tokens), self.keys(x_BTD, tokens), inputs, cache
        )
        return self._out(x_BTD, o_BTNH, inputs), cache

    def init_cache(self, x_B1D: jax.Array, tokens: Tokens, length: int, mask: Mask) -> Any:
        """Make an empty cache with room for `length` keys in each row."""
        return self.kind.init_cache(self.keys(x_B1D, tokens), length, self.kind.mask.within(mask))

    def _complete(self, inputs: AttentionInputs, rate: jax.Array | None) -> AttentionInputs:
        """Fill in the mask, position encoding, learned arrays and dropout of this layer."""
        drops = self.architecture.attention_dropout and rate is not None
        shared = inputs.position_params
        return dataclasses.replace(
            inputs,
            mask=self.kind.mask.within(inputs.mask),
            position=self.position,
            params=self.mix(),
            position_params=shared if jax.tree.leaves(shared) else self.relative(),
            dropout=(self.make_rng('dropout'), rate) if drops else None,
        )

    def _out(self, x_BTD: jax.Array, o_BTNH: jax.Array, inputs: AttentionInputs) -> jax.Array:
        """Postprocess, gate and join the heads: o_BTD."""
        o_BTNH = self.kind.postprocess_heads(o_BTNH, inputs.params)
        if self.kind.gate != 'none':
            o_BTNH *= nn.sigmoid(self.gate(x_BTD))
        return self.out(o_BTNH)

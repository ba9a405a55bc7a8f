"""The size of a decoding state: the bytes that a model keeps of a sequence between two tokens.

The arrays are those of the model's own `start`, described by shape and dtype (`jax.eval_shape`), so
that every kind of attention is counted as it decodes, and none needs a formula. Nothing is computed
and no array is made.

A state has two parts. `past` is of the tokens before: keys and values of softmax attention, which
grow with the length; those of a window, which stop growing; the sums of linear attention and the
state of a recurrent layer, which never grow. `source` is of the encoder's output: the keys and
values of cross-attention, or the memory of a recurrent model's attention.

Positions, segments and indices (32-bit integers and booleans: 9 bytes a token, where tokens are
cached) say where tokens are and not what they are. They are counted apart, as `index_bytes`, so
that `bytes` is the number of a paper's formula.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.attention import cache as caches
from transformer_jax.batch import Tokens
from transformer_jax.config import Components
from transformer_jax.efficiency.flops import portable
from transformer_jax.errors import ConfigError
from transformer_jax.models import MODELS, abstract_params, build_model, no_decoding
from transformer_jax.models.architecture import Architecture

INDICES = (jnp.int32, jnp.bool_)  # the dtypes of what says where tokens are


@dataclasses.dataclass(frozen=True)
class LayerBytes:
    """The state of one layer for one sequence.

    Attributes:
        name: 'decoder_0'; 'attention' for that of a recurrent model.
        attention: the spec of its self-attention; '' in a recurrent model.
        past_bytes: of the tokens before.
        source_bytes: of the encoder's output.
    """

    name: str
    attention: str
    past_bytes: int
    source_bytes: int

    @property
    def sizes(self) -> tuple[str, int, int]:
        """All but the name; adjacent layers with the same are shown as one."""
        return self.attention, self.past_bytes, self.source_bytes


@dataclasses.dataclass(frozen=True)
class StateSize:
    """The decoding state of one sequence.

    Attributes:
        length: tokens of the decoder, those of a prompt included.
        source_length: tokens that the encoder has read; 0 in a model without one.
        layers: what each layer keeps.
        index_bytes: of positions, segments and indices, of all layers; not in `bytes`.
    """

    length: int
    source_length: int
    layers: tuple[LayerBytes, ...]
    index_bytes: int

    @property
    def past_bytes(self) -> int:
        """The part of the tokens before, of all layers."""
        return sum(layer.past_bytes for layer in self.layers)

    @property
    def source_bytes(self) -> int:
        """The part of the encoder's output, of all layers."""
        return sum(layer.source_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        """The whole state, of all layers."""
        return self.past_bytes + self.source_bytes


def config_state(components: Components, length: int | None = None) -> StateSize | None:
    """Return the decoding state of one sequence; None where the model does not decode.

    Args:
        components: of the experiment.
        length: None: the longest row of `data.batching`; of an encoder-decoder it counts for
            source and target alike.

    Raises:
        ConfigError: a length that the model does not reach.
    """
    longest = components.batching.row_lengths()[-1]
    return state_size(components.architecture, longest if length is None else length)


def state_size(
    architecture: Architecture,
    length: int,
    source_length: int | None = None,
    hypotheses: int = 1,
) -> StateSize | None:
    """Return the decoding state of one sequence; None where the model does not decode.

    Args:
        architecture: of the model; its dtype is that of the caches.
        length: tokens of the decoder, those of a prompt included.
        source_length: tokens that are read before the first is decoded: by the encoder, None: as
            many as `length`; without an encoder those of the prompt, None: 1.
        hypotheses: beams of the sequence; they share what was read before.

    Raises:
        ConfigError: a length that the model does not reach.
    """
    if no_decoding(architecture):
        return None
    encodes = MODELS[architecture.kind].reads_source
    read = source_length or (length if encodes else 1)
    _check_length(architecture, length, read if encodes else 0)
    room = length if encodes else length - read  # A prompt has places in the cache, too.
    model = build_model(portable(architecture).unscanned())
    cache, memory = _start(model, read, hypotheses * room, hypotheses)
    layers = tuple(
        LayerBytes(
            layer.name,
            _attention(architecture, number),
            _bytes(layer.past)[0],
            _bytes(layer.source)[0],
        )
        for number, layer in enumerate(model.layer_states(cache, memory))
    )
    return StateSize(length, read if encodes else 0, layers, _bytes((cache, memory))[1])


def _check_length(architecture: Architecture, length: int, encoded: int) -> None:
    if length < 1:
        raise ConfigError(f'length={length}: a decoding state is of 1 token or more')
    reach = architecture.max_length if encoded else architecture.max_decoded
    if max(length, encoded) > reach:
        raise ConfigError(
            f'length={max(length, encoded)} is beyond model.position and model.attention, '
            f'which reach to {reach} here; set it lower'
        )


def _start(model: Any, read: int, room: int, hypotheses: int) -> tuple[Any, Any]:
    """Describe the (cache, memory) of decoding after one row of `read` tokens."""
    params = _params(model.architecture)
    tokens_1S = jax.ShapeDtypeStruct((1, read), jnp.int32)

    def start(params, tokens_1S):
        source = Tokens(tokens_1S, tokens_1S)
        cache, memory = model.apply({'params': params}, tokens_1S, source, room, method='start')
        return caches.reorder(cache, jnp.zeros((1, hypotheses), jnp.int32)), memory

    return jax.eval_shape(start, params, tokens_1S)


@functools.lru_cache(maxsize=16)
def _params(architecture: Architecture) -> Any:
    """Describe the parameters of a model, once for all lengths."""
    return nn.meta.unbox(abstract_params(build_model(architecture)))


def _attention(architecture: Architecture, layer: int) -> str:
    """Return the spec of a decoder layer's self-attention; '' in a recurrent model."""
    if not architecture.decoder_attention:
        return ''
    return spec.text(architecture.attention_at('decoder', layer).kind, KINDS)


def _bytes(tree: Any) -> tuple[int, int]:
    """Sum the bytes of arrays: (of what tokens are, of where they are)."""
    sizes = [(leaf.size * leaf.dtype.itemsize, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    where = sum(size for size, dtype in sizes if dtype in INDICES)
    return sum(size for size, _ in sizes) - where, where

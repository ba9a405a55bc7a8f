"""The table of models, each built from an Architecture."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax import spec
from transformer_jax.attention import KINDS, Attention
from transformer_jax.batch import Batch
from transformer_jax.models.architecture import Architecture
from transformer_jax.models.classifier import Classifier
from transformer_jax.models.decoder_only import DecoderOnly
from transformer_jax.models.encoder_decoder import EncoderDecoder
from transformer_jax.models.layer_stack import stack_layers
from transformer_jax.models.rnn_seq2seq import RnnSeq2Seq
from transformer_jax.models.token_model import TokenModel


class ModelKind(NamedTuple):
    """A row of MODELS: what the program needs to know about a kind of model."""

    module: type[TokenModel]
    sites: tuple[str, ...]  # where it has attention layers: encoder, decoder, cross
    stacks: tuple[str, ...]  # the stacks of layers that it has: encoder, decoder
    learns: tuple[str, ...]  # the forms of tasks that it can learn
    commands: tuple[str, ...]  # which it serves, apart from train, evaluate and inspect
    size_key: str = 'd_ff'  # the configuration key that is solved for at equal parameters
    reads_source: bool = True  # batches have a source; otherwise a pair is one sequence
    predicts_class: bool = False  # the target is one class; otherwise it is text

    def reads_prefix(self, kind: Attention) -> bool:
        """Whether the model may see a kind's prefix before its turn: it reads prompts at once."""
        return not self.reads_source and kind.mask.prefix_length() > 1


MODELS: dict[str, ModelKind] = {
    'encoder_decoder': ModelKind(
        EncoderDecoder,
        sites=('encoder', 'decoder', 'cross'),
        stacks=('encoder', 'decoder'),
        learns=('translation',),
        commands=('translate', 'attention'),
    ),
    'decoder_only': ModelKind(
        DecoderOnly,
        sites=('decoder',),
        stacks=('decoder',),
        learns=('language', 'translation'),
        commands=('generate', 'attention'),
        reads_source=False,
    ),
    'classifier': ModelKind(
        Classifier,
        sites=('encoder',),
        stacks=('encoder',),
        learns=('classification',),
        commands=('classify', 'attention'),
        predicts_class=True,
    ),
    'rnn_seq2seq': ModelKind(
        RnnSeq2Seq,
        sites=(),
        stacks=('encoder', 'decoder'),
        learns=('translation',),
        commands=('translate', 'attention'),
        size_key='d_model',
    ),
}


def build_model(architecture: Architecture) -> TokenModel:
    """Build the linen module of an architecture."""
    return MODELS[architecture.kind].module(architecture)


def no_decoding(architecture: Architecture) -> str:
    """Explain why a model cannot decode token by token; '' where it can."""
    row = MODELS[architecture.kind]
    if row.predicts_class:
        return f'model.kind={architecture.kind!r} predicts a class'
    kinds = (layer.kind for layer in architecture.decoder_attention)
    unable = [kind for kind in kinds if 'decode' not in kind.supports()]
    unable = [spec.text(kind, KINDS) for kind in unable if not row.reads_prefix(kind)]
    return f'{unable[0]} cannot decode step by step' if unable else ''


def dummy_batch(architecture: Architecture, rows: int = 1, length: int = 1) -> Batch:
    """Make a batch of ones to initialize and trace a model with.

    Args:
        architecture: of the model.
        rows: B.
        length: of source and target, in tokens; a class has length 1.
    """
    kind = MODELS[architecture.kind]
    source = jnp.ones((rows, length), jnp.int32) if kind.reads_source else None
    target = jnp.ones((rows, 1 if kind.predicts_class else length), jnp.int32)
    return Batch(
        source_BS=source,
        source_positions_BS=source,
        source_segments_BS=source,
        inputs_BT=target,
        targets_BT=target,
        positions_BT=target,
        segments_BT=target,
        weights_BT=target.astype(jnp.float32),
    )


def init_params(model: nn.Module, rng: jax.Array) -> Any:
    """Make random parameters, boxed with their logical axes; those of scanned layers are stacked.

    They depend neither on the scan nor on the mesh. Its rules are hidden from the forward pass that
    makes them, because kernels run on each device's share of the rows, and there is but one row.
    """
    with nn.logical_axis_rules(()):
        params = model.init(rng, dummy_batch(model.architecture))['params']
    return stack_layers(params, model.architecture)


def abstract_params(model: nn.Module) -> Any:
    """Describe the parameters of a model by shape and dtype, boxed with their logical axes."""
    return jax.eval_shape(lambda rng: init_params(model, rng), jax.random.PRNGKey(0))

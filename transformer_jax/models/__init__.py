"""Whole models, each built from an Architecture."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.batch import Batch
from transformer_jax.models.architecture import Architecture
from transformer_jax.models.classifier import Classifier
from transformer_jax.models.decoder_only import DecoderOnly
from transformer_jax.models.encoder_decoder import EncoderDecoder
from transformer_jax.models.rnn_seq2seq import RnnSeq2Seq
from transformer_jax.models.token_model import TokenModel


class ModelKind(NamedTuple):
    """A row of MODELS: all that the program needs to know of a kind of model beside its module."""

    module: type[TokenModel]
    sites: tuple[str, ...]  # where it attends: encoder, decoder, cross
    stacks: tuple[str, ...]  # the layers that it has: encoder, decoder
    learns: tuple[str, ...]  # the forms of tasks that it can learn
    commands: tuple[str, ...]  # what it can be asked for, beside train, evaluate and inspect
    size_key: str = 'd_ff'  # the key of the configuration that is solved for at equal size
    reads_source: bool = True  # a batch has a source; else a pair is read as one sequence
    predicts_class: bool = False  # a target is one class; else it is text


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
        commands=('generate',),
        reads_source=False,
    ),
    'classifier': ModelKind(
        Classifier,
        sites=('encoder',),
        stacks=('encoder',),
        learns=('classification',),
        commands=('classify',),
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
    """The linen module of an architecture."""
    return MODELS[architecture.kind].module(architecture)


def dummy_batch(architecture: Architecture, rows: int = 1, length: int = 1) -> Batch:
    """A batch of ones of the right types, to initialise and to trace with; source and target have
    `length` tokens.
    """
    kind = MODELS[architecture.kind]
    source = jnp.ones((rows, length), jnp.int32) if kind.reads_source else None
    target = jnp.ones((rows, 1 if kind.predicts_class else length), jnp.int32)
    return Batch(*[source] * 3, *[target] * 4, target.astype(jnp.float32))


def abstract_params(model: TokenModel) -> Any:
    """Describe the parameters of a model by shape and dtype, boxed with their logical axes."""
    batch = dummy_batch(model.architecture)
    return jax.eval_shape(model.init, jax.random.PRNGKey(0), batch)['params']

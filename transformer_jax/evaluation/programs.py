"""The compiled functions of evaluation: scores of given tokens, and decoding."""

import functools

import flax.linen as nn

from transformer_jax.config.components import Components
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.losses.token_scores import token_scores
from transformer_jax.models import abstract_params
from transformer_jax.partitioning.partitioner import CompiledFunction, Partitioner


def compile_scores(model: nn.Module, partitioner: Partitioner) -> CompiledFunction:
    """Compile `token_scores`: (params, placed batch) → the scores of every token."""
    return partitioner.compile(
        functools.partial(token_scores, model),
        in_shardings=(
            partitioner.shardings(abstract_params(model)),
            partitioner.batch_sharding,
        ),
        out_shardings=partitioner.batch_sharding,
    )


def compile_decoder(
    components: Components, model: nn.Module, partitioner: Partitioner, vocab_size: int
) -> CompiledFunction:
    """Compile the decoder of an experiment; arguments of the function as `make_decoder` says.

    Args:
        components: the experiment.
        model: of the experiment.
        partitioner: of its arrays.
        vocab_size: of the tokenizer.
    """
    return partitioner.compile(
        make_decoder(
            model, components.config.decode, vocab_size, components.architecture.max_decoded
        )
    )

"""Parameters, FLOPs of a token and activations of a model, counted without making arrays.

What counts as a FLOP is in `efficiency.flops`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from transformer_jax.attention.engines.fused import NO_BOUND, band
from transformer_jax.config import Components
from transformer_jax.efficiency.flops import forward_flops, portable
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import abstract_params, build_model, dummy_batch
from transformer_jax.models.architecture import Architecture
from transformer_jax.training.train_state import TrainState, dropout_rate

# The products of the scores' size that a kernel computes, forward and backward: splash has two
# kernels in its backward pass, and both compute scores again. Of cuDNN's the program tells itself.
KERNEL_PRODUCTS = {'splash': (2, 7)}


def non_embedding_params(components: Components) -> int:
    """Count the parameters without embedding tables, see `is_embedding`.

    All experts of a mixture count.
    """
    boxed = jax.tree.leaves(
        abstract_params(build_model(components.architecture)),
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    return sum(leaf.value.size for leaf in boxed if not is_embedding(leaf.names))


def is_embedding(axes: Sequence[str | None]) -> bool:
    """Whether logical axes are those of a table of tokens, or of positions added to tokens.

    Parameters of attention that belong to positions (relative positions, Linformer's projections,
    the synthesizer's scores) are not embeddings.

    Args:
        axes: the logical axes of a parameter.
    """
    return 'vocab' in axes or tuple(axes) == ('position', 'embed')


def flops_per_token(components: Components) -> float:
    """Count the forward FLOPs of each target token (of a classifier: source token).

    Padding counts. The row has the median length of `data.batching`. The number is the same on
    every machine.
    """
    model = build_model(portable(components.architecture))
    lengths = sorted(length for _, length in batch_shapes(components))
    length = lengths[
        (len(lengths) - 1) // 2
    ]  # Most sentences are in the shorter half of the buckets, so the lower median.
    return forward_flops(model, nn.meta.unbox(abstract_params(model)), 1, length) / length


def batch_shapes(components: Components) -> tuple[tuple[int, int], ...]:
    """List (rows, length) of every shape that training compiles, before padding for devices."""
    batching = components.batching
    lengths = np.array([(length, length) for length in batching.row_lengths()])
    plan = batching.plan(
        lengths, np.arange(len(lengths)), components.config.train.batch_tokens, seed=None
    )
    return plan.shapes


def kernel_flops(architecture: Architecture, rows: int, length: int, backward: bool) -> int:
    """Count the FLOPs of products inside kernels of Pallas, which no compiled program shows.

    Only pairs of a query and a key that the mask can show count, because kernels skip the others
    tile by tile. What a kernel computes again in its backward pass counts again.

    Args:
        architecture: of the model, with the engines that it runs.
        rows: of the batch.
        length: of its sources and targets.
        backward: whether the backward pass runs too.
    """
    total, heads = 0, architecture.heads
    for site, layer in architecture.sites:
        attention = architecture.attention_at(site, layer)
        if attention.engine not in KERNEL_PRODUCTS:
            continue
        forward, behind = KERNEL_PRODUCTS[attention.engine]
        back, ahead = band(attention.kind.mask) or NO_BOUND
        pairs = _visible_pairs(length, back, 0 if site == 'decoder' else ahead)
        size = heads.num_heads * (heads.head_dim + heads.value_dim)
        total += rows * pairs * size * (forward + (behind if backward else 0))
    return total


def _visible_pairs(length: int, back: float, ahead: float) -> int:
    """Count pairs (query, key) at most `back` before and `ahead` after one another."""
    t = np.arange(length)
    first, last = np.maximum(t - back, 0), np.minimum(t + ahead, length - 1)
    return int((last - first + 1).sum())


def activation_bytes(model: nn.Module, state: TrainState, rows: int, length: int) -> int:
    """Count the bytes that autodiff keeps between forward and backward pass, without parameters.

    Args:
        model: the model.
        state: its abstract train state.
        rows: of one microbatch on one device.
        length: tokens of the source, and of the target.
    """

    def residuals(params, hyper, rng, batch):
        def loss(params):
            dropout = dropout_rate(model.architecture, hyper)
            return loss_sums(model, params, batch, hyper.label_smoothing, dropout, rng)[0].loss

        _, backward = jax.vjp(loss, params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, batch))}
        return list(
            {id(leaf): leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given}.values()
        )

    batch = jax.eval_shape(lambda: dummy_batch(model.architecture, rows, length))
    kept = jax.eval_shape(residuals, state.params, state.hyper, state.rng, batch)
    return sum(array.size * array.dtype.itemsize for array in kept)

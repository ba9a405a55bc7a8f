"""Parameters, FLOPs and activations of a model, counted without making arrays or using a device.

FLOPs are those of matrix products alone, 2·m·n·k each, counted in the traced forward pass, so that
the count is right for every kind of attention. Masked scores are counted like others, recomputed
ones are not, and a `while` loop counts once.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from transformer_jax.attention.engines import KERNELS, site_incompatibility
from transformer_jax.attention.engines.fused import NO_BOUND, band
from transformer_jax.config import Components
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import abstract_params, build_model, dummy_batch
from transformer_jax.models.architecture import Architecture, LayerAttention
from transformer_jax.training.train_state import TrainState, dropout_rate

# The products of the scores' size that a kernel computes, forward and backward: splash has two
# kernels in its backward pass, and both compute scores again.
KERNEL_PRODUCTS = {'splash': (2, 7), 'cudnn': (2, 5)}


def traceable(architecture: Architecture) -> Architecture:
    """Replace kernels by the chunked engine, which has the same products; for tracing only.

    A trace does not show the products inside a kernel, and without the kernel's accelerator the
    model could not even be traced.
    """
    return architecture.with_engines(
        lambda site, layer: 'chunked' if layer.engine in KERNELS else layer.engine
    )


def portable(architecture: Architecture) -> Architecture:
    """Replace kernels by the engines that `auto` chooses on a machine without kernels.

    So the counts are the same on every machine, and a window is counted as the keys that it shows.
    """

    def choose(site: str, layer: LayerAttention) -> str:
        if layer.engine not in KERNELS:
            return layer.engine
        refused = layer.kind.incompatibility(layer.position, 'blocked') or site_incompatibility(
            'blocked', layer.kind, architecture.site_spec(site)
        )
        return 'dense' if refused else 'blocked'

    return architecture.with_engines(choose)


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


def forward_flops(model: nn.Module, params: Any, rows: int, length: int) -> int:
    """Count the FLOPs from a batch to its logits.

    Args:
        model: the model.
        params: its parameters, arrays or abstract ones.
        rows: of the batch.
        length: tokens of the source, and of the target.
    """
    batch = jax.eval_shape(lambda: dummy_batch(model.architecture, rows, length))
    return matmul_flops(
        jax.make_jaxpr(lambda params, batch: model.apply({'params': params}, batch))(params, batch)
    )


def kernel_flops(architecture: Architecture, rows: int, length: int, backward: bool) -> int:
    """Count the FLOPs of products inside fused kernels, which no compiled program shows.

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


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Sum 2·m·n·k over the matrix products of a traced function.

    Products in inner functions count, those in a scan as often as it runs, and of the branches of a
    `cond` the one with most.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [
            leaf
            for leaf in jax.tree.leaves(list(equation.params.values()))
            if isinstance(leaf, Jaxpr | ClosedJaxpr)
        ]
        match equation.primitive.name:
            case 'dot_general':
                (contracted, _), _ = equation.params['dimension_numbers']
                shape = _shape(equation.invars[0])
                contractions = math.prod(shape[axis] for axis in contracted)
                total += 2 * math.prod(_shape(equation.outvars[0])) * contractions
            case 'ragged_dot_general':  # Each row is multiplied by one of the matrices.
                total += 2 * math.prod(_shape(equation.outvars[0])) * _shape(equation.invars[0])[-1]
            case 'scan':
                total += equation.params['length'] * sum(map(matmul_flops, inner))
            case 'cond':
                total += max(map(matmul_flops, inner))
            case _:
                total += sum(map(matmul_flops, inner))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    """Return the shape of a variable of a jaxpr."""
    return variable.aval.shape


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

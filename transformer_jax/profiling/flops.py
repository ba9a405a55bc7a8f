"""What a model costs, read off its shapes and its traced program: no array is made and no device
is needed.

FLOPs are those of matrix products alone, 2·m·n·k each, counted in the traced forward pass so that
every kind of attention is right by construction. A masked score is counted like any other, a
recomputed one is not, a `while` loop counts once.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from transformer_jax.attention.engines import KERNELS, site_incompatibility
from transformer_jax.config import Components
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import build_model, dummy_batch
from transformer_jax.models.architecture import Architecture, LayerAttention
from transformer_jax.training.train_state import TrainState, dropout_rate


def traceable(architecture: Architecture) -> Architecture:
    """The same model to trace, not to run: chunked where a kernel would be, which makes the
    same products.

    What happens inside a kernel no trace shows, and without the accelerator that has it not even a
    trace can be made.
    """
    return architecture.with_engines(
        lambda site, layer: 'chunked' if layer.engine in KERNELS else layer.engine
    )


def portable(architecture: Architecture) -> Architecture:
    """The same model with the engines that `auto` takes on a machine without kernels.

    So whatever machine counts finds the same number, and a window costs what it shows of the keys.
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
    """Parameters but for tables of tokens and of positions that are added to them; all experts of a
    mixture count.
    """
    boxed = jax.tree.leaves(
        _boxed_params(build_model(components.architecture)),
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    return sum(leaf.value.size for leaf in boxed if not is_embedding(leaf.names))


def is_embedding(axes: Sequence[str | None]) -> bool:
    """Whether the logical `axes` of a parameter are those of a table of tokens, or of positions
    added to them.

    What attention itself learns for positions (relative ones, Linformer's mixtures, the
    synthesizer's scores) is none.
    """
    return 'vocab' in axes or tuple(axes) == ('position', 'embed')


def flops_per_token(components: Components) -> float:
    """Forward FLOPs per target token of a row, padding included, as long as the middle one of
    `data.batching`.

    For a classifier per source token. The same number on every machine.
    """
    model = build_model(portable(components.architecture))
    lengths = sorted(length for _, length in batch_shapes(components))
    length = lengths[(len(lengths) - 1) // 2]  # Sentences crowd in the shorter half of the buckets.
    return forward_flops(model, nn.meta.unbox(_boxed_params(model)), 1, length) / length


def batch_shapes(components: Components) -> tuple[tuple[int, int], ...]:
    """(rows, length) of every shape that training compiles, before rows are padded for
    the devices.
    """
    batching = components.batching
    lengths = np.array([(length, length) for length in batching.row_lengths()])
    plan = batching.plan(
        lengths, np.arange(len(lengths)), components.config.train.batch_tokens, seed=None
    )
    return plan.shapes


def forward_flops(model: nn.Module, params: Any, rows: int, length: int) -> int:
    """FLOPs of all matrix products from a batch to its logits; source and target have
    `length` tokens.
    """
    batch = jax.eval_shape(lambda: dummy_batch(model.architecture, rows, length))
    return matmul_flops(
        jax.make_jaxpr(lambda params, batch: model.apply({'params': params}, batch))(params, batch)
    )


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """2·m·n·k summed over the matrix products of a traced function, those in inner functions and
    loops included.
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
                shape = equation.invars[0].aval.shape
                total += (
                    2
                    * equation.outvars[0].aval.size
                    * math.prod(shape[axis] for axis in contracted)
                )
            case 'ragged_dot_general':  # each row meets one of the matrices
                total += 2 * equation.outvars[0].aval.size * equation.invars[0].aval.shape[-1]
            case 'scan':
                total += equation.params['length'] * sum(map(matmul_flops, inner))
            case 'cond':
                total += max(map(matmul_flops, inner))
            case _:
                total += sum(map(matmul_flops, inner))
    return total


def activation_bytes(model: nn.Module, state: TrainState, rows: int, length: int) -> int:
    """Bytes that autodiff keeps between the forward and the backward pass of one microbatch of
    `rows`, weights apart.

    Args:
        model: the model.
        state: abstract.
        rows: of one device.
        length: of source and target.
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


def _boxed_params(model: nn.Module) -> Any:
    """The parameters as shapes with their logical axes."""
    return jax.eval_shape(model.init, jax.random.PRNGKey(0), dummy_batch(model.architecture))[
        'params'
    ]

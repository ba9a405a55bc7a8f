"""The gradient of the mean loss at a checkpoint, in numbers."""

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import Batch
from transformer_jax.inference.probes import choose_batches
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import abstract_params, build_model
from transformer_jax.models.architecture import Architecture
from transformer_jax.storage.arrays import named_leaves


def gradient_norms(trained: TrainedRun, split: str, batches: int) -> dict[str, float]:
    """Measure the L2 norm of the gradient of every parameter.

    The loss is that of evaluation, in nats: the mean over the counted tokens of all batches,
    teacher-forced, without dropout and label smoothing.

    Args:
        trained: the model and its data.
        split: 'validation' or 'test'.
        batches: how many of its batches to read, see `choose_batches`.

    Returns:
        the norms by the names of the parameters, such as 'decoder_0/ffn/in_kernel'.
    """
    model, partitioner = trained.model, trained.partitioner
    shardings = partitioner.shardings(abstract_params(model))

    def sums(params: Any, batch: Batch) -> tuple[Any, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            found, _ = loss_sums(model, params, batch)
            return found.loss, found.weight

        return jax.grad(loss, has_aux=True)(params)

    differentiate = partitioner.compile(sums, out_shardings=(shardings, partitioner.replicated))
    add = partitioner.compile(functools.partial(jax.tree.map, operator.add), donate_argnums=0)
    norms = partitioner.compile(
        functools.partial(jax.tree.map, _norm), out_shardings=partitioner.replicated
    )
    parts = (
        differentiate(trained.params, batch) for batch in choose_batches(trained, split, batches)
    )
    gradient, weight = functools.reduce(add, parts)
    total = float(weight)
    return {name: float(norm) / total for name, norm in named_leaves(norms(gradient)).items()}


def norm_of(norms: Mapping[str, float], part: str = '') -> float:
    """Return the norm of the gradient of the parameters with `part` in their names."""
    return math.hypot(*(norm for name, norm in norms.items() if part in name))


def lacks_part(architecture: Architecture, part: str) -> str:
    """Say that no parameter of a model has `part` in its name; '' where one has."""
    params = nn.meta.unbox(abstract_params(build_model(architecture.unscanned())))
    names = named_leaves(params)
    if any(part in name for name in names):
        return ''
    return f'no parameter has {part!r} in its name, as {next(iter(names))}'


def _norm(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(array.astype(jnp.float32))))

"""One training step: a pure function, the same on one device and on many."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from transformer_jax.batch import Batch
from transformer_jax.config.components import Components
from transformer_jax.layers.moe import load_metrics
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.training.train_state import (
    TrainState,
    decay_mask,
    dropout_rate,
    optimizer,
)

Metrics = dict[str, jax.Array]


def train_step(
    model: nn.Module,
    components: Components,
    state: TrainState,
    batch: Batch,
    axis: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Update the state once, from `train.accumulate` microbatches.

    Gradients of the summed loss are summed over microbatches, and over the mapped `axis` where
    there is one, then divided once by the number of target tokens. Where loss, gradient or update
    is not finite the parameters and the optimizer's state stay as they were.

    Args:
        model: of the experiment.
        components: of the experiment.
        state: before the step.
        batch: rows [B, T], a multiple of `train.accumulate`.
        axis: the mapped axis of devices, under pmap.

    Returns:
        the next state, and scalars: loss and nll in nats per token, accuracy, tokens, grad_norm,
        learning_rate, finite.
    """
    grads, (sums, loads) = _gradient_sums(model, components, state, batch, axis)
    tokens = jnp.maximum(sums.weight, 1)
    grads = jax.tree.map(lambda g: g / tokens, grads)
    direction, opt_state = optimizer(components, model).update(grads, state.opt_state, state.params)
    updates, rate = _updates(model, components, state, direction)
    grad_norm = optax.tree.norm(grads)
    finite = (
        jnp.isfinite(sums.loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    )

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    params = if_finite(optax.apply_updates(state.params, updates), state.params)
    ema = state.ema
    if ema is not None:
        ema = if_finite(_moving_average(ema, params, components.config.train.ema, state.step), ema)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=if_finite(opt_state, state.opt_state),
        skipped=state.skipped + (1 - finite.astype(jnp.int32)),
        ema=ema,
    )
    metrics = {
        'loss': sums.loss / tokens,
        'nll': sums.nll / tokens,
        'accuracy': sums.correct / tokens,
        'tokens': sums.weight,
        'grad_norm': grad_norm,
        'learning_rate': rate,
        'finite': finite,
    }
    return new_state, metrics | load_metrics(loads, tokens)


def seed_step(
    model: nn.Module, components: Components, state: TrainState, batch: Batch, live: jax.Array
) -> tuple[TrainState, Metrics]:
    """Take `train_step` of one seed of a group; arguments as there.

    Args:
        live: whether the seed still trains: one that does not, or that has diverged, keeps its
            state for good.
    """
    new_state, metrics = train_step(model, components, state, batch)
    if components.config.train.on_nonfinite == 'stop':
        live &= state.skipped == 0
    return jax.tree.map(lambda new, old: jnp.where(live, new, old), new_state, state), metrics


def _gradient_sums(
    model: nn.Module, components: Components, state: TrainState, batch: Batch, axis: str | None
) -> tuple[Any, Any]:
    """Sum gradients and (loss sums, expert loads) over microbatches and the mapped axis."""
    hyper, dropout = state.hyper, dropout_rate(model.architecture, state.hyper)
    parts = components.config.train.accumulate
    rng = jax.random.fold_in(state.rng, state.step)
    if axis:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))

    def objective(params, microbatch, rng):
        sums, loads = loss_sums(model, params, microbatch, hyper.label_smoothing, dropout, rng)
        return sums.loss, (sums, loads)

    gradient = jax.grad(objective, has_aux=True)
    if parts == 1:
        total = gradient(state.params, batch, rng)
    else:

        def body(carry, inputs):
            return jax.tree.map(jnp.add, carry, gradient(state.params, *inputs)), None

        microbatches = jax.tree.map(lambda a: _interleave(a, parts), batch)
        rngs = jax.random.split(rng, parts)
        first = jax.tree.map(lambda a: a[0], (microbatches, rngs))
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, state.params, *first)
        )
        total, _ = jax.lax.scan(body, zeros, (microbatches, rngs))
    return jax.lax.psum(total, axis) if axis else total


def _updates(
    model: nn.Module, components: Components, state: TrainState, direction: Any
) -> tuple[Any, jax.Array]:
    """Scale the direction by the learning rate, with decoupled weight decay: (updates, rate)."""
    config, hyper = components.config, state.hyper
    rate = hyper.learning_rate * components.schedule(
        state.step + 1.0, config.train.steps, config.model.d_model
    )
    updates = jax.tree.map(
        lambda decays, d, p: -rate * (d + hyper.weight_decay * p if decays else d),
        decay_mask(config, model),
        direction,
        state.params,
    )
    return updates, rate


def _moving_average(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    # A young average forgets faster, or the first parameters would weigh most for
    # 1 / (1 − decay) steps.
    rate = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, p: rate * average + (1 - rate) * p, ema, params)


def _interleave(a_BT: jax.Array, parts: int) -> jax.Array:
    # Microbatch i takes rows i, i + parts, …: each device keeps the rows it has.
    return jnp.moveaxis(a_BT.reshape(a_BT.shape[0] // parts, parts, *a_BT.shape[1:]), 1, 0)

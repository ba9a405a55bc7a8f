"""Training on several devices, compared with the same training on one."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from transformer_jax.config.resolve import parse_components
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step


def train(first_state, train_step, batches, steps):
    """(state after the first step, losses of all steps), from a state that is made anew."""
    state, first, losses = first_state(), None, []
    for n in range(steps):
        state, metrics = train_step(state, batches[n % len(batches)])
        first = first or jax.tree.map(np.asarray, state)
        losses.append(float(metrics['loss']))
    return first, losses


def one_device(config, model):
    """(a function that makes the first state, the compiled step): no mesh, no shardings."""
    components = parse_components(config)
    state = nn.meta.unbox(train_state.init_state(components, model))
    return lambda: state, jax.jit(functools.partial(step.train_step, model, components))


def assert_same_training(found, expected):
    """The first step has the same loss and gradients to 1e-5, all steps the same losses to 1e-4."""
    (first, losses), (expected_first, expected_losses) = found, expected
    assert losses[0] == pytest.approx(expected_losses[0], rel=1e-5)
    # Adam's first moment after one step is (1 − b1) times the gradient that the step saw.
    moments, expected = (optax.tree.get(state.opt_state, 'mu') for state in (first, expected_first))
    whole = float(optax.tree.norm(expected))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(moments), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3 * whole), (
            jax.tree_util.keystr(path)
        )
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)

"""Parameters with logical axes, and the constraint of activations at block edges."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def parameter(
    module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str], init: Initializer
) -> jax.Array:
    """A float32 parameter of `module` whose dimensions carry the logical `axes`."""
    return module.param(
        name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.float32
    )


def constrain(x_BTD: jax.Array) -> jax.Array:
    """Pins activations to the mesh at a block's edge; does nothing where no mesh is set."""
    return nn.with_logical_constraint(x_BTD, ('batch', 'length', 'activation'))

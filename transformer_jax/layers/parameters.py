"""Parameters with logical axes, and the constraint of activations at block edges."""

from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

Initializer = Callable[..., jax.Array]


def parameter(
    module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str], init: Initializer
) -> jax.Array:
    """Declare a float32 parameter of `module`.

    Args:
        module: to own the parameter.
        name: in the module's dictionary of parameters.
        shape: of the array.
        axes: the logical axis of each dimension, which `partitioning` maps to the mesh.
        init: (rng, shape, dtype) → the array before training.
    """
    boxed_init = nn.with_logical_partitioning(init, tuple(axes))
    # Flax unboxes the array that the initializer boxed with its axes.
    return cast(jax.Array, module.param(name, boxed_init, tuple(shape), jnp.float32))


def constrain(x_BTD: jax.Array) -> jax.Array:
    """Constrain activations at a block's edge to their logical axes; without a mesh, do nothing."""
    return with_logical_constraint(x_BTD, ('batch', 'length', 'activation'))

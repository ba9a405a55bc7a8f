"""Parameters with logical axes, and the constraint of activations at block edges."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint

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
    """Constrain activations at a block's edge to their logical axes; without a mesh, do nothing.

    A length that the mesh does not divide is not cut: that of a prompt, or of a step of decoding.
    """
    cut = 'length' if axes_that_cut('length', x_BTD.shape[1]) else None
    return with_logical_constraint(x_BTD, ('batch', cut, 'activation'))


def axes_that_cut(logical: str, size: int) -> tuple[str, ...]:
    """Name the mesh axes that cut a dimension with a logical axis.

    Returns:
        () where there is no mesh, where its devices do not divide `size`, and where the code that
        asks runs on one device of these axes already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rule = tuple(logical_to_mesh_axes((logical,)) or ())
    axes = rule[0] if rule else None
    if axes is None or mesh.empty:
        return ()
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    if set(axes) & set(mesh.manual_axes) or size % math.prod(mesh.shape[axis] for axis in axes):
        return ()
    return axes

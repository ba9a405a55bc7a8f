"""What the engines share: the place in the model where one runs, and cutting the time axis."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.layers.param_scope import HeadDims


class SiteSpec(NamedTuple):
    """The place in the model where an engine is to run."""

    name: str  # 'encoder', 'decoder' or 'cross'
    heads: HeadDims
    dtype: str  # of the computation
    attention_dropout: bool  # whether weights are dropped in training
    context: int = 1  # over how many devices `parallel.mesh.context` cuts a row
    seeds: int = 1  # how many are trained side by side in one program


def pad_time(tree: Any, before: int, after: int) -> Any:
    """Pad the time axis of every leaf [B, T, …] with zeros; tokens become segment 0."""

    def pad(leaf):
        return jnp.pad(leaf, [(0, 0), (before, after)] + [(0, 0)] * (leaf.ndim - 2))

    return jax.tree.map(pad, tree)


def cut_time(tree: Any, size: int) -> Any:
    """Cut every leaf [B, T, …] into pieces [B, T/size, size, …]; T is a multiple of `size`."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1, size, *leaf.shape[2:]), tree)

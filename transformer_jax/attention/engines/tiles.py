"""What the engines share: where one runs, how long a mask reaches, how time is cut."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.layers.param_scope import HeadDims


class SiteSpec(NamedTuple):
    """Where an engine is to run."""

    name: str  # encoder, decoder, cross
    heads: HeadDims
    dtype: str  # of the computation
    attention_dropout: bool  # whether weights are dropped in training


def pad_time(tree: Any, before: int, after: int) -> Any:
    """Every leaf, batch and time in front, with so many zeros more along time: tokens of
    segment 0.
    """

    def pad(leaf):
        return jnp.pad(leaf, [(0, 0), (before, after)] + [(0, 0)] * (leaf.ndim - 2))

    return jax.tree.map(pad, tree)


def cut_time(tree: Any, size: int) -> Any:
    """Every leaf, its time a multiple of `size`, as (batch, pieces, size, …)."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1, size, *leaf.shape[2:]), tree)

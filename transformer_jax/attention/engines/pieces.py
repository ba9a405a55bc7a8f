"""Rows that are cut over devices: each device attends from its own piece of every row.

The rules of the mesh say which axes cut the logical axis 'length'. What runs on a piece is an
ordinary function of arrays: it is told through `Pieces` where its piece lies, and sends arrays to
other devices by its methods. Without such a mesh there is one piece, the whole row.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from transformer_jax.layers.parameters import axes_that_cut


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of a row, in the order of the row: one on each device along some mesh axes."""

    count: int = 1
    axes: tuple[str, ...] = ()

    def number(self) -> jax.Array | int:
        """Return the number of this device's piece, from 0."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def send(self, tree: Any, routes: Sequence[tuple[int, int]]) -> Any:
        """Send every leaf along `routes`, (from, to) in numbers of pieces.

        A device to which no route leads receives zeros.
        """
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.axes, routes), tree)

    def pass_on(self, tree: Any) -> Any:
        """Send every leaf to the next device, and that of the last device to the first."""
        if self.count == 1:
            return tree
        return self.send(tree, [(n, (n + 1) % self.count) for n in range(self.count)])

    def gather(self, tree: Any) -> Any:
        """Stack every leaf of all devices along a new first axis."""
        if self.count == 1:
            return jax.tree.map(lambda leaf: leaf[None], tree)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, self.axes), tree)

    def gather_time(self, tree: Any) -> Any:
        """Join the time axis of every leaf [B, T, …] of all devices to whole rows."""
        if self.count == 1:
            return tree
        return jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, self.axes, axis=1, tiled=True), tree
        )


def attend_in_pieces(
    attend: Callable[[Pieces, Any, Any, Any], jax.Array], queries: Any, keys: Any, inputs: Any
) -> jax.Array:
    """Return o_BTNH of `attend`, which each device calls for its rows and its piece of them.

    Heads that are cut too are left to the compiler: `attend` sees all of them. Rows, or a length,
    that the mesh does not divide are not cut: they belong to a prompt or to a step of decoding.

    Args:
        attend: (pieces, queries, keys, inputs) → o_BTNH, of a piece of the queries and of the same
            piece of the keys.
        queries: leaves [B, T, …].
        keys: leaves [B, S, …].
        inputs: an `AttentionInputs`. The key of its dropout becomes another one on each device.
    """
    (B, T), S = inputs.query_tokens.positions_BT.shape, inputs.key_tokens.positions_BT.shape[1]
    axes = axes_that_cut('length', math.gcd(T, S))
    mesh = jax.sharding.get_abstract_mesh()
    pieces = Pieces(math.prod(mesh.shape[axis] for axis in axes), axes)
    if pieces.count == 1:
        return attend(Pieces(), queries, keys, inputs)
    rows = axes_that_cut('batch', B)

    def attend_on_device(queries: Any, keys: Any, inputs: Any) -> jax.Array:
        if inputs.dropout is not None:
            rng, rate = inputs.dropout
            device = jax.lax.axis_index((*rows, *axes))
            inputs = inputs.replace(dropout=(jax.random.fold_in(rng, device), rate))
        return attend(pieces, queries, keys, inputs)

    cut, whole = PartitionSpec(rows or None, axes), PartitionSpec()
    heads = {*axes_that_cut('heads', 0), *axes_that_cut('kv_heads', 0)}
    return jax.shard_map(
        attend_on_device,
        in_specs=(
            cut,
            cut,
            inputs.replace(
                query_tokens=cut,
                key_tokens=cut,
                params=whole,
                position_params=whole,
                dropout=whole,
            ),
        ),
        out_specs=cut,
        axis_names=set(mesh.axis_names) - {axis for axis in heads if mesh.shape[axis] > 1},
        check_vma=False,
    )(queries, keys, inputs)

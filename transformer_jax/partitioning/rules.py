"""Logical axes to mesh axes: one table, checked before anything compiles."""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from transformer_jax import spec
from transformer_jax.errors import ConfigError

# Logical axis → the mesh axes that its dimension is split over, the first varying slowest. The
# embedding is cut along its vocabulary alone, by both axes, because a gather from a table cut in
# two dimensions moves the whole table.
RULES: dict[str, tuple[str, ...]] = {
    'seed': ('seed',),
    'batch': ('data', 'fsdp'),
    'length': ('context',),
    'piece': ('context', 'data', 'fsdp'),  # rows that are pieces of rows, see `losses.chunks`
    'activation': (),
    'vocab': ('tensor', 'fsdp'),
    'embedding': (),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'experts': (),  # ('data',) cuts them too, where their number divides
    'norm': (),
    'read_heads': (),  # Not cut as heads are: where heads mix, each reads all.
    'rank': (),
    'position': (),
    'read_position': (),
}


def batch_spec() -> PartitionSpec:
    """Cut the rows of a batch over the axes that share them."""
    return PartitionSpec(RULES['batch'])


def stacked_spec(partition: PartitionSpec) -> PartitionSpec:
    """Cut stacked arrays, one for each seed of a group, where each is cut like `partition`."""
    return PartitionSpec(RULES['seed'], *partition)


def logical_rules() -> list[tuple[str, tuple[str, ...] | None]]:
    """Return RULES in the form that linen's constraints read."""
    return [(name, axes or None) for name, axes in RULES.items()]


def partition_specs(boxed: Any, sizes: dict[str, int]) -> Any:
    """Give every array of a tree its PartitionSpec; unboxed arrays are replicated.

    Args:
        boxed: abstract arrays, boxed with their logical axes where they have any.
        sizes: mesh axis to size, see `mesh_sizes`.

    Raises:
        ConfigError: an unknown logical axis, an axis used twice in one array, or a dimension that
            does not divide.
    """

    def one(path, leaf):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return PartitionSpec()
        return _partition_spec(_dotted(path), leaf.names, leaf.value.shape, sizes)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')


def _partition_spec(
    name: str, axes: tuple[Any, ...], shape: tuple[int, ...], sizes: dict[str, int]
) -> PartitionSpec:
    used: dict[str, str] = {}
    if len(set(axes)) < len(axes):
        raise ConfigError(f'{name}: dimensions need names of their own: {", ".join(axes)}')
    for logical, size in zip(axes, shape, strict=True):
        if logical not in RULES:
            raise ConfigError(
                f'{name}: no sharding rule for the logical axis {logical!r}; '
                f'{spec.nearest(logical, RULES)}'
            )
        parts = math.prod(sizes[axis] for axis in RULES[logical])
        if size % parts:
            below = size // parts * parts
            raise ConfigError(
                f'{name}: dimension {logical!r} of size {size} cannot be split over {parts} '
                f'devices (mesh {"×".join(RULES[logical])}); sizes that fit: '
                f'{f"{below} or " if below else ""}{below + parts}'
            )
        for axis in RULES[logical]:
            if axis in used:  # JAX refuses it on one device too.
                raise ConfigError(
                    f'{name}: mesh axis {axis!r} would cut both {used[axis]!r} and {logical!r}'
                )
            used[axis] = logical
    return PartitionSpec(*(RULES[logical] or None for logical in axes))

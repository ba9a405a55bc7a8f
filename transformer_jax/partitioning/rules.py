"""Logical axes to mesh axes: one table, checked before anything compiles."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from transformer_jax import spec
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.mesh import pairs
from transformer_jax.schema import MeshConfig

Rules = Mapping[str, tuple[str, ...]]

# Logical axis → the mesh axes that its dimension is split over, the first varying slowest. The
# embedding is cut along its vocabulary alone, by both axes, because a gather from a table cut in
# two dimensions moves the whole table.
RULES: Rules = {
    'seed': ('seed',),
    'layers': (),
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
    'experts': (),
    'norm': (),
    'read_heads': (),  # Not cut as heads are: where heads mix, each reads all.
    'rank': (),
    'position': (),
    'read_position': (),
}

# The sizes of the mesh and the number of rows are made for these; all other rules may be replaced.
FIXED = ('seed', 'batch')


def parse_rules(text: str) -> Rules:
    """Return RULES with those of `parallel.rules` in their place.

    Args:
        text: `'experts=data, vocab=fsdp+tensor, embed=none'`; '' replaces none.

    Raises:
        ConfigError: another form, an unknown axis, or one that is named twice.
    """
    key = f'parallel.rules={text!r}'
    mesh_axes = [field.name for field in dataclasses.fields(MeshConfig)]
    found = dict(RULES)
    for logical, cut in pairs(text, key, 'experts=data, vocab=fsdp+tensor, embed=none').items():
        if logical in FIXED:
            raise ConfigError(f'{key}: {logical!r} is cut as parallel.mesh says: leave it out')
        if logical not in RULES:
            nearest = spec.nearest(logical, RULES.keys() - set(FIXED))
            raise ConfigError(f'{key}: no logical axis {logical!r}; {nearest}')
        axes = () if cut == 'none' else tuple(axis.strip() for axis in cut.split('+'))
        for axis in axes:
            if axis not in mesh_axes:
                nearest = spec.nearest(axis, [*mesh_axes, 'none'])
                raise ConfigError(f'{key}: no mesh axis {axis!r}; {nearest}')
            if axes.count(axis) > 1:
                raise ConfigError(f'{key}: {logical!r} names the mesh axis {axis!r} twice')
        found[logical] = axes
    return found


def batch_spec() -> PartitionSpec:
    """Cut the rows of a batch over the axes that share them."""
    return PartitionSpec(RULES['batch'])


def stacked_spec(partition: PartitionSpec) -> PartitionSpec:
    """Cut stacked arrays, one for each seed of a group, where each is cut like `partition`."""
    return PartitionSpec(RULES['seed'], *partition)


def logical_rules(rules: Rules = RULES) -> list[tuple[str, tuple[str, ...] | None]]:
    """Return rules in the form that linen's constraints read."""
    return [(name, axes or None) for name, axes in rules.items()]


def partition_specs(boxed: Any, sizes: dict[str, int], rules: Rules = RULES) -> Any:
    """Give every array of a tree its PartitionSpec; unboxed arrays are replicated.

    Args:
        boxed: abstract arrays, boxed with their logical axes where they have any.
        sizes: mesh axis to size, see `mesh_sizes`.
        rules: logical axis to mesh axes.

    Raises:
        ConfigError: an unknown logical axis, an axis used twice in one array, or a dimension that
            does not divide.
    """

    def one(path, leaf):
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return PartitionSpec()
        return _partition_spec(_dotted(path), leaf.names, leaf.value.shape, sizes, rules)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')


def _partition_spec(
    name: str, axes: tuple[Any, ...], shape: tuple[int, ...], sizes: dict[str, int], rules: Rules
) -> PartitionSpec:
    used: dict[str, str] = {}
    if len(set(axes)) < len(axes):
        raise ConfigError(f'{name}: dimensions need names of their own: {", ".join(axes)}')
    for logical, size in zip(axes, shape, strict=True):
        if logical not in rules:
            raise ConfigError(
                f'{name}: no sharding rule for the logical axis {logical!r}; '
                f'{spec.nearest(logical, rules)}'
            )
        cut = rules[logical]
        by_user = '' if cut == RULES[logical] else f'; parallel.rules has {logical}={"+".join(cut)}'
        parts = math.prod(sizes[axis] for axis in cut)
        if size % parts:
            below = size // parts * parts
            raise ConfigError(
                f'{name}: dimension {logical!r} of size {size} cannot be split over {parts} '
                f'devices (mesh {"×".join(cut)}); sizes that fit: '
                f'{f"{below} or " if below else ""}{below + parts}{by_user}'
            )
        for axis in cut:
            if axis in used:  # JAX refuses it on one device too.
                raise ConfigError(
                    f'{name}: mesh axis {axis!r} would cut both {used[axis]!r} and {logical!r}'
                    f'{by_user}'
                )
            used[axis] = logical
    return PartitionSpec(*(rules[logical] or None for logical in axes))

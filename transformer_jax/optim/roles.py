"""The role of each array of a model, which decides what an optimizer does to it."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

# Logical axes of tables that are indexed by token or by position.
TABLE_AXES = ('vocab', 'position')

# Every kernel has one of these logical axes.
INPUT_AXES = ('embed', 'rank')


@dataclasses.dataclass(frozen=True)
class Role:
    """What an array of a model is to an optimizer.

    Attributes:
        shape: of the array.
        group: 'kernel' maps vectors to vectors; 'embedding' is a table of tokens or positions;
            'vector' is everything else: norms, biases, numbers of a head.
        batch: of a kernel, the dimensions that count its copies: layers, experts.
        inputs: of a kernel, the dimensions that it sums over: (0, 1) for [N, H, D].
        outputs: of a kernel, the dimensions of its result: (1, 2) for [D, N, H].
    """

    shape: tuple[int, ...]
    group: str
    batch: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    stacked: bool = False  # the first dimension counts layers, each an array of its own

    def matrix(self) -> tuple[int, int]:
        """Return (rows, columns) of a kernel as a matrix: its inputs and outputs."""
        rows, columns = (
            math.prod(self.shape[i] for i in dims) for dims in (self.inputs, self.outputs)
        )
        return rows, columns

    def matrices(self, a: jax.Array) -> jax.Array:
        """Reshape a kernel to [copies, rows, columns]; return another array unchanged.

        A kernel of stacked layers becomes [layers, copies, rows, columns].
        """
        if self.group != 'kernel':
            return a
        layers = self.shape[: self.stacked]
        a = a.transpose(self.batch + self.inputs + self.outputs)
        return a.reshape(*layers, -1, *self.matrix())

    def whole(self, a: jax.Array) -> jax.Array:
        """Undo `matrices`: return an array of the role's shape."""
        if self.group != 'kernel':
            return a
        order = self.batch + self.inputs + self.outputs
        return a.reshape([self.shape[i] for i in order]).transpose(
            [order.index(i) for i in range(len(order))]
        )


def roles(boxed: Any) -> Any:
    """Map every array of a tree to its Role.

    Args:
        boxed: a tree of arrays or shapes, boxed with their logical axes where they have any.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if isinstance(leaf, nn.LogicallyPartitioned):
            return _role(name, leaf.names, leaf.value.shape)
        return _role(name, INPUT_AXES[:1] * leaf.ndim, leaf.shape)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def _role(name: str, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> Role:
    """Derive the role of an array from its name and its logical axes."""
    stacked = axes[:1] == ('layers',)
    copies = sum(axis in ('layers', 'experts') for axis in axes[: 1 + stacked])
    batch, dims = tuple(range(copies)), tuple(range(copies, len(axes)))
    if len(dims) < 2 or name.endswith('bias') or not set(axes) & {*TABLE_AXES, *INPUT_AXES}:
        return Role(shape, 'vector', stacked=stacked)
    if set(axes) & set(TABLE_AXES):
        return Role(shape, 'embedding', stacked=stacked)
    # A kernel back to the model's dimension sums over all others; any other sums over the first.
    back = axes[-1] == 'embed' and axes[dims[0]] != 'embed'
    cut = len(dims) - 1 if back else 1
    return Role(shape, 'kernel', batch, dims[:cut], dims[cut:], stacked)

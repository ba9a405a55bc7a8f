"""The roles of a model's arrays, which decide what an optimizer does to each of them."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

TABLE_AXES = ('vocab', 'position')  # of what is looked up by token or by place

INPUT_AXES = ('embed', 'rank')  # every kernel has one of these


@dataclasses.dataclass(frozen=True)
class Role:
    """What an array of a model is to an optimizer.

    group: 'kernel' maps vectors to vectors; 'embedding' is a table of tokens or places; 'vector' is
    all else: norms, biases, numbers of a head.
    batch, inputs, outputs: of a kernel, the dimensions that count its copies (experts), that it
    sums over and that it makes: (1, 2) for the outputs of [D, N, H], (0, 1) for the inputs of [N,
    H, D].
    """

    shape: tuple[int, ...]
    group: str
    batch: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of a kernel."""
        rows, columns = (
            math.prod(self.shape[i] for i in dims) for dims in (self.inputs, self.outputs)
        )
        return rows, columns

    def matrices(self, a: jax.Array) -> jax.Array:
        """A kernel as a stack of matrices, its copies in front; another array as it is."""
        if self.group != 'kernel':
            return a
        return a.transpose(self.batch + self.inputs + self.outputs).reshape(-1, *self.matrix())

    def whole(self, a: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        if self.group != 'kernel':
            return a
        order = self.batch + self.inputs + self.outputs
        return a.reshape([self.shape[i] for i in order]).transpose(
            [order.index(i) for i in range(len(order))]
        )


def roles(boxed: Any) -> Any:
    """The Role of every array of a tree, whose arrays are boxed with their logical axes where they
    have any.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if isinstance(leaf, nn.meta.AxisMetadata):
            return _role(name, leaf.names, leaf.value.shape)
        return _role(name, INPUT_AXES[:1] * leaf.ndim, leaf.shape)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def _role(name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> Role:
    batch = (0,) if axes[:1] == ('experts',) else ()
    dims = tuple(range(len(batch), len(axes)))
    if len(dims) < 2 or name.endswith('bias') or not set(axes) & {*TABLE_AXES, *INPUT_AXES}:
        return Role(shape, 'vector')
    if set(axes) & set(TABLE_AXES):
        return Role(shape, 'embedding')
    back = (
        axes[-1] == 'embed' and axes[dims[0]] != 'embed'
    )  # to the model's dimension, from all others
    cut = len(dims) - 1 if back else 1
    return Role(shape, 'kernel', batch, dims[:cut], dims[cut:])

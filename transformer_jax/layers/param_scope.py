"""The interface through which pure functions declare parameters, and the sizes of heads."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax


@dataclasses.dataclass(frozen=True)
class HeadDims:
    """The number and sizes of the heads of an attention layer."""

    num_heads: int  # N query heads
    kv_heads: int  # K key-value heads; N is a multiple of K
    head_dim: int  # d_k, the size of a query and of a key
    value_dim: int  # d_v, the size of a value


class ParamScope(Protocol):
    """The module that owns the parameters of an attention kind or of a position encoding.

    Kinds and encodings are pure functions, which declare their learned arrays through this
    interface.
    """

    heads: HeadDims
    layer: int  # from 0
    position: Any  # the Position of this attention

    def project_to_heads(
        self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str
    ) -> jax.Array:
        """Project x_BTD to x_BTNH with a learned kernel.

        There is a bias where `model.attention_bias` asks for one. Name the projection of the values
        'value', so that DeepNorm can scale its initial kernel.

        Args:
            name: of the parameters.
            x_BTD: activations.
            heads: N, how many.
            size: H, of a head.
            axis: the logical axis of the heads, 'heads' or 'kv_heads'.
        """
        ...

    def parameter(
        self, name: str, shape: Sequence[int], axes: Sequence[str], init: Callable[..., jax.Array]
    ) -> jax.Array:
        """Declare a learned float32 array; arguments as of `layers.parameters.parameter`."""
        ...

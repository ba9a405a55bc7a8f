"""What pure functions see of the module that owns their parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax


@dataclasses.dataclass(frozen=True)
class HeadDims:
    """The heads of an attention: how many, and how wide."""

    num_heads: int  # N query heads
    kv_heads: int  # K key-value heads, which divide N
    head_dim: int  # d_k, of a query and a key
    value_dim: int  # d_v, of a value


class ParamScope(Protocol):
    """Where a kind of attention, or a position encoding, asks for its learned arrays."""

    heads: HeadDims
    layer: int  # from 0
    position: Any  # the Position of this attention

    def project_to_heads(
        self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str
    ) -> jax.Array:
        """Projects x_BTD to x_BTNH with a learned kernel, and a bias where the configuration
        has one.

        What attention mixes is named 'value', so that DeepNorm can scale its initial kernel.
        """

    def parameter(
        self, name: str, shape: Sequence[int], axes: Sequence[str], init: Callable[..., jax.Array]
    ) -> jax.Array:
        """A float32 array whose dimensions carry the logical `axes`."""

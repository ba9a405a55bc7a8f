"""The layout of a train state in checkpoints, where every layer is apart, scanned or not."""

import functools
from typing import Any

import jax

from transformer_jax.models.architecture import Architecture
from transformer_jax.models.layer_stack import split_layers, stack_layers
from transformer_jax.partitioning.partitioner import Partitioner


class StoredLayout:
    """Converts a train state between its layout in training and that in checkpoints.

    The two differ where the model scans its layers. Then a conversion holds the state twice.

    Attributes:
        abstract: the state in checkpoints as shapes, dtypes and shardings, to restore into.
    """

    def __init__(self, partitioner: Partitioner, architecture: Architecture, boxed: Any):
        """Compile the conversions.

        Args:
            partitioner: of the state; with several seeds its arrays have an axis of seeds.
            architecture: of the model.
            boxed: the abstract state of one seed in training, boxed with its logical axes.
        """
        split = functools.partial(split_layers, architecture=architecture)
        stack = functools.partial(stack_layers, architecture=architecture)
        apart = jax.eval_shape(split, boxed)
        self.abstract = partitioner.abstract(apart)
        self._converts = any(architecture.scan(stack) for stack in ('encoder', 'decoder'))
        if partitioner.num_seeds > 1:
            split, stack = jax.vmap(split), jax.vmap(stack)
        self._split = partitioner.compile(split, out_shardings=partitioner.shardings(apart))
        self._stack = partitioner.compile(
            stack, out_shardings=partitioner.shardings(boxed), donate_argnums=0
        )

    def store(self, state: Any) -> Any:
        """Return a state of training as checkpoints have it."""
        return self._split(state) if self._converts else state

    def load(self, stored: Any) -> Any:
        """Return a state of a checkpoint as training has it; consumes `stored`."""
        return self._stack(stored) if self._converts else stored

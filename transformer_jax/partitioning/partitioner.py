"""Places arrays on a mesh and compiles functions for it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.partitioning.mesh import make_mesh, platform_of
from transformer_jax.partitioning.rules import (
    RULES,
    Rules,
    batch_spec,
    logical_rules,
    partition_specs,
    stacked_spec,
)
from transformer_jax.schema import MeshConfig


class CompiledFunction:
    """A jitted function that is traced, lowered and run inside the context of its mesh."""

    def __init__(self, jitted: Any, context: Callable[[], AbstractContextManager]):
        self._jitted, self._context = jitted, context

    def __call__(self, *args: Any) -> Any:
        """Run the function in the context of its mesh."""
        with self._context():
            return self._jitted(*args)

    def lower(self, *args: Any) -> Any:
        """Lower the function for such arguments, see `jax.jit(…).lower`."""
        with self._context():
            return self._jitted.lower(*args)


def to_host(array: jax.Array) -> np.ndarray:
    """Return the whole of an array, on every process; all of them must call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


class Partitioner:
    """The devices of a run, as `parallel.mesh` arranges them.

    With `num_seeds` > 1 every array has a leading axis of seeds, split over the mesh axis 'seed':
    parameters, batches and results of a seed group are stacked.

    Attributes:
        mesh: the mesh of devices.
        platform: of the devices: 'cpu', 'cuda' or 'tpu', see `mesh.platform_of`.
        num_seeds: the length of the leading axis; 1: there is none.
        rows_multiple: the rows of a batch must be a multiple of this.
        batch_sharding: of arrays whose first dimension (after that of seeds) is the rows.
        replicated: of arrays that every device holds whole.
        stacked: of arrays with a value for each seed, else as `replicated`.

    Raises ConfigError where the devices do not fill the mesh.
    """

    def __init__(
        self,
        config: MeshConfig,
        rules: Rules = RULES,
        num_seeds: int = 1,
        devices: Sequence[Any] = (),
    ):
        """Arrange devices.

        Args:
            config: devices per mesh axis.
            rules: which mesh axes cut each logical axis.
            num_seeds: the length of the leading axis of every array; 1: there is none.
            devices: by default all that JAX has. For those of a `topologies.Topology`, which are
                not here, functions can only be compiled.
        """
        self._rules, self.num_seeds = rules, num_seeds
        self.mesh = make_mesh(config, num_seeds, devices)
        self.platform = platform_of(self.mesh.devices.flat[0])
        self.rows_multiple = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.stacked = self._sharding(PartitionSpec())
        self.batch_sharding = self._sharding(batch_spec())

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Show the mesh and the logical rules to functions that are traced inside."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(logical_rules(self._rules)):
            yield

    def compile(self, function: Callable[..., Any], **options: Any) -> CompiledFunction:
        """Wrap `jax.jit(function, **options)` so that it traces, lowers and runs in `context`."""
        return CompiledFunction(jax.jit(function, **options), self.context)

    def shardings(self, boxed: Any) -> Any:
        """Give every array of a tree its NamedSharding.

        Args:
            boxed: abstract arrays of a single run, boxed with their logical axes where they
                have any.

        Raises:
            ConfigError: an unknown logical axis, or a dimension that the mesh cannot cut.
        """
        specs = partition_specs(boxed, dict(self.mesh.shape), self._rules)
        return jax.tree.map(self._sharding, specs)

    def abstract(self, boxed: Any) -> Any:
        """Describe every array of a tree by shape, dtype and sharding; arguments as `shardings`."""
        leading = () if self.num_seeds == 1 else (self.num_seeds,)

        def describe(array: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            shape = (*leading, *array.shape)
            return jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)

        return jax.tree.map(describe, nn.meta.unbox(boxed), self.shardings(boxed))

    def local_rows(self, rows: int) -> tuple[int, int]:
        """Return [start, stop) of the rows of a global batch that this process must have.

        Of a seed group every process makes all rows, and `put` keeps what its devices need.
        """
        if self.num_seeds > 1:
            return 0, rows
        indices = self.batch_sharding.addressable_devices_indices_map((rows,)).values()
        bounds = [index[0].indices(rows) for index in indices if index]
        return min(start for start, *_ in bounds), max(stop for _, stop, _ in bounds)

    @staticmethod
    def all_rows(rows: int) -> tuple[int, int]:
        """Return [start, stop) of the rows of a global batch for a process that needs them all."""
        return 0, rows

    def put(self, batch: Any) -> Any:
        """Place this process's rows, a pytree of NumPy arrays, as one global pytree."""
        if self.num_seeds > 1:
            return jax.tree.map(lambda a: self._put_all(a, self.batch_sharding), batch)
        return jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(self.batch_sharding, a), batch
        )

    def put_whole(self, a_B: np.ndarray) -> jax.Array:
        """Place an array of which every process has all rows, padded to `rows_multiple`."""
        rows = -len(a_B) % self.rows_multiple
        a_B = np.pad(a_B, [(0, rows)] + [(0, 0)] * (a_B.ndim - 1))
        return self._put_all(a_B, self.batch_sharding)

    def put_per_seed(self, values: np.ndarray) -> jax.Array:
        """Place one value for each seed of the group."""
        return self._put_all(values, self.stacked)

    def _put_all(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def _sharding(self, partition: PartitionSpec) -> NamedSharding:
        stacked = partition if self.num_seeds == 1 else stacked_spec(partition)
        return NamedSharding(self.mesh, stacked)

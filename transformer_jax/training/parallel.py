"""The same step over many devices: jit with shardings, or pmap."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_jax.attention.engines import require_platform
from transformer_jax.batch import Batch
from transformer_jax.config.components import Components
from transformer_jax.partitioning.rules import (
    batch_spec,
    logical_rules,
    mesh_sizes,
    partition_specs,
    replica_sizes,
    stacked_spec,
)
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training import train_step as step


class Parallel:
    """A model's steps laid out over the devices that there are, as `config.parallel` says.

    Attributes:
        abstract: the train state as shapes, dtypes and shardings, to restore into.
        rows_multiple: the rows of a batch must be a multiple of this.
        train_step: (state, batch) → (state, metrics); the given state is consumed.
        eval_step: (params, batch) → Sums.

        predict: (params, batch) → the most likely token at each target place.

    Raises ConfigError where this machine does not have the engine, or cannot hold the mesh.
    """

    def __init__(self, components: Components, model: nn.Module):
        config = components.config
        require_platform(config.model.engine)
        self.model = model
        sizes = mesh_sizes(config.parallel.mesh, jax.device_count())
        self.mesh = jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
        )
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(self.mesh, batch_spec())
        self.rows_multiple = sizes['data'] * sizes['fsdp'] * config.train.accumulate
        init = functools.partial(step.init_state, components, model)
        boxed = jax.eval_shape(init)
        shardings = jax.tree.map(
            lambda p: NamedSharding(self.mesh, p), partition_specs(boxed, sizes)
        )
        self.abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            nn.meta.unbox(boxed),
            shardings,
        )
        self._seed = config.train.seed
        self._init = _compiled(
            self.context, lambda key: nn.meta.unbox(init(key)), out_shardings=shardings
        )
        self.eval_step = _compiled(
            self.context,
            lambda params, batch: step.eval_step(
                model, params, batch, config.train.label_smoothing
            ),
            in_shardings=(shardings.params, self.batch_sharding),
            out_shardings=self.replicated,
        )
        self.predict = _compiled(
            self.context,
            functools.partial(step.predict, model),
            in_shardings=(shardings.params, self.batch_sharding),
            out_shardings=self.batch_sharding,
        )
        self._pmap = config.parallel.mode == 'pmap'
        if self._pmap:
            self.train_step = jax.pmap(
                functools.partial(step.train_step, model, components, axis='devices'),
                axis_name='devices',
                in_axes=(None, 0),
                out_axes=(None, None),
                donate_argnums=0,
            )
        else:
            self.train_step = _compiled(
                self.context,
                functools.partial(step.train_step, model, components),
                in_shardings=(shardings, self.batch_sharding),
                out_shardings=(shardings, self.replicated),
                donate_argnums=0,
            )

    @property
    def one(self) -> 'Parallel':
        """What a single model is evaluated with."""
        return self

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Inside, jitted functions see the mesh and the rules; enter it around every trace."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(logical_rules()):
            yield

    def init_state(self, seed: int | None = None) -> step.TrainState:
        """The state before the first step, laid out; the same numbers on any number of devices.

        `seed`: in place of the config's own.
        """
        return self._init(jax.random.PRNGKey(self._seed if seed is None else seed))

    def advance(
        self, state: step.TrainState, batch: Batch, live: Sequence[bool]
    ) -> tuple[step.TrainState, dict]:
        """`train_step` on this process's rows; `live` is of use to `Replicas` alone."""
        return self.train_step(state, self.put_train(batch))

    def member(self, params: Any, index: int) -> Any:
        """The parameters of one replica: there is one."""
        return params

    def local_rows(self, rows: int) -> tuple[int, int]:
        """[start, stop) of the rows of a global batch that this process must have."""
        indices = self.batch_sharding.addressable_devices_indices_map((rows,)).values()
        bounds = [index[0].indices(rows) for index in indices]
        return min(start for start, *_ in bounds), max(stop for _, stop, _ in bounds)

    def put(self, batch: Any) -> Any:
        """A pytree with this process's rows to one global pytree on the devices."""
        return jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(self.batch_sharding, a), batch
        )

    def put_whole(self, a_B: np.ndarray) -> jax.Array:
        """An array that every process has all rows of, padded with zeros to `rows_multiple`."""
        rows = -len(a_B) % self.rows_multiple
        a_B = np.pad(a_B, [(0, rows)] + [(0, 0)] * (a_B.ndim - 1))
        return jax.make_array_from_callback(
            a_B.shape, self.batch_sharding, lambda index: a_B[index]
        )

    def gather(self, array: jax.Array) -> np.ndarray:
        """The whole of an array, on every process."""
        if array.is_fully_addressable:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    def put_train(self, batch: Batch) -> Batch:
        """As `put`, in the shape that `train_step` takes."""
        if self._pmap:
            devices = jax.local_device_count()
            return jax.tree.map(
                lambda a: np.reshape(a, (devices, a.shape[0] // devices, *a.shape[1:])), batch
            )
        return self.put(batch)


class Replicas:
    """Several runs that differ in seed and `Hyper` alone, side by side: every array has a leading
    replica axis.

    Replicas share out the devices that `parallel.mesh.data` leaves, see `sharding.replica_sizes`;
    those of one device advance together, but on a CPU, whose cores one model keeps busy, one after
    the other, in a fraction of the memory. Attributes as those of Parallel.

    Raises ConfigError as Parallel.
    """

    def __init__(
        self, one: Parallel, components: Components, members: Collection[ExperimentConfig]
    ):
        """
        Args:
            one: a single run of this kind.
            components: of any of the replicas.
            members: of each.
        """
        self.one, self.members, lone = one, members, one.mesh
        config = components.config
        most = max(
            member.model.dropout for member in members
        )  # Where none drops, no masks are drawn.
        model = type(one.model)(dataclasses.replace(one.model.architecture, dropout=most))
        sizes = replica_sizes(config.parallel.mesh, dict(lone.shape), len(members))
        # The devices in the order that they have for one model: what moves between the two meshes
        # stays where it is.
        self.mesh = Mesh(
            lone.devices.reshape(tuple(sizes.values())),
            tuple(sizes),
            axis_types=(AxisType.Auto,) * 4,
        )
        self.rows_multiple = sizes['data'] * sizes['fsdp'] * config.train.accumulate
        self._replicas = NamedSharding(self.mesh, stacked_spec(PartitionSpec()))
        shardings = jax.tree.map(
            lambda a: NamedSharding(self.mesh, stacked_spec(a.sharding.spec)), one.abstract
        )
        self.abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct((len(members), *a.shape), a.dtype, sharding=s),
            one.abstract,
            shardings,
        )
        self._batch_sharding = NamedSharding(self.mesh, stacked_spec(batch_spec()))
        self._stack = jax.jit(
            lambda *states: jax.tree.map(lambda *a: jnp.stack(a), *states), out_shardings=shardings
        )
        self._member = jax.jit(
            lambda params, index: jax.tree.map(lambda a: a[index], params),
            out_shardings=jax.tree.map(lambda a: a.sharding, one.abstract.params),
        )
        one_by_one = jax.default_backend() == 'cpu' and sizes['replica'] == 1
        advance = functools.partial(step.replica_step, model, components)
        self.train_step = _compiled(
            self.context,
            _one_by_one(advance) if one_by_one else jax.vmap(advance, spmd_axis_name='replica'),
            in_shardings=(shardings, self._batch_sharding, self._replicas),
            out_shardings=(shardings, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """As Parallel's."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(logical_rules()):
            yield

    def init_state(self) -> step.TrainState:
        """The states before the first step, each that of a run alone."""
        return self._stack(
            *(
                self.one.init_state(config.train.seed).replace(hyper=step.hyper(config))
                for config in self.members
            )
        )

    def local_rows(self, rows: int) -> tuple[int, int]:
        """Every process makes all rows, and keeps what its devices need."""
        return 0, rows

    def advance(
        self, state: step.TrainState, batch: Batch, live: Sequence[bool]
    ) -> tuple[step.TrainState, dict]:
        """`train_step` on stacked batches; what is not `live` stays as it is."""

        def placed(a_R, sharding):
            return jax.make_array_from_callback(a_R.shape, sharding, lambda index: a_R[index])

        batch = jax.tree.map(lambda a_RBT: placed(a_RBT, self._batch_sharding), batch)
        return self.train_step(state, batch, placed(np.array(live), self._replicas))

    def member(self, params: Any, index: int) -> Any:
        """The parameters of one replica, laid out as those of a model alone."""
        return self._member(params, index)


def _one_by_one(function: Callable) -> Callable:
    return lambda *stacked: jax.lax.map(lambda one: function(*one), stacked)


def _compiled(context: Callable, function: Callable, **options) -> Callable:
    """`jax.jit` that traces, lowers and runs inside `context`."""
    jitted = jax.jit(function, **options)

    def call(*args):
        with context():
            return jitted(*args)

    def lower(*args):
        with context():
            return jitted.lower(*args)

    call.lower = lower
    return call

"""The compiled functions of training: initialization and the step, for one run or a seed group."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.engines import require_platform
from transformer_jax.batch import Batch
from transformer_jax.config.components import Components
from transformer_jax.data import Data
from transformer_jax.models import build_model
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.stored_layout import StoredLayout
from transformer_jax.training.train_state import TrainState, init_state, make_hyper
from transformer_jax.training.train_step import seed_step, train_step


class TrainProgram:
    """The compiled functions that train one model.

    Attributes:
        model: the linen module.
        partitioner: of the model's arrays and batches.
        abstract: the train state as shapes, dtypes and shardings.
        layout: that of the train state in checkpoints.
        rows_multiple: the rows of a batch must be a multiple of this.
        train_step: (state, placed batch) → (state, metrics); the given state is consumed.

    Raises ConfigError where the devices do not have the engine, or do not fill the mesh.
    """

    def __init__(self, components: Components, devices: Sequence[Any] = ()):
        """Prepare the functions of an experiment; `devices` as those of `Partitioner`."""
        config = components.config
        self.partitioner = Partitioner(config.parallel.mesh, components.rules, devices=devices)
        require_platform(config.model.engine, self.partitioner.platform)
        self.model = build_model(components.architecture)
        self.rows_multiple = self.partitioner.rows_multiple * config.train.accumulate
        init = functools.partial(init_state, components, self.model)
        boxed = jax.eval_shape(init)
        self.abstract = self.partitioner.abstract(boxed)
        self.layout = StoredLayout(self.partitioner, components.architecture, boxed)
        shardings = self.partitioner.shardings(boxed)
        self._seed = config.train.seed
        self._init = self.partitioner.compile(
            lambda key: nn.meta.unbox(init(key)), out_shardings=shardings
        )
        self.train_step = self._compile_step(components, shardings)

    def init_state(self, seed: int | None = None) -> TrainState:
        """Make the state before the first step, laid out on the devices.

        It has the same numbers on any number of devices.

        Args:
            seed: in place of `train.seed`.
        """
        return self._init(jax.random.PRNGKey(self._seed if seed is None else seed))

    def place(self, batch: Batch) -> Batch:
        """Place this process's rows of a batch as `train_step` takes them."""
        return self.partitioner.put(batch)

    def place_whole(self, batch: Batch) -> Batch:
        """Place a batch of which every process has all rows."""
        start, stop = self.partitioner.local_rows(len(batch.weights_BT))
        return self.place(jax.tree.map(lambda a: a[start:stop], batch))

    def batches(self, data: Data) -> Iterator[Batch]:
        """Yield the training batches of `data` from the first on, placed, without end."""
        return map(self.place, data.train_iterator(self.partitioner.local_rows, self.rows_multiple))

    def _compile_step(self, components: Components, shardings: Any) -> Any:
        return self.partitioner.compile(
            functools.partial(train_step, self.model, components),
            in_shardings=(shardings, self.partitioner.batch_sharding),
            out_shardings=(shardings, self.partitioner.replicated),
            donate_argnums=0,
        )


class PmapProgram(TrainProgram):
    """The same step by `jax.pmap`: data parallel alone, parameters on every device."""

    def place(self, batch: Batch) -> Batch:
        devices = jax.local_device_count()
        return jax.tree.map(
            lambda a: np.reshape(a, (devices, a.shape[0] // devices, *a.shape[1:])), batch
        )

    def _compile_step(self, components: Components, shardings: Any) -> Any:
        return jax.pmap(
            functools.partial(train_step, self.model, components, axis='devices'),
            axis_name='devices',
            in_axes=(None, 0),
            out_axes=(None, None),
            donate_argnums=0,
        )


def make_program(components: Components, devices: Sequence[Any] = ()) -> TrainProgram:
    """Compile the training of one model as `parallel.mode` says.

    Args:
        components: the experiment.
        devices: as those of `Partitioner`.

    Raises:
        ConfigError: the devices do not have the engine, or do not fill the mesh.
    """
    return PROGRAMS[components.config.parallel.mode](components, devices)


PROGRAMS: dict[str, type[TrainProgram]] = {'jit': TrainProgram, 'pmap': PmapProgram}


def rows_and_length(placed: Batch) -> tuple[int, int]:
    """Return the rows of a placed batch, of all seeds and processes, and the tokens of a row."""
    *leading, length = placed.shape
    # What `PmapProgram` places are the rows of this process alone.
    processes = 1 if isinstance(placed.targets_BT, jax.Array) else jax.process_count()
    return processes * math.prod(leading), length


class SeedGroupProgram:
    """The compiled functions that train several seeds of one model in one program.

    Every array has a leading axis of seeds. The seeds share out the devices that
    `parallel.mesh.data` leaves, see `mesh.seed_mesh_sizes`; those of one device advance together
    by `jax.vmap`, but on a CPU, whose cores one model keeps busy, one after the other, in a
    fraction of the memory.

    Attributes:
        single: the functions of one seed; evaluation uses its layout.
        partitioner: of the stacked arrays.
        abstract: the stacked train states as shapes, dtypes and shardings.
        layout: that of the stacked train states in checkpoints.
        rows_multiple: the rows of a batch must be a multiple of this.
        train_step: (states, placed batches, placed `live`) → (states, metrics).
    """

    def __init__(
        self,
        components: Components,
        members: Sequence[ExperimentConfig],
        devices: Sequence[Any] = (),
    ):
        """Compile for the runs of `members`, which differ in seeds and `Hyper` alone."""
        self.single, self.members = TrainProgram(components, devices), members
        self.partitioner = Partitioner(
            components.config.parallel.mesh, components.rules, len(members), devices
        )
        self.rows_multiple = self.partitioner.rows_multiple * components.config.train.accumulate
        boxed = jax.eval_shape(functools.partial(init_state, components, self.single.model))
        self.abstract = self.partitioner.abstract(boxed)
        self.layout = StoredLayout(self.partitioner, components.architecture, boxed)
        shardings = self.partitioner.shardings(boxed)
        self._stack = jax.jit(
            lambda *states: jax.tree.map(lambda *a: jnp.stack(a), *states), out_shardings=shardings
        )
        self._take = jax.jit(
            lambda params, index: jax.tree.map(lambda a: a[index], params),
            out_shardings=jax.tree.map(lambda a: a.sharding, self.single.abstract.params),
        )
        stacked = self.partitioner.stacked
        self.train_step = self.partitioner.compile(
            self._over_seeds(components),
            in_shardings=(shardings, self.partitioner.batch_sharding, stacked),
            out_shardings=(shardings, self.partitioner.replicated),
            donate_argnums=0,
        )

    def init_state(self) -> TrainState:
        """Make the states before the first step, each equal to that of its seed trained alone."""
        return self._stack(
            *(
                dataclasses.replace(
                    self.single.init_state(config.train.seed), hyper=make_hyper(config)
                )
                for config in self.members
            )
        )

    def place(self, batch: Batch) -> Batch:
        """Place the stacked batches [seeds, B, T], of which every process has all rows."""
        return self.partitioner.put(batch)

    def place_live(self, live: Sequence[bool]) -> jax.Array:
        """Place what `train_step` takes as `live`: whether each seed still trains."""
        return self.partitioner.put_per_seed(np.array(live))

    def params_of(self, params: Any, index: int) -> Any:
        """Take the parameters of one seed, laid out as those of a model trained alone."""
        return self._take(params, index)

    def _over_seeds(self, components: Components) -> Callable[..., Any]:
        """Map the step over seeds."""
        # Dropout's rate is traced: masks are drawn for all seeds if any of them drops.
        most = max(member.model.dropout for member in self.members)
        architecture = dataclasses.replace(components.architecture, dropout=most)
        step = functools.partial(seed_step, build_model(architecture), components)
        if self.partitioner.platform == 'cpu' and self.partitioner.mesh.shape['seed'] == 1:
            return lambda *stacked: jax.lax.map(lambda one: step(*one), stacked)
        return jax.vmap(step, spmd_axis_name='seed')

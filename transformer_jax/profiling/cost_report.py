"""The estimated cost of a config: parameters, FLOPs and memory, without running it.

Everything is read off abstract values (`jax.eval_shape`, `jax.make_jaxpr`): no array is made and no
device is needed, so a mesh of 512 devices can be inspected on a laptop.

FLOPs are those of matrix products (see `flops`). The backward pass has two for each one of the
forward pass, hence 3 × forward.

Memory is per device and has four parts: parameters; gradients (shaped like them, twice with
`train.accumulate` > 1: the sum and the newest); the optimizer's state, with the moving average of
the parameters if there is one; and activations: all that autodiff keeps for the backward pass of
one microbatch. The last is an upper bound, since XLA fuses and recomputes some of it (compiled base
models held 0.65 to 0.95 of it) and since nothing is subtracted for the mesh axes 'tensor' and
'context'.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from transformer_jax import config as config_lib
from transformer_jax.data.batching import padded_rows
from transformer_jax.efficiency.flops import forward_flops, traceable
from transformer_jax.models import build_model
from transformer_jax.models.layer_stack import split_layers
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.rules import partition_specs
from transformer_jax.profiling.flops import activation_bytes, batch_shapes, is_embedding
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.train_state import TrainState, init_state

GROWTH = (512, 1024, 2048, 4096, 8192)  # lengths at which the cost of one sequence is counted


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of the model and how the mesh cuts it.

    Attributes:
        path: names joined by dots.
        shape: of the whole array.
        dtype: its name.
        axes: the logical axis of each dimension.
        cut_over: for each dimension the mesh axes of more than one device that cut it.
        bytes_per_device: of the part that one device has.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    cut_over: tuple[tuple[str, ...], ...]
    bytes_per_device: int

    @property
    def count(self) -> int:
        """Count the numbers in the array."""
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """Whether it is a table of tokens, or of positions that are added to tokens."""
        return is_embedding(self.axes)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a training step on batches of one shape, padding included.

    Attributes:
        rows: of all devices and microbatches.
        length: tokens of the source, and of the target.
        flops: of all devices, forward and backward.
        activation_bytes: per device, an upper bound.
    """

    rows: int
    length: int
    flops: int
    activation_bytes: int

    @property
    def flops_per_token(self) -> float:
        """Return the FLOPs of each target position."""
        return self.flops / (self.rows * self.length)


@dataclasses.dataclass(frozen=True)
class CostReport:
    """The cost of a config; bytes are per device.

    Attributes:
        mesh: the size of each mesh axis.
        parameters: every array of the model.
        gradient_bytes: of the gradients.
        optimizer_bytes: of the optimizer's state, a moving average of the parameters included.
        steps: one entry for each batch shape that training compiles.
        growth: the cost of one sequence of each length in GROWTH that the model can read.
    """

    mesh: dict[str, int]
    parameters: tuple[Parameter, ...]
    gradient_bytes: int
    optimizer_bytes: int
    steps: tuple[StepCost, ...]
    growth: tuple[StepCost, ...]

    def memory(self) -> dict[str, int]:
        """Return the bytes of each part, for the batch shape that needs most."""
        return {
            'parameters': sum(parameter.bytes_per_device for parameter in self.parameters),
            'gradients': self.gradient_bytes,
            'optimizer state': self.optimizer_bytes,
            'activations, at most': max(cost.activation_bytes for cost in self.steps),
        }


def cost_report(config: ExperimentConfig, devices: int | None = None) -> CostReport:
    """Estimate the cost of a config on the mesh of `config.parallel`.

    Args:
        config: the experiment.
        devices: how many devices a -1 in the mesh is resolved with; None: those of this machine.

    Raises:
        ConfigError: the mesh does not multiply to the devices, or a parameter cannot be cut
            over it.
    """
    fixed = math.prod(dataclasses.astuple(config.parallel.mesh))
    sizes = mesh_sizes(
        config.parallel.mesh, devices or (fixed if fixed > 0 else jax.device_count())
    )
    components = config_lib.resolve(config)
    model = build_model(traceable(components.architecture))
    training = jax.eval_shape(functools.partial(init_state, components, model))
    boxed = split_layers(training, components.architecture)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    partitions = partition_specs(boxed, sizes, components.rules)
    state = nn.meta.unbox(training)
    parameters = tuple(_parameters(boxed.params, partitions.params, mesh))
    copies = 1 if config.train.accumulate == 1 else 2  # with accumulation: the sum and the newest
    parts = sizes['data'] * sizes['fsdp'] * config.train.accumulate
    optimizer_bytes = jax.tree.map(
        functools.partial(_bytes_per_device, mesh),
        nn.meta.unbox((boxed.opt_state, boxed.ema)),
        (partitions.opt_state, partitions.ema),
    )
    return CostReport(
        mesh=sizes,
        parameters=parameters,
        gradient_bytes=copies * sum(parameter.bytes_per_device for parameter in parameters),
        optimizer_bytes=sum(jax.tree.leaves(optimizer_bytes)),
        steps=tuple(
            _step_cost(model, state, padded_rows(rows, parts), length, parts)
            for rows, length in batch_shapes(components)
        ),
        growth=tuple(
            _step_cost(model, state, 1, length, 1)
            for length in GROWTH
            if length <= model.architecture.max_length
        ),
    )


def _step_cost(model: nn.Module, state: TrainState, rows: int, length: int, parts: int) -> StepCost:
    """Count the cost of a step; `parts`: how many parts of the rows are held one at a time."""
    return StepCost(
        rows,
        length,
        3 * forward_flops(model, state.params, rows, length),
        activation_bytes(model, state, rows // parts, length),
    )


def _parameters(boxed: Any, partitions: Any, mesh: AbstractMesh) -> Iterator[Parameter]:
    """Describe each parameter; `boxed`: with logical axes, `partitions`: their PartitionSpecs."""
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    for (path, leaf), partition in zip(leaves, jax.tree.leaves(partitions), strict=True):
        # PartitionSpec stores a tuple of one mesh axis as a string.
        cuts = [(cut,) if isinstance(cut, str) else cut or () for cut in partition]
        yield Parameter(
            jax.tree_util.keystr(path, simple=True, separator='.'),
            leaf.value.shape,
            leaf.value.dtype.name,
            leaf.names,
            tuple(tuple(axis for axis in cut if mesh.shape[axis] > 1) for cut in cuts),
            _bytes_per_device(mesh, leaf.value, partition),
        )


def _bytes_per_device(
    mesh: AbstractMesh, array: jax.ShapeDtypeStruct, partition: PartitionSpec
) -> int:
    return math.prod(NamedSharding(mesh, partition).shard_shape(array.shape)) * array.dtype.itemsize

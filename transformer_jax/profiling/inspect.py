"""What a config costs, without running it, and what a workdir holds.

Everything about a config is read off abstract values (`jax.eval_shape`, `jax.make_jaxpr`): no array
is made and no device is needed, so that a mesh of 512 devices can be inspected on a laptop.

FLOPs are those of matrix products (see `costs`); the backward pass has two for each one of the
forward pass, hence 3 × forward.

Memory is per device and has four parts: parameters; gradients (shaped like them, twice with
`train.accumulate` > 1: the sum and the newest); the optimizer's state, a moving average of the
parameters included; and activations: all that autodiff keeps for the backward pass of one
microbatch. The last is an upper bound, since XLA fuses and recomputes some of it (compiled base
models held 0.65 to 0.95 of it) and since nothing is taken off for the mesh axis 'tensor'.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import rich.box
import rich.console
import rich.table
from etils import epath
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from transformer_jax import config as config_lib
from transformer_jax.data.batching import padded_rows
from transformer_jax.models import build_model
from transformer_jax.partitioning.rules import mesh_sizes, partition_specs
from transformer_jax.profiling.flops import (
    activation_bytes,
    batch_shapes,
    forward_flops,
    is_embedding,
    traceable,
)
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.fingerprint import fingerprint
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.seed_groups import reader
from transformer_jax.training.train_state import init_state

GROWTH = (512, 1024, 2048, 4096, 8192)  # lengths at which one sequence is costed
FILE_WIDTH = 160  # columns, where the output is no terminal, which has a width of its own


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of the model and how the mesh cuts it."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]  # logical
    cut_over: tuple[tuple[str, ...], ...]  # mesh axes of more than one device, by dimension
    bytes_per_device: int

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """Whether it is a table of tokens, or of positions added to them."""
        return is_embedding(self.axes)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One training step on batches of one shape, padding included."""

    rows: int  # of all devices and microbatches
    length: int
    flops: int  # of all devices
    activation_bytes: int  # per device

    @property
    def flops_per_token(self) -> float:
        """Per target position."""
        return self.flops / (self.rows * self.length)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a config costs; bytes are per device."""

    mesh: dict[str, int]
    parameters: tuple[Parameter, ...]
    gradient_bytes: int
    optimizer_bytes: int
    steps: tuple[StepCost, ...]
    growth: tuple[StepCost, ...]  # of one sequence of each length in GROWTH that the model can read

    def memory(self) -> dict[str, int]:
        """The estimate by part, for the batch shape that needs most."""
        return {
            'parameters': sum(parameter.bytes_per_device for parameter in self.parameters),
            'gradients': self.gradient_bytes,
            'optimizer state': self.optimizer_bytes,
            'activations, at most': max(cost.activation_bytes for cost in self.steps),
        }


def describe(config: ExperimentConfig, devices: int | None = None) -> Report:
    """The report of a config, on the mesh of `config.parallel`.

    Args:
        config: what to inspect.
        devices: what a -1 in the mesh is resolved with; None: the devices of this machine.

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
    boxed = jax.eval_shape(functools.partial(init_state, components, model))
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    state, partitions = nn.meta.unbox(boxed), partition_specs(boxed, sizes)
    parameters = tuple(_parameters(boxed.params, partitions.params, mesh))
    copies = 1 if config.train.accumulate == 1 else 2
    parts = sizes['data'] * sizes['fsdp'] * config.train.accumulate

    def cost(rows, length, parts):
        flops = 3 * forward_flops(model, state.params, rows, length)
        return StepCost(rows, length, flops, activation_bytes(model, state, rows // parts, length))

    steps = tuple(
        cost(padded_rows(rows, parts), length, parts) for rows, length in batch_shapes(components)
    )
    growth = tuple(
        cost(1, length, 1) for length in GROWTH if length <= model.architecture.max_length
    )
    optimizer_bytes = jax.tree.map(
        functools.partial(_bytes_per_device, mesh),
        (state.opt_state, state.ema),
        (partitions.opt_state, partitions.ema),
    )
    return Report(
        sizes,
        parameters,
        copies * sum(parameter.bytes_per_device for parameter in parameters),
        sum(jax.tree.leaves(optimizer_bytes)),
        steps,
        growth,
    )


def inspect_config(
    config: ExperimentConfig,
    devices: int | None = None,
    console: rich.console.Console | None = None,
) -> None:
    """Prints the report of a config; arguments and errors as `describe`."""
    report = describe(config, devices)
    console = console or _console()
    mesh = ' × '.join(f'{axis} {size}' for axis, size in report.mesh.items())
    console.print(f'mesh: {mesh} = {math.prod(report.mesh.values())} devices', highlight=False)
    tables = [
        _parameter_table(report),
        _memory_table(report),
        _step_table(
            'training step, by batch shape (source and target alike, padding included)',
            report.steps,
        ),
    ]
    if report.growth:
        tables.append(
            _step_table('one sequence, source and target alike, as its length grows', report.growth)
        )
    for table in tables:
        console.print(table)


def inspect_workdir(path: epath.PathLike, console: rich.console.Console | None = None) -> None:
    """Prints a run's newest intact step, its best step, and `sha256 HEX  step N` of the newest.

    The hash covers parameters, optimizer state, rng and data position, on whatever devices the run
    was: two runs that ended alike print the same line. No file is changed.

    Raises:
        ConfigError: no run's workdir, or its config.json does not fit its checkpoints.
        WorkdirError: no intact checkpoint.
    """
    workdir = Workdir(path)
    components = config_lib.resolve(config_lib.from_dict(workdir.read_config()))
    checkpoints = reader(workdir)
    model = build_model(components.architecture)
    # Without shardings: the arrays are read to the first device, whatever mesh wrote them.
    abstract = nn.meta.unbox(jax.eval_shape(functools.partial(init_state, components, model)))
    newest, state, meta = checkpoints.restore(abstract)
    best = checkpoints.best_step()
    print_line = functools.partial(
        (console or _console()).print, highlight=False, markup=False, soft_wrap=True
    )
    print_line(f'workdir {workdir.path}')
    print_line(f'newest  step {newest} of {components.config.train.steps}')
    print_line('best    ' + ('none recorded' if best is None else f'step {best}'))
    print_line(f'sha256 {fingerprint(state, meta["data"])}  step {newest}')


def _parameters(boxed: Any, partitions: Any, mesh: AbstractMesh) -> Iterator[Parameter]:
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    for (path, leaf), partition in zip(leaves, jax.tree.leaves(partitions), strict=True):
        # A PartitionSpec gives back a lone mesh axis as a string.
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


def _console() -> rich.console.Console:
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=FILE_WIDTH)


def _table(title: str, columns: tuple[str, ...], numbers: tuple[str, ...]) -> rich.table.Table:
    table = rich.table.Table(
        title=title, title_justify='left', box=rich.box.SIMPLE_HEAD, pad_edge=False
    )
    for name in columns:
        table.add_column(name, overflow='fold')
    for name in numbers:
        table.add_column(name, justify='right')
    return table


def _parameter_table(report: Report) -> rich.table.Table:
    """Layers that are alike share a line; a dimension that is cut names the mesh axes after
    its own.
    """
    table = _table(
        'parameters', ('path', 'array', 'axes/cut over'), ('arrays', 'count', 'bytes per device')
    )

    def add(cells: tuple[str, str, str], members: Sequence[Parameter]) -> None:
        table.add_row(
            *cells,
            str(len(members)),
            f'{sum(p.count for p in members):,}',
            _bytes(sum(p.bytes_per_device for p in members)),
        )

    lines = collections.defaultdict(list)
    for p in report.parameters:
        axes = ' '.join(
            '/'.join((axis, *cut)) for axis, cut in zip(p.axes, p.cut_over, strict=True)
        )
        lines[
            re.sub(r'_\d+(?=\.)', '_*', p.path), f'{p.dtype}[{", ".join(map(str, p.shape))}]', axes
        ].append(p)
    for cells, members in lines.items():
        add(cells, members)
    table.add_section()
    add(('embedding', '', ''), [p for p in report.parameters if p.is_embedding])
    add(('non-embedding', '', ''), [p for p in report.parameters if not p.is_embedding])
    add(('all', '', ''), report.parameters)
    return table


def _step_table(title: str, costs: Sequence[StepCost]) -> rich.table.Table:
    table = _table(
        title,
        (),
        ('rows', 'length', 'FLOPs per step', 'FLOPs per target token', 'activations per device'),
    )
    for cost in costs:
        table.add_row(
            f'{cost.rows:,}',
            f'{cost.length:,}',
            _flops(cost.flops),
            _flops(cost.flops_per_token),
            _bytes(cost.activation_bytes),
        )
    return table


def _memory_table(report: Report) -> rich.table.Table:
    table = _table('memory per device, estimated', ('part',), ('bytes',))
    for name, size in report.memory().items():
        table.add_row(name, _bytes(size))
    table.add_section()
    table.add_row('together', _bytes(sum(report.memory().values())))
    return table


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    exponent = min(int(math.log(max(number, 1), base)), len(units) - 1)
    return f'{number / base**exponent:.{2 if exponent else 0}f} {units[exponent]}'


_bytes: Callable[[float], str] = functools.partial(
    _scaled, base=1024, units=('B', 'KiB', 'MiB', 'GiB', 'TiB')
)
_flops: Callable[[float], str] = functools.partial(
    _scaled, base=1000, units=('', 'k', 'M', 'G', 'T', 'P', 'E')
)

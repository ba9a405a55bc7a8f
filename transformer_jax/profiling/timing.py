"""What the benchmarks share: clocks, the machine and its peak, and how results are shown."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer_jax.batch import Batch

FILE_WIDTH = 160  # columns, where the output is no terminal, which has a width of its own


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock seconds until all that `function` returns has been computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


class TimedIterator:
    """An iterator over batches that measures how long its reader waits."""

    def __init__(self, batches: Any):
        self._batches, self.waited = batches, 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - start
        return batch

    def get_state(self) -> Any:
        return self._batches.get_state()


def matmul_peak(dtype: str, size: int = 0) -> float:
    """FLOP/s of all devices together: the best of ten products of two square matrices, one product
    a device.

    `size` 0 is 2048 on a CPU, where it takes a fraction of a second, and 8192 on an accelerator,
    which smaller ones leave idle between launches.
    """
    size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ('devices',), axis_types=(AxisType.Auto,))
    draw = jax.jit(
        lambda: jax.random.normal(jax.random.PRNGKey(0), (devices, size, size), dtype),
        out_shardings=NamedSharding(mesh, PartitionSpec('devices')),
    )
    product, a_LMM = jax.jit(jnp.matmul), draw()
    jax.block_until_ready(product(a_LMM, a_LMM))
    return 2 * devices * size**3 / min(seconds(lambda: product(a_LMM, a_LMM)) for _ in range(10))


def result_table(
    title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]
) -> rich.table.Table:
    """A plain table; all columns but the first are aligned to the right."""
    table = rich.table.Table(
        title=title, title_justify='left', box=rich.box.SIMPLE_HEAD, pad_edge=False
    )
    for index, name in enumerate(columns):
        table.add_column(name, justify='right' if index else 'left')
    for row in rows:
        table.add_row(*row)
    return table


def console() -> rich.console.Console:
    """Standard output, wide where it is no terminal."""
    found = rich.console.Console()
    return found if found.is_terminal else rich.console.Console(width=FILE_WIDTH)


def show(bench: Any, tables: Iterable[rich.table.Table], as_json: bool) -> None:
    """Prints a result, a dataclass with a `machine`: as one JSON object, or as tables."""
    if as_json:
        print(json.dumps(dataclasses.asdict(bench), allow_nan=False))
        return
    machine = bench.machine
    out = console()
    out.print(
        f'{machine["devices"]}, {machine["cpus"]} CPUs, jax {machine["versions"]["jax"]}, load average '
        f'{machine["load_average"]:.1f} at the start',
        highlight=False,
    )
    for table in tables:
        out.print(table)

"""A clock for computations, and the peak speed of the devices."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer_jax.batch import Batch
from transformer_jax.partitioning.chips import chip_of

CPU_SIZE = 1024  # rows of the matrices whose products measure a CPU: 20 ms each on 2 cores


def seconds(function: Callable[[], Any]) -> float:
    """Measure the wall-clock seconds until all arrays that `function` returns are computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes of temporary arrays that XLA plans for a program, per device."""
    analysis = compiled.memory_analysis()
    assert analysis is not None, 'every backend of jax that we support has this analysis'
    return analysis.temp_size_in_bytes


class TimedIterator:
    """An iterator over batches that measures how long its reader waits.

    Attributes:
        waited: seconds, of all batches so far.
    """

    def __init__(self, batches: Any):
        self._batches, self.waited = batches, 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - start
        return batch

    def get_state(self) -> Any:
        """Return the position of the batches."""
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        """Continue from a position of the batches."""
        self._batches.set_state(state)


def matmul_peak(dtype: str, size: int = 0) -> float:
    """Measure the FLOP/s of all devices together, as the best of ten matrix products.

    Each device multiplies two square matrices.

    Args:
        dtype: of the matrices.
        size: rows of a matrix; 0: 2048 on a CPU, where it takes a fraction of a second, and 8192 on
            an accelerator, which smaller ones leave idle between launches.
    """
    size = size or (2048 if jax.default_backend() == 'cpu' else 8192)
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ('devices',), axis_types=(AxisType.Auto,))
    sample = jax.jit(
        lambda: jax.random.normal(jax.random.PRNGKey(0), (devices, size, size), dtype),
        out_shardings=NamedSharding(mesh, PartitionSpec('devices')),
    )
    product, a_LMM = jax.jit(jnp.matmul), sample()
    jax.block_until_ready(product(a_LMM, a_LMM))
    return 2 * devices * size**3 / min(seconds(lambda: product(a_LMM, a_LMM)) for _ in range(10))


@functools.cache
def peak_flops(dtype: str) -> float | None:
    """Return the peak FLOP/s of all devices together: published, or of a CPU measured once.

    Every process of a run must call it. None: CHIPS does not have the accelerator, or not the
    dtype, as float16.

    Args:
        dtype: of the activations.
    """
    device, count = jax.devices()[0], jax.device_count()
    if device.platform == 'cpu':
        # The devices of one CPU share its cores: together they take as long as one.
        return matmul_peak(dtype, round(CPU_SIZE / count ** (1 / 3)))
    chip = chip_of(device.device_kind)
    if chip is None or dtype not in ('bfloat16', 'float32'):
        return None
    return chip.peak_flops(dtype) * count

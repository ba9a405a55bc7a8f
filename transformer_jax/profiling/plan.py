"""The plan of a run on accelerators that are not here: what their compiler says of its programs.

The programs are those of the run itself: the training step, the scores of evaluation, the decoder.
They are compiled for the devices of a topology; nothing runs. Where one needs more memory than a
device has, changes are tried, the smallest first, each by the compiler.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from transformer_jax import config as config_lib
from transformer_jax.attention.engines import require_platform
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.topologies import Topology, parse_topology
from transformer_jax.profiling.compiled import CompiledProgram, read_compiled
from transformer_jax.profiling.lowered import Lowered, lower
from transformer_jax.profiling.roofline import Peaks, Roofline, cost, predict, utilization
from transformer_jax.schema import ExperimentConfig

Log = Callable[[str], None]
# What the TPU's compiler says of a program that does not fit: 'Used 20.50G of 15.75G hbm', or when
# it does not know all yet, 'temporaries (25.93G) exceeds available HBM (15.75G)'.
SIZE = r'([\d.]+)([KMGT])'
TOO_LARGE = re.compile(rf'(?:Used |temporaries \(){SIZE}(?: of |\) exceeds available HBM \(){SIZE}')
UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One compilation.

    Attributes:
        change: overrides of the configuration, as on the command line; '' for the first.
        seconds: that the compiler took.
        needed: bytes of memory of a device.
        capacity: bytes that a device has for them.
        program: None where the compiler refused it for its size.
        mesh, rows, length, tokens, model_flops, kernel_flops: see `Lowered`.
    """

    change: str
    seconds: float
    needed: float
    capacity: float
    program: CompiledProgram | None
    mesh: dict[str, int]
    rows: int
    length: int
    tokens: int
    model_flops: float
    kernel_flops: float

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.program is not None and self.needed <= self.capacity


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What the roofline makes of a compiled program.

    Attributes:
        roofline: the time of a step.
        tokens_per_second: of all devices.
        mfu: the model's FLOPs over those that the devices could do; 0 where not counted.
        price: of one chip for an hour; 0: unknown.
        cost: of all steps of the run at that price; 0: unknown.
    """

    roofline: Roofline
    tokens_per_second: float
    mfu: float
    price: float
    cost: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one program.

    Attributes:
        topology: as `topologies.parse_topology` reads it.
        command: 'train', 'evaluate' or 'decode'.
        chips: of all slices.
        devices: that JAX sees in them.
        peaks: of a device.
        source: where the peaks are published.
        steps: of the run.
        attempts: the configuration as it is, then changes of it until one fits.
        forecast: of the last attempt, if that fits.
    """

    topology: str
    command: str
    chips: int
    devices: int
    peaks: Peaks
    source: str
    steps: int
    attempts: tuple[Attempt, ...]
    forecast: Forecast | None


def make_plan(
    config: ExperimentConfig, topology: str, command: str, price: float, log: Log
) -> Plan:
    """Compile a program of a run for a topology, and changes of it until one fits.

    Args:
        config: the experiment.
        topology: see `topologies.parse_topology`.
        command: 'train', 'evaluate' or 'decode'.
        price: of one chip for an hour; 0: unknown.
        log: receives a line for each compilation.

    Raises:
        ConfigError: a topology that does not exist, a compiler that is not here, or a
            configuration that cannot run there.
    """
    target = parse_topology(topology)
    require_platform(config.model.engine, target.platform)
    config_lib.resolve(config, target.platform)
    devices = len(target.devices())
    chip, dtype = target.chip, config.model.dtype
    peaks = Peaks(chip.peak_flops(dtype), chip.device_memory_rate, chip.device_link_rate)
    attempts = []
    for change, changed in changes(config, command, devices):
        log(f'compiling for {target}{f" with {change}" if change else ""} …')
        attempts.append(attempt(change, changed, command, target))
        if attempts[-1].fits:
            break
    return Plan(
        str(target),
        command,
        target.num_chips,
        devices,
        peaks,
        chip.source,
        config.train.steps,
        tuple(attempts),
        _forecast(attempts[-1], peaks, price, target.num_chips, config.train.steps),
    )


def changes(
    config: ExperimentConfig, command: str, devices: int
) -> Iterator[tuple[str, ExperimentConfig]]:
    """Yield (overrides, configuration): as it is, then with changes that need less memory.

    The smallest change comes first: more microbatches cost little time and leave the result as it
    is; parameters cut over devices cost communication; both together; then layers that are computed
    again in the backward pass, and the chunked engine, which cost time.
    Changes that the configuration does not allow are left out.

    Args:
        config: the experiment.
        command: see `make_plan`.
        devices: of the topology.
    """
    yield '', config
    sizes = mesh_sizes(config.parallel.mesh, devices)
    shared = sizes['data'] * sizes['fsdp']
    accumulated = [{'train.accumulate': config.train.accumulate * factor} for factor in (2, 4, 8)]
    accumulated *= command == 'train'
    cut = {'parallel.mesh.data': 1, 'parallel.mesh.fsdp': shared}
    chunked = {'model.engine': 'chunked'}
    tried: list[dict[str, Any]] = [*accumulated]
    if sizes['data'] > 1:
        tried += [cut, *(cut | more for more in accumulated)]
    if command == 'train' and config.model.remat == 'none':
        again = {'model.remat': 'full'}
        tried += [again, *(largest | again for largest in tried[-1:])]
    if config.model.engine in ('auto', 'dense'):
        tried += [chunked, *(largest | chunked for largest in tried[-1:])]
    for overrides in tried:
        try:
            changed = config_lib.override(config, overrides)
        except ConfigError:
            continue
        yield ' '.join(f'--config.{key}={value}' for key, value in overrides.items()), changed


def attempt(change: str, config: ExperimentConfig, command: str, target: Topology) -> Attempt:
    """Compile one program for a topology; a refusal for its size is a result, too.

    Args:
        change: what was changed, in words.
        config: the experiment.
        command: 'train', 'evaluate' or 'decode'.
        target: what to compile for.

    Raises:
        ConfigError: see `make_plan`.
    """
    traced = lower(config, command, target.platform, target.devices())
    start, program, capacity = time.perf_counter(), None, target.program_memory
    try:
        program = read_compiled(traced.lowered.compile(), traced.mesh, traced.packed)
        needed = float(program.memory.peak)
    except jax.errors.JaxRuntimeError as error:
        refused = TOO_LARGE.search(str(error))
        if not refused:
            raise
        used, used_unit, had, had_unit = refused.groups()
        needed, capacity = float(used) * UNITS[used_unit], float(had) * UNITS[had_unit]
    seconds = time.perf_counter() - start
    sizes = {f.name: getattr(traced, f.name) for f in dataclasses.fields(Lowered)}
    del sizes['lowered'], sizes['packed']
    return Attempt(change, seconds, needed, capacity, program, **sizes)


def _forecast(
    attempt: Attempt, peaks: Peaks, price: float, chips: int, steps: int
) -> Forecast | None:
    if not attempt.fits or attempt.program is None:
        return None
    devices, program = math.prod(attempt.mesh.values()), attempt.program
    hidden = attempt.kernel_flops / devices
    roofline = predict(program.works, program.collectives, hidden, peaks)
    return Forecast(
        roofline,
        attempt.tokens / roofline.step,
        utilization(attempt.model_flops, roofline.step, devices, peaks),
        price,
        cost(price, chips, steps, roofline.step),
    )

"""Accelerators that are not here, described in a word: `v5e:4x4`, `2*v5e:4x4`, `h100:8`.

XLA's compilers for TPUs and NVIDIA GPUs run on a machine without an accelerator, and compile for
the devices of a topology the same programs that those would run. They come with packages that
change how JAX starts, hence in an environment of their own.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.chips import CHIPS, Chip

FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
SQUARE = ('2x2', '4x4', '8x8', '16x16')
CUBIC = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
# The slices of each TPU, smallest first. Larger ones of v4, v5p and v7 are multiples of 4 in each
# dimension, ascending.
SLICES = {
    'v2': SQUARE,
    'v3': (*SQUARE, '32x32'),
    'v4': CUBIC,
    'v5e': FLAT,
    'v5p': CUBIC,
    'v6e': FLAT,
    'v7': CUBIC,
}
CUBE = 4
GPUS_PER_HOST = 8
# Compiler: its package, the extra that installs it, the folder of its environment.
EXTRAS = {
    'tpu': ('libtpu', 'aot-tpu', '.venv-aot'),
    'cuda': ('jax_cuda12_plugin', 'aot-gpu', '.venv-aot-gpu'),
}


# Compilers look for no TPU of this machine, say nothing about that, and let other processes compile
# too. The type of accelerator has no effect beside a topology.
ALONE = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_STDERR_LOG_LEVEL': '3',
    'TPU_MIN_LOG_LEVEL': '3',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TF_CPP_MIN_LOG_LEVEL': '3',  # The compiler of GPUs tells that it takes long.
}
# JAX gives its programs three quarters of a GPU's memory, unless one of these variables says
# otherwise: https://docs.jax.dev/en/latest/gpu_memory_allocation.html
DEFAULT_SHARE = 0.75
MEMORY_SHARE = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Accelerators of one kind and how they are connected.

    Attributes:
        chip: the kind.
        shape: chips along each dimension of a TPU slice; (hosts, chips of a host) of GPUs.
        slices: of a TPU, connected by the network of the data center.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        """Write the topology as `parse_topology` reads it."""
        if self.platform == 'cuda':
            return f'{self.chip.name}:{math.prod(self.shape)}'
        slices = f'{self.slices}*' if self.slices > 1 else ''
        return f'{slices}{self.chip.name}:{"x".join(map(str, self.shape))}'

    @property
    def platform(self) -> str:
        """The compiler: 'tpu' or 'cuda'."""
        return 'tpu' if self.chip.name in SLICES else 'cuda'

    @property
    def num_chips(self) -> int:
        """Count the chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def program_memory(self) -> float:
        """Bytes of a device that programs may take: of a GPU, what JAX reserves for them."""
        if self.platform == 'tpu':
            return self.chip.device_memory
        told = [share for name in MEMORY_SHARE if (share := os.environ.get(name))]
        try:
            share = float(told[0]) if told else DEFAULT_SHARE
        except ValueError:
            raise ConfigError(f'{MEMORY_SHARE[0]}={told[0]!r} is no number') from None
        return self.chip.device_memory * min(share, 1.0)

    def devices(self) -> list[Any]:
        """Return the devices, for which programs can only be compiled.

        Call `compute_on_the_cpu` before JAX's backend starts, which reading a configuration does.

        Raises:
            ConfigError: this environment lacks the compiler; the message says how to make one.
        """
        module, extra, folder = EXTRAS[self.platform]
        if not importlib.util.find_spec(module):
            raise ConfigError(
                f'--topology={self} needs a compiler that is not installed here. Make an '
                f'environment of its own: python3 -m venv {folder} && {folder}/bin/pip '
                f"install -e '.[{extra}]', then run {folder}/bin/transformer-jax inspect …"
            )
        from jax.experimental import topologies

        compute_on_the_cpu()
        described = self._tpu_options() if self.platform == 'tpu' else self._gpu_options()
        return list(topologies.get_topology_desc(platform=self.platform, **described).devices)

    def _tpu_options(self) -> dict[str, Any]:
        # The compiler calls v7 tpu7x. It shows the two cores of a v4 as one device only if told.
        name = {'v7': 'tpu7x'}.get(self.chip.name, self.chip.name)
        options: dict[str, Any] = {'topology_name': f'{name}:{"x".join(map(str, self.shape))}'}
        if self.chip.name == 'v4':
            options['chip_config_name'] = 'megacore'
        if math.prod(self.shape) == 1:
            options['chips_per_host_bounds'] = (1, 1, 1)
        if self.slices > 1:
            options['num_slices'] = self.slices
        return options

    def _gpu_options(self) -> dict[str, Any]:
        hosts, per_host = self.shape
        return {
            'topology_name': '',
            'topology': f'1x{hosts}x{per_host}',
            'target_config': GPU_TARGETS[self.chip.name],
        }


def compute_on_the_cpu() -> None:
    """Have JAX itself compute on the CPU: the libraries of a compiler look for no accelerator."""
    jax.config.update('jax_platforms', 'cpu')
    os.environ |= ALONE


def parse_topology(text: str) -> Topology:
    """Read a topology: `v5e:4x4`, `2*v5e:4x4` (slices), `h100:8`.

    Raises:
        ConfigError: there is none such; the message names those nearest to it.
    """
    found = re.fullmatch(r'(?:(\d+)\*)?([a-z][\w-]*):(\d+(?:x\d+)*)', text)
    if not found:
        raise ConfigError(
            f'--topology={text!r} is not written CHIP:SHAPE: v5e:4x4 is a slice of 16 TPU chips, '
            '2*v5e:4x4 are two, h100:8 are eight GPUs'
        )
    slices, name, shape = int(found[1] or 1), found[2], tuple(map(int, found[3].split('x')))
    if name not in (*SLICES, *GPU_TARGETS):
        known = ', '.join((*SLICES, *GPU_TARGETS))
        raise ConfigError(
            f'--topology={text!r}: no chip {name!r} to compile for; there are {known}'
        )
    if slices < 1:
        raise ConfigError(f'--topology={text!r}: at least one slice')
    if name in SLICES:
        _check_slice(text, name, shape)
        return Topology(CHIPS[name], shape, slices)
    return _gpus(text, name, shape, slices)


def _check_slice(text: str, name: str, shape: tuple[int, ...]) -> None:
    cubes = SLICES[name] is CUBIC and len(shape) == 3 and list(shape) == sorted(shape)
    if 'x'.join(map(str, shape)) in SLICES[name] or (
        cubes and not any(side % CUBE for side in shape) and min(shape)
    ):
        return

    def distance(other: str) -> float:
        chips = math.prod(map(int, other.split('x')))
        return abs(math.log(chips / max(math.prod(shape), 1)))

    nearest = sorted(SLICES[name], key=distance)[:3]
    raise ConfigError(
        f'--topology={text!r}: {name} has no such slice; the nearest are '
        f'{", ".join(f"{name}:{other}" for other in nearest)}'
    )


def _gpus(text: str, name: str, shape: tuple[int, ...], slices: int) -> Topology:
    count = shape[0]
    whole = count <= GPUS_PER_HOST or count % GPUS_PER_HOST == 0
    if len(shape) > 1 or slices > 1 or not count or not whole:
        below = max(math.prod(shape) * slices // GPUS_PER_HOST, 1) * GPUS_PER_HOST
        raise ConfigError(
            f'--topology={text!r}: GPUs are counted, 1 to {GPUS_PER_HOST} in one host or a '
            f'multiple of {GPUS_PER_HOST}: {name}:{below} or {name}:{below + GPUS_PER_HOST}'
        )
    hosts = -(-count // GPUS_PER_HOST)
    return Topology(CHIPS[name], (hosts, count // hosts))


# What the driver of each GPU says of it, as XLA's own descriptions have it: compute capability,
# multiprocessors, float32 units and KiB of shared memory of one, MiB of L2 cache, GHz.
# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs
_AMPERE, _HOPPER = (8, 108, 64, 164, 40, 1.41), (9, 132, 128, 228, 50, 1.98)
_GPUS = {'a100': _AMPERE, 'a100-40gb': _AMPERE, 'h100': _HOPPER, 'h200': _HOPPER}


def _gpu_target(chip: Chip) -> str:
    """Describe a GPU to the compiler, in its text format."""
    major, cores, units, shared, cache, clock = _GPUS[chip.name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152
  shared_memory_per_core: {shared * 1024}  threads_per_core_limit: 2048  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {chip.memory_rate:.0f}  l2_cache_size: {cache * 2**20}
  clock_rate_ghz: {clock}  device_memory_size: {chip.memory_bytes:.0f}
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{chip.kinds[0]}"
"""


GPU_TARGETS = {name: _gpu_target(CHIPS[name]) for name in _GPUS}

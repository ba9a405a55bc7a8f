"""The mesh of devices: made here, and nowhere else."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from transformer_jax import spec
from transformer_jax.errors import ConfigError
from transformer_jax.schema import MeshConfig


def make_mesh(config: MeshConfig, num_seeds: int = 1, devices: Sequence[Any] = ()) -> Mesh:
    """Arrange devices in a mesh with the axes data, fsdp, context and tensor.

    Args:
        config: devices per axis; one of them may be -1, the rest.
        num_seeds: seeds that are trained side by side. With several the mesh has a first axis
            'seed', see `seed_mesh_sizes`.
        devices: by default all that JAX has.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or data is no multiple of
            the slices of TPUs.
    """
    devices = devices or jax.devices()
    sizes = mesh_sizes(config, len(devices))
    grid = _grid(sizes, list(devices))
    if num_seeds > 1:
        # The same order of devices as without the axis: arrays that move between the two meshes
        # stay on their devices.
        sizes = seed_mesh_sizes(config, sizes, num_seeds)
    # Explicit axes break linen's logical constraints.
    auto = (AxisType.Auto,) * len(sizes)
    return Mesh(grid.reshape(tuple(sizes.values())), tuple(sizes), axis_types=auto)


def _grid(sizes: dict[str, int], devices: list[Any]) -> np.ndarray:
    """Arrange devices so that neighbors in the mesh are neighbors in their network.

    Slices of TPUs, between which the network is slow, are the outer part of the axis data.
    """
    shape = tuple(sizes.values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices == 1:
        auto = (AxisType.Auto,) * len(sizes)
        return jax.make_mesh(shape, tuple(sizes), axis_types=auto, devices=devices).devices
    if sizes['data'] % slices:
        raise ConfigError(
            f'parallel.mesh.data={sizes["data"]} must be a multiple of the {slices} slices, '
            'between which only gradients should travel'
        )
    inner = [size // slices if axis == 'data' else size for axis, size in sizes.items()]
    outer = [slices if axis == 'data' else 1 for axis in sizes]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)


def platform_of(device: Any) -> str:
    """Name what a device is: 'cpu', 'tpu', 'cuda', or another name of JAX's for it."""
    # JAX calls every GPU 'gpu'; the version of its platform says whether it is a CUDA one, or where
    # the device is not here, its name does.
    words = device.client.platform_version.split() if device.platform == 'gpu' else ()
    return 'cuda' if {'cuda', 'NVIDIA'} & set(words) else device.platform


def parse_mesh(text: str) -> MeshConfig:
    """Read the value of --mesh, as 'fsdp=4,tensor=2'; 'data' takes what the others leave.

    Raises:
        ConfigError: another form, an unknown axis, or a size that is no number of devices.
    """
    key, names = f'--mesh={text}', [field.name for field in dataclasses.fields(MeshConfig)]
    sizes = {}
    for axis, size in pairs(text, key, '--mesh=fsdp=4,tensor=2').items():
        if axis not in names:
            raise ConfigError(f'{key}: no mesh axis {axis!r}; {spec.nearest(axis, names)}')
        if not (size == '-1' or (size.isascii() and size.isdecimal() and 0 < int(size) < 10**6)):
            raise ConfigError(f'{key}: {axis}={size} is no number of devices; -1 takes the rest')
        sizes[axis] = int(size)
    rest = {'data': 1} if -1 in sizes.values() else {}
    mesh = MeshConfig(**rest | sizes)
    if list(dataclasses.astuple(mesh)).count(-1) > 1:
        raise ConfigError(f'{key}: at most one size may be -1 (the rest)')
    return mesh


def pairs(text: str, key: str, example: str) -> dict[str, str]:
    """Split a comma list of NAME=VALUE.

    Raises:
        ConfigError: an item of another form, or a name that comes twice; the message begins with
            `key`.
    """
    found: dict[str, str] = {}
    for item in text.split(',') if text.strip() else ():
        name, _, value = (part.strip() for part in item.partition('='))
        if not (name and value):
            raise ConfigError(f'{key}: {item.strip()!r} is no NAME=VALUE, as in {example}')
        if name in found:
            raise ConfigError(f'{key}: {name!r} comes twice')
        found[name] = value
    return found


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Map each mesh axis to its size, with -1 resolved to the devices that are left.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    # Neighbors in the mesh differ in the last axis first: those of 'tensor' talk most.
    sizes = {
        'data': config.data,
        'fsdp': config.fsdp,
        'context': config.context,
        'tensor': config.tensor,
    }
    fixed = math.prod(size for size in sizes.values() if size != -1)
    wild = [axis for axis, size in sizes.items() if size == -1]
    if devices % fixed or (not wild and fixed != devices):
        multiple = 'a multiple of ' if wild else ''
        raise ConfigError(
            f'parallel.mesh={sizes} needs {multiple}{fixed} devices, there are {devices}'
        )
    return sizes | dict.fromkeys(wild, devices // fixed)


def seed_mesh_sizes(config: MeshConfig, sizes: dict[str, int], num_seeds: int) -> dict[str, int]:
    """Map each axis of a seed group's mesh to its size.

    The devices that `config` leaves to the axis 'data' go to the axis 'seed', as many as divide
    the number of seeds.

    Args:
        config: devices per axis of a single run.
        sizes: the same, resolved by `mesh_sizes`.
        num_seeds: seeds in the group.
    """
    parts = math.gcd(num_seeds, sizes['data']) if config.data == -1 else 1
    return {'seed': parts} | sizes | {'data': sizes['data'] // parts}

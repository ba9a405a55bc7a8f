"""The mesh of devices: made here, and nowhere else."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from transformer_jax import spec
from transformer_jax.errors import ConfigError
from transformer_jax.schema import MeshConfig


def make_mesh(config: MeshConfig, num_seeds: int = 1, devices: Sequence[Any] = ()) -> Mesh:
    """Arrange devices in a mesh with the axes data, fsdp and tensor.

    Args:
        config: devices per axis; one of them may be -1, the rest.
        num_seeds: seeds that are trained side by side. With several the mesh has a first axis
            'seed', see `seed_mesh_sizes`.
        devices: by default all that JAX has.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    count = len(devices) or jax.device_count()
    sizes = mesh_sizes(config, count)
    auto = (AxisType.Auto,) * len(sizes)  # Explicit axes break linen's logical constraints.
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=list(devices) or None
    )
    if num_seeds == 1:
        return mesh
    # The same order of devices as without the axis: arrays that move between the two meshes
    # stay on their devices.
    sizes = seed_mesh_sizes(config, sizes, num_seeds)
    grid = np.asarray(mesh.devices).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


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
    sizes = {'data': config.data, 'fsdp': config.fsdp, 'tensor': config.tensor}
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

"""The mesh of devices: made here, and nowhere else."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

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

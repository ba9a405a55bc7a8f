"""How devices become a mesh."""

import dataclasses

import jax
import pytest

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning import mesh as meshes
from transformer_jax.partitioning.mesh import make_mesh, platform_of
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import MeshConfig


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one of several slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = 'cpu'
    device_kind: str = 'cpu'


CHIPS = [Chip(n, n // 4) for n in range(8)]


def slices_of(monkeypatch, sizes):
    """Return the slice of each place of a mesh of two slices of four chips."""
    grids = []
    monkeypatch.setattr(meshes, 'Mesh', lambda grid, names, axis_types: grids.append(grid))
    make_mesh(MeshConfig(**sizes), devices=CHIPS)
    return [[chip.slice_index for chip in row.flat] for row in grids[0]]


def test_slices_are_the_outer_part_of_the_axis_data(monkeypatch):
    assert slices_of(monkeypatch, {'fsdp': 4}) == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert slices_of(monkeypatch, {'tensor': 2}) == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_a_mesh_that_would_cut_parameters_over_slices_is_refused():
    with pytest.raises(ConfigError, match=r'parallel\.mesh\.data=1 must be a multiple of the 2'):
        make_mesh(MeshConfig(data=1, fsdp=8), devices=CHIPS)


def test_given_devices_take_the_place_of_all():
    devices = jax.devices()[:4]
    mesh = Partitioner(MeshConfig(fsdp=2), devices=devices).mesh
    assert list(mesh.devices.flat) == devices
    assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 1}
    assert Partitioner(MeshConfig()).platform == 'cpu'


@pytest.mark.parametrize(
    ('platform', 'version', 'name'),
    [
        ('tpu', 'PJRT C API', 'tpu'),
        ('gpu', 'PJRT C API cuda 12080', 'cuda'),
        ('gpu', 'PJRT C API\nNVIDIA H200', 'cuda'),  # compiled for, not here
        ('gpu', 'PJRT C API rocm 60000', 'gpu'),
    ],
)
def test_the_platform_of_a_device(platform, version, name):
    @dataclasses.dataclass
    class Client:
        platform_version: str

    @dataclasses.dataclass
    class Device:
        platform: str
        client: Client

    assert platform_of(Device(platform, Client(version))) == name

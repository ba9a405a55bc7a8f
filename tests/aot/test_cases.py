"""The cases themselves, without their compiler: all can be configured, differences are told."""

from aot.cases import CASES, KINDS, MESHES, differences
from aot.gpu_cases import GPU_CASES

from transformer_jax import config as config_lib
from transformer_jax.attention import KINDS as ALL_KINDS
from transformer_jax.partitioning.topologies import parse_topology
from transformer_jax.positions import POSITIONS
from transformer_jax.spec import parse


def test_every_case_can_be_configured():
    for case in (*CASES.values(), *GPU_CASES.values()):
        config_lib.resolve(case.config(), parse_topology(case.topology).platform)


def test_every_kind_and_position_has_a_case():
    covered = {type(parse(spec, ALL_KINDS, 'kind')) for spec, _ in KINDS.values()}
    assert covered == set(ALL_KINDS.values())
    positions = {name.removeprefix('position-') for name in CASES}
    assert POSITIONS.keys() - positions <= {'none', 'sinusoidal'}  # sinusoidal is in the others
    assert {f'mesh-{name}' for name in MESHES} <= CASES.keys()


GOLDEN = {
    'kernels': {'mosaic splash': 1},
    'flops': 1000,
    'collectives': {'all-gather over fsdp': [2, 64], 'all-reduce over data': [1, 8]},
    'peak': 1000,
}


def test_what_is_equal_enough_has_no_difference():
    assert not differences(GOLDEN, GOLDEN | {'peak': 1050})


def test_every_difference_is_one_readable_line():
    found = {
        'kernels': {},
        'flops': 2000,
        'collectives': {'all-gather over fsdp': [3, 96], 'all-to-all over data': [1, 4]},
        'peak': 1100,
    }
    assert differences(GOLDEN, found) == [
        'mosaic splash: none, was 1 ×',
        'all-gather over fsdp: 3 with 96 bytes, was 2 with 64 bytes',
        'all-reduce over data: none, was 1 with 8 bytes',
        'all-to-all over data: 1 with 4 bytes, was none',
        'FLOPs: 2,000, was 1,000',
        'peak memory: 1,100 bytes, was 1,000 (+10%)',
    ]

"""Topologies as text: what there is, what is nearest to it, and what compiling for it needs."""

import importlib.util
import re

import pytest

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.chips import CHIPS
from transformer_jax.partitioning.topologies import GPU_TARGETS, Topology, parse_topology


@pytest.mark.parametrize(
    ('text', 'chip', 'shape', 'slices', 'chips'),
    [
        ('v5e:4x4', 'v5e', (4, 4), 1, 16),
        ('v5e:1x1', 'v5e', (1, 1), 1, 1),
        ('2*v5e:4x4', 'v5e', (4, 4), 2, 32),
        ('v4:2x2x1', 'v4', (2, 2, 1), 1, 4),
        ('v5p:4x8x12', 'v5p', (4, 8, 12), 1, 384),
        ('v6e:16x16', 'v6e', (16, 16), 1, 256),
        ('h100:8', 'h100', (1, 8), 1, 8),
        ('h200:1', 'h200', (1, 1), 1, 1),
        ('a100:32', 'a100', (4, 8), 1, 32),
    ],
)
def test_a_topology_is_read_and_written_back(text, chip, shape, slices, chips):
    topology = parse_topology(text)
    assert topology == Topology(CHIPS[chip], shape, slices)
    assert topology.num_chips == chips
    assert str(topology) == text


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('v5e:4x5', r'v5e has no such slice; the nearest are v5e:4x4, v5e:4x8'),
        ('v5e:4', r'the nearest are v5e:2x2'),
        ('v5e:0x0', r'the nearest are v5e:1x1'),
        ('v4:4x4', r'v4 has no such slice; the nearest are v4:2x2x4'),
        ('v5p:8x4x4', r'the nearest are v5p:4x4x8'),
        ('v9:2x2', r"no chip 'v9' to compile for; there are v2, v3, v4"),
        ('v5e', r'is not written CHIP:SHAPE'),
        ('', r'is not written CHIP:SHAPE'),
        ('0*v5e:4x4', r'at least one slice'),
        ('h100:12', r'h100:8 or h100:16'),
        ('h100:0', r'h100:8 or h100:16'),
        ('2*h100:8', r'h100:16 or h100:24'),
    ],
)
def test_what_does_not_exist_names_the_nearest(text, told):
    with pytest.raises(ConfigError, match=told) as error:
        parse_topology(text)
    assert f'--topology={text!r}' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('text', 'extra'), [('v5e:4x4', 'aot-tpu'), ('h100:8', 'aot-gpu')])
def test_a_missing_compiler_names_the_line_that_installs_it(text, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=rf"-m venv .*pip install -e '\.\[{extra}\]'"):
        parse_topology(text).devices()


def test_a_program_gets_three_quarters_of_a_gpu_or_what_jax_is_told(monkeypatch):
    monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION', raising=False)
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    topology = parse_topology('h200:8')
    assert topology.program_memory == 0.75 * 151_397_597_184
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.5')
    assert topology.program_memory == 0.5 * 151_397_597_184
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '.95')
    assert topology.program_memory == 0.95 * 151_397_597_184
    assert parse_topology('v5e:2x2').program_memory == 16 * 2**30
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', 'all')
    with pytest.raises(ConfigError, match="XLA_CLIENT_MEM_FRACTION='all' is no number"):
        _ = topology.program_memory


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('a100', {'core_count': 108, 'fpus_per_core': 64, 'l2_cache_size': 41943040, 'major': 8}),
        ('h100', {'core_count': 132, 'fpus_per_core': 128, 'l2_cache_size': 52428800, 'major': 9}),
        ('h200', {'memory_bandwidth': 4_800_000_000_000, 'device_memory_size': 151_397_597_184}),
        ('a100-40gb', {'shared_memory_per_core': 167936, 'shared_memory_per_block_optin': 166912}),
    ],
)
def test_a_gpu_is_described_as_its_driver_does(name, told):
    found = dict(re.findall(r'(\w+): (\d+)', GPU_TARGETS[name].partition('platform_name')[0]))
    assert {key: int(found[key]) for key in told} == told


def test_two_hosts_are_two_groups_of_devices():
    assert parse_topology('h200:16')._gpu_options()['topology'] == '1x2x8'
    assert parse_topology('h200:4')._gpu_options()['topology'] == '1x1x4'

"""Topologies as text: what there is, what is nearest to it, and what compiling for it needs."""

import importlib.util

import pytest

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.chips import CHIPS
from transformer_jax.partitioning.topologies import Topology, parse_topology


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

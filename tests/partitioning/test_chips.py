"""The table of accelerators: looked up by what JAX calls a device; consistent numbers."""

import dataclasses

import pytest

from transformer_jax.partitioning.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('TPU v5 lite', 'v5e'),
        ('TPU v5', 'v5p'),
        ('TPU v4', 'v4'),
        ('TPU7x', 'v7'),
        ('NVIDIA H100 80GB HBM3', 'h100'),
        ('NVIDIA H100 PCIe', 'h100-pcie'),
        ('NVIDIA A100-SXM4-40GB', 'a100-40gb'),
        ('NVIDIA H200', 'h200'),
    ],
)
def test_a_device_names_its_chip(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_a_cpu_and_an_unknown_device_have_no_chip():
    assert chip_of('cpu') is None
    assert chip_of('TPU v5 lite pod') is None


def test_every_device_kind_has_one_chip():
    kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))


def test_a_device_has_its_share_of_a_chip():
    chip = CHIPS['v3']  # 123 TFLOP/s, 900 GB/s, 32 GiB and 4 links of 82 GB/s in two devices
    assert chip.peak_flops('bfloat16') == 61.5e12
    assert chip.device_memory == 16 * 2**30
    assert chip.device_memory_rate == 450e9
    assert chip.device_link_rate == 164e9


@pytest.mark.parametrize('chip', CHIPS.values(), ids=lambda chip: chip.name)
def test_every_number_is_known_and_has_a_source(chip):
    numbers = [v for v in dataclasses.asdict(chip).values() if isinstance(v, float | int)]
    assert all(number > 0 for number in numbers)
    assert 'http' in chip.source
    assert chip.float32 <= chip.bfloat16

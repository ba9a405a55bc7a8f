"""The roofline, in numbers computed by hand."""

import pytest

from transformer_jax.profiling.collectives import Collective
from transformer_jax.profiling.compiled import Work
from transformer_jax.profiling.roofline import Peaks, cost, predict, utilization

PEAKS = Peaks(flops=100.0, memory_rate=10.0, link_rate=1.0)
COMPUTES = Work(flops=1000, bytes=20)  # 10 s against 2 s
MOVES = Work(flops=100, bytes=40, count=3)  # 1 s against 4 s, three times


def gather(sent):
    return Collective('all-gather', ('fsdp',), 1, sent, sent)


def test_each_operation_takes_the_slower_of_its_two_sides():
    found = predict([COMPUTES, MOVES], [], 0, PEAKS)
    assert found.compute == pytest.approx(13)
    assert found.memory == pytest.approx(14)
    assert found.step == pytest.approx(10 + 3 * 4)
    assert found.bound == 'memory'


def test_products_inside_kernels_are_computed():
    found = predict([COMPUTES, MOVES], [], 500, PEAKS)
    assert found.step == pytest.approx(10 + 3 * 4 + 5)
    assert found.compute == pytest.approx(18)
    assert found.bound == 'compute'


def test_collectives_overlap():
    hidden = predict([COMPUTES], [gather(4), gather(5)], 0, PEAKS)
    assert (hidden.step, hidden.interconnect) == (pytest.approx(10), pytest.approx(9))
    assert hidden.bound == 'compute'
    shown = predict([COMPUTES], [gather(25)], 0, PEAKS)
    assert (shown.step, shown.bound) == (pytest.approx(25), 'interconnect')


def test_utilization_and_cost():
    assert utilization(800, seconds=2, devices=8, peaks=PEAKS) == 0.5
    # 16 chips for 9,000 steps of 0.4 s are 16 hours.
    assert cost(1.5, chips=16, steps=9000, seconds=0.4) == pytest.approx(24)

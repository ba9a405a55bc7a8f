"""The time of a compiled step by the roofline of its chip, and what the time costs.

Each operation takes as long as the slower of its matrix products at the peak of the chip and its
bytes at the peak of the memory; the operations of a core follow one another. Collectives overlap
with them, so that the step takes as long as the slower of both. Peaks are published or measured
upper limits: a real step is slower. Arithmetic that is no matrix product has no time of its own.
"""

import dataclasses
from collections.abc import Sequence

from transformer_jax.profiling.collectives import Collective
from transformer_jax.profiling.compiled import Work

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The limits of one device.

    Attributes:
        flops: of matrix products, per second.
        memory_rate: bytes per second between main memory and cores.
        link_rate: bytes per second that it can send to other devices.
    """

    flops: float
    memory_rate: float
    link_rate: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device.

    Attributes:
        compute: of all matrix products, those in kernels too.
        memory: of all bytes between main memory and cores.
        interconnect: of all that the device sends.
        step: the prediction.
        bound: 'compute', 'memory' or 'interconnect', where the largest part of `step` is spent.
    """

    compute: float
    memory: float
    interconnect: float
    step: float
    bound: str


def predict(
    works: Sequence[Work],
    collectives: Sequence[Collective],
    hidden_flops: float,
    peaks: Peaks,
) -> Roofline:
    """Predict the time of a step.

    Args:
        works: the operations of the program.
        collectives: of the program.
        hidden_flops: of matrix products inside kernels, of one device.
        peaks: of the device.
    """
    hidden = hidden_flops / peaks.flops
    by_compute, by_memory = hidden, 0.0
    for work in works:
        compute, memory = work.flops / peaks.flops, work.bytes / peaks.memory_rate
        if compute > memory:
            by_compute += work.count * compute
        else:
            by_memory += work.count * memory
    sent = sum(collective.sent for collective in collectives) / peaks.link_rate
    limits = {'compute': by_compute, 'memory': by_memory, 'interconnect': 0.0}
    if sent > by_compute + by_memory:
        limits['interconnect'] = sent
    return Roofline(
        compute=hidden + sum(work.count * work.flops for work in works) / peaks.flops,
        memory=sum(work.count * work.bytes for work in works) / peaks.memory_rate,
        interconnect=sent,
        step=max(by_compute + by_memory, sent),
        bound=max(limits, key=lambda name: limits[name]),
    )


def utilization(model_flops: float, seconds: float, devices: int, peaks: Peaks) -> float:
    """Return MFU: the model's FLOPs of a step over what the devices could do in that time."""
    return model_flops / (seconds * devices * peaks.flops)


def cost(price: float, chips: int, steps: int, seconds: float) -> float:
    """Return the cost of some steps.

    Args:
        price: of one chip for an hour.
        chips: that the run holds.
        steps: of the run.
        seconds: of a step.
    """
    return price * chips * steps * seconds / HOUR

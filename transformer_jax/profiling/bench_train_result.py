"""The result of `bench train` and its tables."""

import dataclasses
from typing import Any

import rich.table

from transformer_jax.display.tables import result_table

Shape = tuple[int, int]  # (rows, length)


@dataclasses.dataclass(frozen=True)
class ShapeTimes:
    """The cost of one compiled batch shape, and the timed steps of that shape.

    Attributes:
        rows: of all devices and microbatches.
        length: tokens of the source, and of the target.
        steps: how many of the timed steps have this shape.
        seconds: of a bare step, the median; 0 without steps.
        flops: of a step, padding included, see `flops`.
        peak_share: achieved FLOP/s over `TrainBench.peak_flops`; 0 without steps.
        compile_seconds: to compile the step.
        temporary_bytes: per device.
    """

    rows: int
    length: int
    steps: int
    seconds: float
    flops: int
    peak_share: float
    compile_seconds: float
    temporary_bytes: int


@dataclasses.dataclass(frozen=True)
class TrainBench:
    """The cost of training.

    Attributes:
        machine: see `provenance.describe_machine`.
        steps: how many steps were timed.
        tokens: real target tokens of these steps.
        tokens_per_second: real target tokens per second in the training loop.
        padding: the share of padding in the tokens of these steps, source and target.
        epoch_padding: that of a whole epoch, before rows are padded for the devices.
        data_wait: the share of the loop's time that it waited for data.
        loop_seconds: of a step in the training loop, the mean.
        bare_seconds: of the same steps with their batches already on the devices, the mean.
        loop_over_bare: the ratio of the two.
        peak_flops: FLOP/s of large matrix products in the model's dtype, all devices together.
        peak_share: achieved FLOP/s of the bare steps over `peak_flops`.
        mfu: model FLOP/s of the bare steps over the published peak of the devices, as in the log
            of a training; None where that is unknown.
        compile_seconds: of all shapes.
        temporary_bytes: per device, of the shape that needs most.
        shapes: one entry for each batch shape.
        parts_shape: the batch shape of `parts`.
        parts: seconds of each of `step_parts.PARTS`.
    """

    machine: dict[str, Any]
    steps: int
    tokens: int
    tokens_per_second: float
    padding: float
    epoch_padding: float
    data_wait: float
    loop_seconds: float
    bare_seconds: float
    loop_over_bare: float
    peak_flops: float
    peak_share: float
    mfu: float | None
    compile_seconds: float
    temporary_bytes: int
    shapes: tuple[ShapeTimes, ...]
    parts_shape: Shape
    parts: dict[str, float]


def tables(bench: TrainBench) -> tuple[rich.table.Table, ...]:
    """Make the tables that are printed: totals, each batch shape, each part of a step."""
    whole = result_table(
        'training',
        ('', 'value'),
        [
            ('steps', f'{bench.steps}'),
            ('real target tokens/s', f'{bench.tokens_per_second:,.0f}'),
            ('padding', f'{bench.padding:.1%} (of an epoch {bench.epoch_padding:.1%})'),
            ('waiting for data', f'{bench.data_wait:.2%}'),
            (
                'step in the loop, bare',
                f'{1e3 * bench.loop_seconds:.1f} ms, {1e3 * bench.bare_seconds:.1f} ms',
            ),
            ('loop over bare', f'{bench.loop_over_bare:.3f}'),
            ('matrix products, peak', f'{1e-9 * bench.peak_flops:,.1f} GFLOP/s'),
            ('share of that peak', f'{bench.peak_share:.1%}'),
            ('MFU', 'unknown peak' if bench.mfu is None else f'{bench.mfu:.1%}'),
            ('compilation', f'{bench.compile_seconds:.1f} s for {len(bench.shapes)} shapes'),
            ('temporary memory, at most', f'{bench.temporary_bytes / 2**20:,.1f} MiB per device'),
        ],
    )
    shapes = result_table(
        'by batch shape',
        ('rows', 'length', 'steps', 'ms per step', 'GFLOP', 'of the peak', 'compile s', 'MiB'),
        [
            (
                f'{shape.rows:,}',
                f'{shape.length:,}',
                f'{shape.steps}',
                f'{1e3 * shape.seconds:.1f}',
                f'{1e-9 * shape.flops:,.2f}',
                f'{shape.peak_share:.1%}',
                f'{shape.compile_seconds:.1f}',
                f'{shape.temporary_bytes / 2**20:,.1f}',
            )
            for shape in bench.shapes
        ],
    )
    whole_step = sum(bench.parts.values())
    parts = result_table(
        'where a step of {} rows of {} goes'.format(*bench.parts_shape),
        ('part', 'ms', 'share'),
        [
            (name, f'{1e3 * part:.1f}', f'{part / whole_step:.1%}')
            for name, part in bench.parts.items()
        ],
    )
    return whole, shapes, parts

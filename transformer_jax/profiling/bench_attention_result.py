"""The result of `bench attention`: its tables and its picture."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.table
from etils import epath
from matplotlib.axes import Axes

from transformer_jax.display.figures import PlainFigure, save_figure
from transformer_jax.display.tables import result_table

PASSES = ('forward', 'forward and backward')
MEASURES = ('seconds', 'temporary_bytes')  # attributes of Point that have a slope
TITLES = {'seconds': 'seconds', 'temporary_bytes': 'temporary MiB'}
LINE_STYLES = ('-', '--', ':')  # one for each 10 colors


class Sizes(NamedTuple):
    """The sizes that stay the same while the length grows.

    Attributes:
        rows: sequences of a batch.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: of queries, keys and values.
    """

    rows: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Point:
    """One program at one length.

    Attributes:
        attention: the spec.
        engine: its engine, or 'own' for a kind without a choice.
        length: of the sequence.
        direction: one of PASSES.
        seconds: of the fastest run; None if it was not run.
        flops: of matrix products, without those that are recomputed.
        temporary_bytes: the peak of temporary arrays that XLA plans for the program.
    """

    attention: str
    engine: str
    length: int
    direction: str
    seconds: float | None
    flops: int
    temporary_bytes: int

    @property
    def flops_per_second(self) -> float | None:
        """Return the achieved FLOP/s; None if it was not run."""
        return self.flops / self.seconds if self.seconds else None


@dataclasses.dataclass(frozen=True)
class AttentionBench:
    """The result of `bench attention`.

    Attributes:
        machine: see `provenance.describe_machine`.
        sizes: what stays the same while the length grows.
        points: every program that was compiled.
        slopes: for each attention, engine and pass, and each of MEASURES, the exponent p of the
            power law c·lengthᵖ through its points; None with fewer than 2 points.
    """

    machine: dict[str, Any]
    sizes: Sizes
    points: tuple[Point, ...]
    slopes: tuple[dict[str, Any], ...]


def fit_slopes(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Fit the power laws of `AttentionBench.slopes`."""
    slopes = []
    for key in dict.fromkeys((p.attention, p.engine, p.direction) for p in points):
        mine = [p for p in points if (p.attention, p.engine, p.direction) == key]
        fitted = {
            measure: _slope([(p.length, getattr(p, measure)) for p in mine if getattr(p, measure)])
            for measure in MEASURES
        }
        slopes.append(dict(zip(('attention', 'engine', 'direction'), key, strict=True)) | fitted)
    return slopes


def _slope(line: Sequence[tuple[int, float]]) -> float | None:
    if len(line) < 2:
        return None
    lengths, values = np.log(np.array(line, float)).T
    return float(np.polyfit(lengths, values, 1)[0])


def tables(bench: AttentionBench) -> tuple[rich.table.Table, ...]:
    """Make the tables that are printed: every point, then the slopes."""
    rows = [
        (
            p.attention,
            p.engine,
            f'{p.length:,}',
            p.direction,
            '' if p.seconds is None else f'{1e3 * p.seconds:,.1f}',
            f'{1e-9 * p.flops_per_second:,.1f}' if p.flops_per_second else '',
            f'{p.temporary_bytes / 2**20:,.1f}',
        )
        for p in bench.points
    ]
    slopes = [
        (
            s['attention'],
            s['engine'],
            s['direction'],
            *('' if s[measure] is None else f'{s[measure]:.2f}' for measure in MEASURES),
        )
        for s in bench.slopes
    ]
    title = '{} rows, {} heads over {} key-value heads of {}'.format(*bench.sizes)
    return (
        result_table(
            title, ('attention', 'engine', 'T', 'pass', 'ms', 'GFLOP/s', 'temporary MiB'), rows
        ),
        result_table(
            'p of T^p', ('attention', 'engine', 'pass', 'time', 'temporary memory'), slopes
        ),
    )


def draw(bench: AttentionBench, path: epath.PathLike) -> epath.Path:
    """Draw time and temporary memory of forward and backward pass against the length.

    Both axes are logarithmic. The format is that of the suffix: PNG, SVG or PDF.

    Raises:
        ConfigError: another suffix.
    """
    measures = [measure for measure in MEASURES if any(slope[measure] for slope in bench.slopes)]
    figure = PlainFigure(figsize=(6 * len(measures), 5.5), dpi=120, layout='constrained')
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        slopes = [slope for slope in bench.slopes if slope['direction'] == PASSES[-1]]
        for number, slope in enumerate(slopes):
            if slope[measure] is not None:
                _draw_line(axes, bench.points, slope, measure, number)
        ticks = sorted({p.length for p in bench.points})
        axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set(title=f'{TITLES[measure]}, forward and backward', xlabel='sequence length T')
        axes.grid(alpha=0.3, which='both')
        axes.legend(frameon=False, fontsize=7)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))


def _draw_line(
    axes: Axes, points: Sequence[Point], slope: dict[str, Any], measure: str, number: int
) -> None:
    """Draw one attention with one engine; `number` chooses its color and line style."""
    key = slope['attention'], slope['engine'], slope['direction']
    mine = [p for p in points if (p.attention, p.engine, p.direction) == key]
    lengths, values = np.array(
        [(p.length, getattr(p, measure)) for p in mine if getattr(p, measure)]
    ).T
    axes.loglog(
        lengths,
        values / 2**20 if measure == 'temporary_bytes' else values,
        marker='o',
        markersize=3,
        color=f'C{number % 10}',
        linestyle=LINE_STYLES[number // 10 % len(LINE_STYLES)],
        label=f'{slope["attention"]} {slope["engine"]} (T^{slope[measure]:.2f})',
    )

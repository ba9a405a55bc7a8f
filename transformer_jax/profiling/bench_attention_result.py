"""The result of `bench attention`: its tables and its picture."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.table
from etils import epath
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from transformer_jax.display.figures import PlainFigure, draw_legend, save_figure
from transformer_jax.display.lines import MOST_COLORS, height_for, line_style, name_ends
from transformer_jax.display.tables import result_table
from transformer_jax.errors import ConfigError

PASSES = ('forward', 'forward and backward')
MEASURES = ('seconds', 'temporary_bytes')  # attributes of Point that have a slope
TITLES = {'seconds': 'seconds', 'temporary_bytes': 'temporary MiB'}
UNITS = {'seconds': 1.0, 'temporary_bytes': 2.0**20}


class Sizes(NamedTuple):
    """The sizes that stay the same while the length grows.

    Attributes:
        rows: sequences of a batch.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: of queries, keys and values.
        dtype: of inputs and values.
    """

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str = 'float32'


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
    if len({length for length, _ in line}) < 2:
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

    Both axes are logarithmic; a program that was measured at one length is a point. The format is
    that of the suffix: PNG, SVG or PDF.

    Raises:
        ConfigError: another suffix, or nothing was measured that could be drawn.
    """
    points = [point for point in bench.points if point.direction == PASSES[-1]]
    measures = [name for name in MEASURES if any(getattr(point, name) for point in points)]
    if not measures:
        raise ConfigError(f'--out={path}: nothing to draw, all times and memory are 0')
    slopes = [slope for slope in bench.slopes if slope['direction'] == PASSES[-1]]
    size = 6.5 * len(measures), height_for(len(slopes), 5.5)
    figure = PlainFigure(figsize=size, dpi=120, layout='constrained')
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _draw_panel(axes, points, slopes, measure)
    return save_figure(figure, epath.Path(path))


def _draw_panel(
    axes: Axes, points: Sequence[Point], slopes: Sequence[dict[str, Any]], measure: str
) -> None:
    """Draw one of MEASURES of all attentions and engines."""
    lines, names = [], []
    for number, slope in enumerate(slopes):
        key = slope['attention'], slope['engine']
        mine = [p for p in points if (p.attention, p.engine) == key and getattr(p, measure)]
        if mine:
            values = [getattr(point, measure) / UNITS[measure] for point in mine]
            lengths = [point.length for point in mine]
            lines += axes.loglog(lengths, values, marker='o', markersize=3, **line_style(number))
            power = slope[measure]
            names.append(' '.join(key) + ('' if power is None else f' (T^{power:.2f})'))
    ticks = sorted({point.length for point in points})
    axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title=f'{TITLES[measure]}, forward and backward', xlabel='sequence length T')
    axes.grid(alpha=0.3, which='both')
    axes.spines[['top', 'right']].set_visible(False)
    if len(lines) > MOST_COLORS:
        name_ends(axes, lines, names)
    else:
        draw_legend(axes, lines, names, frameon=False, fontsize=7)

"""Figures for a paper: differences with their intervals, scores along an axis, learning curves.

No pair of colors is red and green.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.ablation.experiment import slug
from transformer_jax.display.figures import DPI, PlainFigure, draw_legend, save_figure
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report.tables import Report, Table, Verdict
from transformer_jax.report.traces import Curve

SUFFIXES = ('.png', '.svg')
# Okabe and Ito (2008); references are black. page.js has the same.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
DASHES = ('-', '--', ':', '-.')
OF_VERDICT = {Verdict.BETTER: '#009e73', Verdict.WORSE: '#d55e00', Verdict.OPEN: '#6b7280'}
ROW_INCHES = 0.3
LONGEST_NAME = 48  # letters of a variant's name; of longer ones the middle is left out


class Point(NamedTuple):
    """A score of a variant: its mean over seeds, the 95% interval, and each seed's value.

    `low` and `high` are the mean where there is no interval.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def write_figures(report: Report, out: epath.Path) -> list[str]:
    """Write all figures of a report as PNG and SVG; return the names of the PNG files."""
    figures = {
        f'differences-{slug(table.label)}': differences_figure(table)
        for table in report.tables
        if table.compared
    }
    figures |= axis_figures(report)
    wanted = [f'validation {metric["name"]}' for metric in report.experiment['metrics']]
    for name, found in report.curves.items():
        if name in (*wanted, 'validation loss', 'train loss') and found:
            figures[f'curves-{slug(name)}'] = _curves_figure(report, name, found)
    for stem, figure in figures.items():
        for suffix in SUFFIXES:
            save_figure(figure, out / f'{stem}{suffix}')
    return [f'{stem}.png' for stem in figures]


def axis_figures(report: Report) -> dict[str, Figure]:
    """Draw scores, and the time of a step, over the axis of an experiment.

    Returns:
        {'by-test-loss': figure}; {} where the experiment has no axis.
    """
    axis = report.experiment['axis']
    if not axis:
        return {}
    found = {
        f'by-{slug(table.label)}': _axis_figure(axis, table.label, _scores(table))
        for table in report.tables
    }
    if not any(METRICS[metric['name']].timed for metric in report.experiment['metrics']):
        times = _step_times(report.tables[0])
        found['by-step-time'] = _axis_figure(axis, 'ms per step', times)
    return found


def differences_figure(table: Table) -> Figure:
    """Draw a forest plot: a row for each variant, its reference's mean at zero."""
    rows = table.differences
    figure = PlainFigure(figsize=(6.8, 1.1 + ROW_INCHES * len(rows)), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    axes.axvline(0, color='0.5', linewidth=0.8, linestyle='--')
    for place, (row, found) in enumerate(rows):
        color, is_open = OF_VERDICT[row.verdict], row.verdict == Verdict.OPEN
        axes.plot(
            [found.low, found.high],
            [place, place],
            color=color,
            linewidth=1.8,
            solid_capstyle='butt',
        )
        axes.plot(
            found.value,
            place,
            marker='D' if is_open else 'o',
            color=color,
            markersize=5,
            markerfacecolor='white' if is_open else color,
        )
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [_shorten(row.variant) for row, _ in rows])
    better = 'left' if table.lower_is_better else 'right'
    axes.set_xlabel(
        f'{table.label}: difference from {_shorten(table.reference)}, 95% interval '
        f'(better: {better})',
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    return figure


def _axis_figure(axis: Mapping[str, Any], label: str, found: Mapping[str, Point]) -> Figure:
    """Draw lines of means, with their intervals, over the axis; each seed is a cross."""
    lines: dict[str, list[tuple[float, Point]]] = {}
    for variant, (line, x) in axis['points'].items():
        points = lines.setdefault(line, [])
        if variant in found:
            points.append((x, found[variant]))
    figure = PlainFigure(figsize=(5.4, 3.6), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    for number, (line, points) in enumerate(lines.items()):
        _plot_line(axes, number, line, points)
    every = [value for point in found.values() for value in point.seeds]
    if every:  # A wide interval of few seeds is cut off by the edge of the figure.
        margin = 0.08 * ((max(every) - min(every)) or abs(max(every)) or 1.0)
        axes.set_ylim(min(every) - margin, max(every) + margin)
    places = sorted({x for _, x in axis['points'].values()})
    if places[-1] >= 4 * places[0] > 0:
        axes.set_xscale('log', base=2)
    axes.set_xticks(places, [f'{x:g}' for x in places])
    axes.minorticks_off()
    axes.set(xlabel=axis['label'], ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    outside = {'loc': 'center left', 'bbox_to_anchor': (1, 0.5)} if len(lines) > len(COLORS) else {}
    axes.legend(frameon=False, fontsize=8, handlelength=3.5, **outside)
    return figure


def _plot_line(axes: Axes, number: int, line: str, points: list[tuple[float, Point]]) -> None:
    color = COLORS[number % len(COLORS)]
    if points:
        x, y, low, high = np.transpose(
            sorted((x, point.mean, point.low, point.high) for x, point in points)
        )
        # Dashes differ from line to line, so that two lines at the same place are both seen.
        axes.errorbar(
            x,
            y,
            [y - low, high - y],
            color=color,
            linestyle=DASHES[number % len(DASHES)],
            marker='o',
            markersize=4,
            capsize=3,
            linewidth=1.5,
            label=line,
        )
    for x, point in points:
        axes.plot([x] * len(point.seeds), point.seeds, 'x', color=color, alpha=0.7, markersize=4)


def _scores(table: Table) -> dict[str, Point]:
    found = {}
    for row in table.rows:
        mean, low, high = row.summary.mean, row.summary.low, row.summary.high
        if row.values:
            found[row.variant] = Point(
                mean,
                mean if low is None else low,
                mean if high is None else high,
                tuple(row.values.values()),
            )
    return found


def _step_times(table: Table) -> dict[str, Point]:
    times = {
        row.variant: 1e3 * row.cost.step_seconds for row in table.rows if row.cost.step_seconds
    }
    return {variant: Point(time, time, time, (time,)) for variant, time in times.items()}


def _curves_figure(report: Report, name: str, found: Mapping[str, Curve]) -> Figure:
    """Draw the mean over seeds, thick, and each seed, thin."""
    figure = PlainFigure(figsize=(7.2, 4.0), dpi=DPI, layout='constrained')
    axes, handles, labels = figure.subplots(), [], []
    for variant, (color, dash, width) in _line_styles(report).items():
        if variant not in found:
            continue
        curve = found[variant]
        for points in curve.seeds.values():
            axes.plot(*np.transpose(points), color=color, linestyle=dash, linewidth=0.6, alpha=0.35)
        if curve.mean:
            mean = np.transpose(curve.mean)
            [line] = axes.plot(*mean, color=color, linestyle=dash, linewidth=width)
            handles.append(line)
            labels.append(_shorten(variant))
    axes.set(xlabel='step', ylabel=name)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    if handles:
        draw_legend(figure, handles, labels, frameon=False, fontsize=7, loc='outside right upper')
    return figure


def _line_styles(report: Report) -> dict[str, tuple[str, str, float]]:
    """Return variant -> (color, dash, width) of each variant that has a curve of any kind."""
    drawn = [
        variant
        for variant in report.experiment['variants']
        if any(variant in found for found in report.curves.values())
    ]
    references = report.tables[0].references
    styles = {
        variant: ('black', DASHES[number % len(DASHES)], 2.0)
        for number, variant in enumerate(references)
        if variant in drawn
    }
    for number, variant in enumerate(variant for variant in drawn if variant not in references):
        dash = DASHES[number // len(COLORS) % len(DASHES)]
        styles[variant] = COLORS[number % len(COLORS)], dash, 1.5
    return styles


def _shorten(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f'{name[:half]}…{name[1 - half :]}'

"""Figures for a paper: differences with their intervals, and learning curves. Told apart without
red and green.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from transformer_jax.ablation.experiment import slug
from transformer_jax.display.figures import DPI, save_figure
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report.analysis import Report, Table, VariantResult
from transformer_jax.report.traces import Curve

FORMATS = ('.png', '.svg')
# Okabe and Ito (2008); references are black. page.js has the same.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
DASHES = ('-', '--', ':', '-.')
OF_VERDICT = {'better': '#009e73', 'worse': '#d55e00', 'open': '#6b7280'}
ROW_INCHES = 0.3
LONGEST_NAME = 48  # letters of a variant's name; of longer ones the middle is left out


class Point(NamedTuple):
    """A score of a variant: its mean over seeds, the 95% interval (the mean where there is none),
    and each seed's.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def draw(report: Report, out: epath.Path) -> list[str]:
    """Writes all figures as PNG and SVG; returns the names of the PNG files."""
    figures = {
        f'differences-{slug(table.label)}': _differences(table)
        for table in report.tables
        if _compared(table)
    }
    wanted = [f'validation {metric["name"]}' for metric in report.experiment['metrics']]
    figures |= along(report)
    for name, found in report.curves.items():
        if name in (*wanted, 'validation loss', 'train loss') and found:
            figures[f'curves-{slug(name)}'] = _curves(report, name, found)
    for stem, figure in figures.items():
        for suffix in FORMATS:
            save_figure(figure, out / f'{stem}{suffix}')
    return [f'{stem}.png' for stem in figures]


def along(report: Report) -> dict[str, Figure]:
    """Scores, and the time of a step, over what the experiment varies; {} where it has no axis."""
    axis = report.experiment['axis']
    if not axis:
        return {}
    found = {
        f'by-{slug(table.label)}': _along(axis, table.label, _scores(table))
        for table in report.tables
    }
    if not any(METRICS[metric['name']].timed for metric in report.experiment['metrics']):
        found['by-step-time'] = _along(axis, 'ms per step', _step_times(report.tables[0]))
    return found


def _differences(table: Table) -> Figure:
    """A forest plot: a row a variant, its reference's mean at zero."""
    rows = _compared(table)
    figure = Figure(figsize=(6.8, 1.1 + ROW_INCHES * len(rows)), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    axes.axvline(0, color='0.5', linewidth=0.8, linestyle='--')
    for place, row in enumerate(rows):
        found = row.comparison
        axes.plot(
            [found.low, found.high],
            [place, place],
            color=OF_VERDICT[row.verdict],
            linewidth=1.8,
            solid_capstyle='butt',
        )
        axes.plot(
            found.difference,
            place,
            marker='D' if row.verdict == 'open' else 'o',
            color=OF_VERDICT[row.verdict],
            markersize=5,
            markerfacecolor='white' if row.verdict == 'open' else OF_VERDICT[row.verdict],
        )
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    # Names are no mathematics: they may hold dollar signs.
    axes.set_yticks(range(len(rows)), [_cut(row.variant) for row in rows], parse_math=False)
    better = 'left' if table.lower_is_better else 'right'
    axes.set_xlabel(
        f'{table.label}: difference from {_cut(table.reference)}, 95% interval (better: {better})',
        parse_math=False,
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    return figure


def _compared(table: Table) -> list[VariantResult]:
    return [row for row in table.rows if row.comparison and row.comparison.difference is not None]


def _along(axis: Mapping[str, Any], label: str, found: Mapping[str, Point]) -> Figure:
    """Lines of means, with their intervals, over what the experiment varies; each seed is
    a cross.
    """
    lines: dict[str, list[tuple[float, Point]]] = {}
    for variant, (line, x) in axis['points'].items():
        lines.setdefault(line, []).extend([(x, found[variant])] if variant in found else [])
    figure = Figure(figsize=(5.4, 3.6), dpi=DPI, layout='constrained')
    axes = figure.subplots()
    for number, (line, points) in enumerate(lines.items()):
        colour = COLOURS[number % 7]
        if points:
            x, y, low, high = np.transpose(
                sorted((x, point.mean, point.low, point.high) for x, point in points)
            )
            # Dashes differ from line to line: those that lie upon each other are both seen.
            axes.errorbar(
                x,
                y,
                [y - low, high - y],
                color=colour,
                linestyle=DASHES[number % 4],
                marker='o',
                markersize=4,
                capsize=3,
                linewidth=1.5,
                label=line,
            )
        for x, point in points:
            axes.plot(
                [x] * len(point.seeds), point.seeds, 'x', color=colour, alpha=0.7, markersize=4
            )
    every = [value for point in found.values() for value in point.seeds]
    if every:  # A wide interval of few seeds runs out of the picture.
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
    beside = {'loc': 'center left', 'bbox_to_anchor': (1, 0.5)} if len(lines) > len(COLOURS) else {}
    axes.legend(frameon=False, fontsize=8, handlelength=3.5, **beside)
    return figure


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


def _curves(report: Report, name: str, found: Mapping[str, Curve]) -> Figure:
    """The mean over seeds, thick, and each seed, thin."""
    figure = Figure(figsize=(7.2, 4.0), dpi=DPI, layout='constrained')
    axes, handles, labels = figure.subplots(), [], []
    for variant, (colour, dash, width) in _styles(report).items():
        if variant not in found:
            continue
        curve = found[variant]
        for points in curve.seeds.values():
            axes.plot(
                *np.transpose(points), color=colour, linestyle=dash, linewidth=0.6, alpha=0.35
            )
        if curve.mean:
            [line] = axes.plot(
                *np.transpose(curve.mean), color=colour, linestyle=dash, linewidth=width
            )
            handles.append(line)
            labels.append(_cut(variant))
    axes.set(xlabel='step', ylabel=name)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    if handles:
        legend = figure.legend(
            handles, labels, frameon=False, fontsize=7, loc='outside right upper'
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _styles(report: Report) -> dict[str, tuple[str, str, float]]:
    """Colour, dash and width of each variant that has a curve of any kind."""
    styles: dict[str, tuple[str, str, float]] = {}
    drawn = [
        variant
        for variant in report.experiment['variants']
        if any(variant in found for found in report.curves.values())
    ]
    references = report.tables[0].references
    for number, variant in enumerate(variant for variant in drawn if variant not in references):
        styles[variant] = COLOURS[number % 7], DASHES[number // 7 % 4], 1.5
    black = {
        variant: ('black', DASHES[number % 4], 2.0) for number, variant in enumerate(references)
    }
    return {variant: style for variant, style in black.items() if variant in drawn} | styles


def _cut(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f'{name[:half]}…{name[1 - half :]}'

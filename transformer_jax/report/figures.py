"""Figures for a paper: differences with their intervals, scores along an axis, learning curves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from transformer_jax.ablation.experiment import slug
from transformer_jax.display.figures import DPI, FORMATS, PlainFigure, draw_legend, save_figure
from transformer_jax.display.lines import (
    BLACK,
    COLORS,
    DASHES,
    MOST_COLORS,
    fit_scale,
    height_for,
    line_style,
    name_ends,
)
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report.metric_names import curve_name, higher_is_better, metric_name
from transformer_jax.report.tables import Report, Table, Verdict
from transformer_jax.report.traces import Curve

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


def write_figures(report: Report, out: epath.Path) -> dict[str, str]:
    """Write all figures of a report as PNG, SVG and PDF.

    Returns:
        the name of each PNG file -> what it shows.
    """
    names = {metric['label']: metric_name(metric) for metric in report.experiment['metrics']}
    figures, titles = {}, {}
    for table in report.tables:
        if table.compared:
            stem, name = f'differences-{slug(table.label)}', names[table.label]
            figures[stem] = differences_figure(table, name)
            titles[stem] = f'{name}: differences from {table.reference}'
    for stem, (title, figure) in axis_figures(report).items():
        figures[stem], titles[stem] = figure, title
    wanted = [f'validation {metric["name"]}' for metric in report.experiment['metrics']]
    for name, found in report.curves.items():
        if name in (*wanted, 'validation loss', 'train loss') and found:
            stem = f'curves-{slug(name)}'
            figures[stem] = _curves_figure(report, name, found)
            titles[stem] = f'learning curves: {curve_name(name)}'
    for stem, figure in figures.items():
        for suffix in FORMATS:
            save_figure(figure, out / f'{stem}{suffix}')
    return {f'{stem}.png': title for stem, title in titles.items()}


def axis_figures(report: Report) -> dict[str, tuple[str, Figure]]:
    """Draw scores, and the time of a step, over the axis of an experiment.

    Returns:
        {'by-test-loss': (what it shows, figure)}; {} where the experiment has no axis.
    """
    axis = report.experiment['axis']
    if not axis:
        return {}
    names = {metric['label']: metric for metric in report.experiment['metrics']}
    drawn = {
        f'by-{slug(table.label)}': (
            metric_name(names[table.label]),
            _scores(table),
            not table.lower_is_better,
        )
        for table in report.tables
    }
    kinds = [METRICS[metric['name']] for metric in report.experiment['metrics']]
    if not any(kind.timed and not kind.decodes for kind in kinds):
        drawn['by-step-time'] = 'milliseconds per step', _step_times(report.tables[0]), False
    return {
        stem: (f'{name} over {axis["label"]}', _axis_figure(axis, name, found, linear))
        for stem, (name, found, linear) in drawn.items()
    }


def differences_figure(table: Table, name: str) -> Figure:
    """Draw a forest plot: a row for each variant, its reference's mean at zero.

    Args:
        table: whose differences these are.
        name: of its metric, for people.
    """
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
    axes.set_yticks(range(len(rows)), [shorten_name(row.variant) for row, _ in rows])
    better = 'left' if table.lower_is_better else 'right'
    axes.set_xlabel(
        f'{name}: difference from {shorten_name(table.reference)}\n'
        f'{table.confidence} intervals, all together (better: {better})',
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    return figure


def _axis_figure(
    axis: Mapping[str, Any], label: str, found: Mapping[str, Point], linear: bool
) -> Figure:
    """Draw lines of means, with their intervals, over the axis; each seed is a cross.

    A score that has an upper bound is `linear`; others may span decades.
    """
    lines: dict[str, list[tuple[float, Point]]] = {}
    for variant, (line, x) in axis['points'].items():
        points = lines.setdefault(line, [])
        if variant in found:
            points.append((x, found[variant]))
    size = 5.4, height_for(len(lines), 3.6)
    figure = PlainFigure(figsize=size, dpi=DPI, layout='constrained')
    axes = figure.subplots()
    drawn = {
        line: _plot_line(axes, number, points)
        for number, (line, points) in enumerate(lines.items())
        if points
    }
    if not linear:
        values = [value for point in found.values() for value in (point.mean, *point.seeds)]
        ends = [end for point in found.values() for end in (point.low, point.high)]
        fit_scale(axes, 'y', values, ends)
    places = sorted({x for _, x in axis['points'].values()})
    positive = [x for x in places if x > 0]
    if len(positive) > 1 and positive[-1] >= 4 * positive[0]:
        if places[0] > 0:
            axes.set_xscale('log', base=2)
        elif places[0] == 0:
            axes.set_xscale('symlog', base=2, linthresh=positive[0])
    axes.set_xticks(places, [f'{x:g}' for x in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=axis['label'], ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    _name_lines(axes, drawn)
    return figure


def _name_lines(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """Write the names of lines into a legend, or where they are many beside their ends."""
    names = [shorten_name(name) for name in lines]
    if len(lines) > MOST_COLORS:
        name_ends(axes, list(lines.values()), names)
    elif lines:
        draw_legend(axes, list(lines.values()), names, frameon=False, fontsize=8, handlelength=3.5)


def _plot_line(axes: Axes, number: int, points: list[tuple[float, Point]]) -> Line2D:
    color = COLORS[number % len(COLORS)]
    x, y, low, high = np.transpose(
        sorted((x, point.mean, point.low, point.high) for x, point in points)
    )
    # Dashes differ from line to line, so that two lines at the same place are both seen.
    bars = axes.errorbar(
        x,
        y,
        [y - low, high - y],
        color=color,
        linestyle=DASHES[number % len(DASHES)],
        marker='o',
        markersize=4,
        capsize=3,
        linewidth=1.5,
    )
    for place, point in points:
        seeds = point.seeds
        axes.plot([place] * len(seeds), seeds, 'x', color=color, alpha=0.7, markersize=4)
    return bars.lines[0]


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
    styles = {variant: style for variant, style in _line_styles(report).items() if variant in found}
    size = 7.2, height_for(len(styles), 4.0)
    figure = PlainFigure(figsize=size, dpi=DPI, layout='constrained')
    axes, means = figure.subplots(), {}
    for variant, style in styles.items():
        curve = found[variant]
        for points in curve.seeds.values():
            thin: dict[str, Any] = style | {'linewidth': 0.6, 'alpha': 0.35}
            axes.plot(*np.transpose(points), **thin)
        if curve.mean:
            [means[variant]] = axes.plot(*np.transpose(curve.mean), **style)
    if not higher_is_better(name):
        seeds = [points for curve in found.values() for points in curve.seeds.values()]
        fit_scale(axes, 'y', [value for points in seeds for _, value in points])
    axes.set(xlabel='step', ylabel=curve_name(name))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    names = [shorten_name(variant) for variant in means]
    if len(means) > MOST_COLORS:
        axes.margins(x=0.01)
        name_ends(axes, list(means.values()), names)
    elif means:
        handles = list(means.values())
        draw_legend(figure, handles, names, frameon=False, fontsize=7, loc='outside right upper')
    return figure


def _line_styles(report: Report) -> dict[str, dict[str, Any]]:
    """Return the style of the line of each variant that has a curve of any kind."""
    drawn = [
        variant
        for variant in report.experiment['variants']
        if any(variant in found for found in report.curves.values())
    ]
    references = report.tables[0].references
    styles: dict[str, dict[str, Any]] = {
        variant: {'color': BLACK, 'linestyle': DASHES[number % len(DASHES)], 'linewidth': 2.0}
        for number, variant in enumerate(references)
        if variant in drawn
    }
    for number, variant in enumerate(variant for variant in drawn if variant not in references):
        styles[variant] = line_style(number) | {'linewidth': 1.5}
    return styles


def shorten_name(name: str) -> str:
    """Write a name on one line, without its middle where it is long."""
    name, half = ' '.join(name.split()), LONGEST_NAME // 2
    name = ''.join(letter if letter.isprintable() else '\ufffd' for letter in name)
    return name if len(name) <= LONGEST_NAME else f'{name[:half]}…{name[1 - half :]}'

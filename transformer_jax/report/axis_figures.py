"""Figures along an axis: scores and times over what an experiment varies, or over lengths."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from transformer_jax.ablation.experiment import slug
from transformer_jax.display.figures import DPI, PlainFigure, draw_legend
from transformer_jax.display.lines import (
    COLORS,
    DASHES,
    MOST_COLORS,
    fit_scale,
    height_for,
    name_ends,
    shorten_name,
)
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report.metric_names import metric_name
from transformer_jax.report.tables import Report, Table


class Point(NamedTuple):
    """A score of a variant: its mean over seeds, the 95% interval, and each seed's value.

    `low` and `high` are the mean where there is no interval.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


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


def length_figures(report: Report) -> dict[str, tuple[str, Figure]]:
    """Draw the scores of each metric that is taken at several lengths, a line for each variant.

    Returns:
        as `axis_figures`.
    """
    groups: dict[tuple[str, ...], list[tuple[Mapping[str, Any], Table]]] = {}
    for metric, table in zip(report.experiment['metrics'], report.tables, strict=True):
        if metric.get('length'):
            whole = metric['name'], metric['split'], metric['checkpoint']
            groups.setdefault(whole, []).append((metric, table))
    drawn = {}
    for (name, split, _), members in groups.items():
        points, found = {}, {}
        for metric, table in members:
            for variant, point in _scores(table).items():
                points[f'{variant} at {metric["length"]}'] = variant, metric['length']
                found[f'{variant} at {metric["length"]}'] = point
        label = f'{METRICS[name].label} ({split})'
        axis = {'label': 'length in tokens', 'points': points}
        if len(members) > 1:
            figure = _axis_figure(axis, label, found, not METRICS[name].lower_is_better)
            drawn[f'by-length-{slug(f"{split} {name}")}'] = f'{label} over length', figure
    return drawn


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

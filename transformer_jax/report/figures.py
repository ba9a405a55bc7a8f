"""Figures for a paper: differences with their intervals, and learning curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from transformer_jax.ablation.experiment import slug
from transformer_jax.display.figures import DPI, FORMATS, PlainFigure, draw_legend, save_figure
from transformer_jax.display.lines import (
    BLACK,
    DASHES,
    MOST_COLORS,
    fit_scale,
    height_for,
    line_style,
    name_ends,
    shorten_name,
)
from transformer_jax.report.axis_figures import axis_figures, length_figures
from transformer_jax.report.metric_names import curve_name, higher_is_better, metric_name
from transformer_jax.report.tables import Report, Table, Verdict
from transformer_jax.report.traces import Curve

OF_VERDICT = {Verdict.BETTER: '#009e73', Verdict.WORSE: '#d55e00', Verdict.OPEN: '#6b7280'}
ROW_INCHES = 0.3


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
    for stem, (title, figure) in (axis_figures(report) | length_figures(report)).items():
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


def differences_figure(table: Table, name: str) -> Figure:
    """Draw a forest plot: a row for each variant, its reference's mean at zero, seeds as crosses.

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
        home = table.row(row.reference).summary.mean
        seeds = [value - home for value in row.values.values()]
        axes.plot(seeds, [place] * len(seeds), 'x', color=color, alpha=0.5, markersize=4)
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

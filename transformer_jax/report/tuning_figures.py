"""Figures of tuning: the scores over the values that were tried, one figure for each key."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from transformer_jax.ablation.experiment import slug
from transformer_jax.ablation.field_types import is_finite
from transformer_jax.display.figures import DPI, FORMATS, PlainFigure, draw_legend, save_figure
from transformer_jax.display.lines import (
    MOST_COLORS,
    fit_scale,
    height_for,
    line_style,
    name_ends,
    shorten_name,
)
from transformer_jax.report.metric_names import metric_name
from transformer_jax.report.tables import Report
from transformer_jax.report.tuning import find_choices


def write_tuning_figures(report: Report, out: epath.Path) -> dict[str, str]:
    """Write the figures of tuning as PNG, SVG and PDF.

    Returns:
        the name of each PNG file -> what it shows.
    """
    shown = {}
    for key, (title, figure) in tuning_figures(report.experiment).items():
        for suffix in FORMATS:
            save_figure(figure, out / f'tuning-{slug(key)}{suffix}')
        shown[f'tuning-{slug(key)}.png'] = title
    return shown


def tuning_figures(experiment: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    """Draw the scores of the tries over each key: {key: (what it shows, figure)}."""
    choices = find_choices(experiment)
    if not choices:
        return {}
    tune = experiment['tune']
    name = metric_name(tune['metric'])
    others = ', best over the other keys' if len(tune['values']) > 1 else ''
    return {
        key: (f'tuning: {name} over {key}{others}', _figure(key, name, tune, choices))
        for key in tune['values']
    }


def best_scores(
    choice: Mapping[str, Any], key: str, lower_is_better: bool
) -> list[tuple[Any, float]]:
    """Return (value of a key, the best score of the tries that have it); failed tries are none."""
    scores: dict[Any, list[float]] = {}
    for each in choice['tries']:
        if each['score'] is not None:
            scores.setdefault(each['values'][key], []).append(each['score'])
    best = min if lower_is_better else max
    return [(value, best(found)) for value, found in scores.items()]


def _figure(
    key: str, name: str, tune: Mapping[str, Any], choices: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Draw a line for each variant; a large ring marks what was chosen."""
    tried, lower_is_better = tune['values'][key], tune['metric']['lower_is_better']
    numeric = all(map(is_finite, tried))
    size = 5.4, height_for(len(choices), 3.6)
    figure = PlainFigure(figsize=size, dpi=DPI, layout='constrained')
    axes, drawn, scores = figure.subplots(), {}, []
    for number, (variant, choice) in enumerate(choices.items()):
        found = best_scores(choice, key, lower_is_better)
        places = [value if numeric else tried.index(value) for value, _ in found]
        points = np.array(sorted(zip(places, [score for _, score in found], strict=True)))
        style: dict[str, Any] = line_style(number)
        [drawn[variant]] = axes.plot(*points.T, marker='o', markersize=4, linewidth=1.5, **style)
        chosen = choice['chosen'][key]
        place = chosen if numeric else tried.index(chosen)
        axes.plot(
            place, choice['score'], 'o', color=style['color'], markersize=10, fillstyle='none'
        )
        scores += points[:, 1].tolist()
    if lower_is_better:
        fit_scale(axes, 'y', scores)
    _draw_values(axes, tried, numeric)
    axes.set(xlabel=f'{key} (ring: chosen)', ylabel=name)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    names, lines = [shorten_name(variant) for variant in drawn], list(drawn.values())
    if len(lines) > MOST_COLORS:
        name_ends(axes, lines, names)
    else:
        draw_legend(axes, lines, names, frameon=False, fontsize=8, handlelength=3.5)
    return figure


def _draw_values(axes: Any, tried: Sequence[Any], numeric: bool) -> None:
    """Make the x axis of the values that were tried."""
    if not numeric:
        axes.set_xticks(range(len(tried)), [shorten_name(str(value)) for value in tried])
        return
    positive = [value for value in tried if value > 0]
    if len(positive) > 1 and max(positive) >= 4 * min(positive):
        if min(tried) > 0:
            axes.set_xscale('log')
        elif min(tried) == 0:
            axes.set_xscale('symlog', linthresh=min(positive))
    axes.set_xticks(sorted(tried), [f'{value:g}' for value in sorted(tried)])
    axes.minorticks_off()

"""Lines of figures: their colors, scales that fit their values, and names beside their ends."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, SymmetricalLogLocator

# Okabe and Ito (2008), which color-blind readers can tell apart; no pair is red and green. A
# reference is black, so that a figure has eight colors at most. page.js has the same.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c')
BLACK = '#000000'
LONGEST_NAME = 48  # letters of a variant's name; of longer ones the middle is left out
DASHES = ('-', '--', ':', '-.')
# With more lines than this each has its name at its end: no reader finds it by a color.
MOST_COLORS = 8
# A logarithmic axis is for positive values of which the largest is so many times the smallest.
SPAN = 20
NAME_INCHES = 0.135  # the height of a name at NAME_POINTS
NAME_POINTS = 7


def line_style(number: int) -> dict[str, str]:
    """Return color and dash of a line; the first 28 differ."""
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    return {'color': COLORS[number % len(COLORS)], 'linestyle': dash}


def spans_decades(values: Iterable[float]) -> bool:
    """Tell whether values are positive and the largest is SPAN times the smallest or more."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) >= SPAN * min(finite)


def fit_scale(
    axes: Axes, direction: Literal['x', 'y'], values: Sequence[float], ends: Sequence[float] = ()
) -> None:
    """Make an axis logarithmic where its values span decades.

    Args:
        axes: whose axis it is.
        direction: which axis.
        values: all that is drawn, without the ends of intervals; those that are not finite do not
            count.
        ends: of intervals. Where one is not positive, the axis is linear below the smallest value,
            so that the whole interval is seen.
    """
    if not spans_decades(values):
        return
    smallest = min(value for value in values if math.isfinite(value))
    every = [end for end in (*values, *ends) if math.isfinite(end)]
    # One, two and five of each decade are marked where there are few decades.
    marks = (1, 2, 5) if max(every) < 1e3 * smallest else (1,)
    set_scale = getattr(axes, f'set_{direction}scale')
    axis = getattr(axes, f'{direction}axis')
    if min(every) > 0:
        set_scale('log')
        axis.set_major_locator(LogLocator(subs=marks, numticks=12))
    else:
        set_scale('symlog', linthresh=smallest, linscale=0.3)
        axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=smallest, subs=marks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'.replace('-', '−')))


def height_for(names: int, inches: float) -> float:
    """Return the height of a figure in inches; more than MOST_COLORS names need room."""
    return inches if names <= MOST_COLORS else max(inches, 0.9 + NAME_INCHES * names)


def name_ends(axes: Axes, lines: Sequence[Line2D], names: Sequence[str]) -> None:
    """Write the name of each line beside its last point, in the line's color.

    Names that would overlap are moved apart, and a thin line leads to each. The limits of the axes
    must be final.
    """
    to_axes = axes.transScale + axes.transLimits
    found = []
    for line, name in zip(lines, names, strict=True):
        points = [(x, y) for x, y in np.asarray(line.get_xydata()) if math.isfinite(y)]
        if points:
            found.append((float(to_axes.transform(points[-1])[1]), points[-1], line, name))
    found.sort(key=lambda end: end[0])
    figure = axes.get_figure(root=True)
    height = figure.get_size_inches()[1] if figure else 4.0
    places = _spread([place for place, *_ in found], NAME_INCHES / (height - 0.8))
    for place, (_, point, line, name) in zip(places, found, strict=True):
        axes.annotate(
            name,
            point,
            xytext=(1.05, place),
            textcoords='axes fraction',
            color=line.get_color(),
            fontsize=NAME_POINTS,
            va='center',
            annotation_clip=False,
            arrowprops={
                'arrowstyle': '-',
                'color': line.get_color(),
                'linewidth': 0.5,
                'relpos': (0, 0.5),  # the line leads to the middle of the name's left edge
                'shrinkA': 1,
            },
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart, to `gap` or more; none is above 1 where there is room."""
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    if moved:
        moved[-1] = min(moved[-1], 1.0)
    for index in reversed(range(len(moved) - 1)):
        moved[index] = min(moved[index], moved[index + 1] - gap)
    return moved


def shorten_name(name: str) -> str:
    """Write a name on one line, without its middle where it is long."""
    name, half = ' '.join(name.split()), LONGEST_NAME // 2
    name = ''.join(letter if letter.isprintable() else '\ufffd' for letter in name)
    return name if len(name) <= LONGEST_NAME else f'{name[:half]}…{name[1 - half :]}'

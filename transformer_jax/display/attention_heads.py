"""Heat maps of attention weights: every layer and head, with the tokens as labels."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.display.figures import DPI, InlineFigure, save_figure
from transformer_jax.errors import ConfigError

# On a figure with a longer side a screen shows the heads but no readable labels: each layer is then
# drawn as a figure of its own as well.
READABLE_INCHES = 40
LARGEST_PIXELS = 10_000  # of a side; a larger figure gets fewer dots per inch
FONT_POINTS = 7
LETTER_INCHES = 0.062  # the width of a letter at that font size
CELL_INCHES = 0.13  # the height of a line at that font size
PANEL_INCHES = 1.3  # short sentences get larger cells instead of a smaller panel
LABEL_LETTERS = 16  # longer tokens are cut
LINE_INCHES = 0.2
GAP_INCHES = 0.15
LEGEND_INCHES = 7.5
IMAGE = {'cmap': 'Blues', 'vmin': 0, 'vmax': 1, 'interpolation': 'nearest', 'aspect': 'auto'}


class Panel(NamedTuple):
    """One head of one layer: weights [rows, columns], and the labels of rows and columns."""

    title: str
    weights: np.ndarray
    rows: list[str]
    columns: list[str]


def draw_attention(
    weights: dict[str, np.ndarray],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: epath.PathLike,
) -> list[epath.Path]:
    """Draw every layer (down) and head (across) of every stack as a heat map with its tokens.

    One figure at `path` holds everything. Where that is larger than a screen can show readably,
    each layer gets a figure of its own too, its heads side by side: next to `heads.png` are then
    `heads-encoder-1.png`, `heads-decoder-1.png`, `heads-cross-1.png`, …

    Args:
        weights: stack -> [L, N, T, S], see `attention_maps.attention_weights`.
        source_tokens: S labels.
        target_tokens: T labels, those of the targets.
        path: of the figure; PNG, SVG or PDF by its suffix.

    Returns:
        the files written, `path` first.

    Raises:
        ConfigError: the suffix is none of `figures.FORMATS`.
    """
    path = epath.Path(path)
    labels = _axis_labels(source_tokens, target_tokens)
    layers = {
        (stack, number): [
            Panel(f'{stack} {number} · head {head}', weights_TS, *labels[stack])
            for head, weights_TS in enumerate(weights_NTS, 1)
        ]
        for stack, weights_LNTS in weights.items()
        for number, weights_NTS in enumerate(weights_LNTS, 1)
    }
    figure = _draw_grid(list(layers.values()))
    files = [save_figure(figure, path)]
    if max(figure.get_size_inches()) > READABLE_INCHES:
        for (stack, number), panels in layers.items():
            layer_path = path.parent / f'{path.stem}-{stack}-{number}{path.suffix}'
            files.append(save_figure(_draw_grid(_near_square(panels)), layer_path))
    return files


def attention_figure(
    weights: dict[str, np.ndarray],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    layer: int | None = None,
    head: int | None = None,
) -> Figure:
    """Draw some or all heads as a figure for a notebook: layers down, heads across.

    Layers and heads count from 0 here and in the titles, as in the arrays; in the files of
    `draw_attention` they count from 1.

    Args:
        weights: stack -> [L, N, T, S].
        source_tokens: S labels.
        target_tokens: T labels, those of the targets.
        layer: draw only this one of each stack.
        head: draw only this one of each layer.

    Raises:
        ConfigError: there is no such layer or head.
    """
    labels = _axis_labels(source_tokens, target_tokens)
    rows = [
        [
            Panel(f'{stack} layer {i} · head {n}', weights_LNTS[i, n], *labels[stack])
            for n in _chosen(f'{stack} head', head, weights_LNTS.shape[1])
        ]
        for stack, weights_LNTS in weights.items()
        for i in _chosen(f'{stack} layer', layer, weights_LNTS.shape[0])
    ]
    return _draw_grid(rows)


def _chosen(name: str, index: int | None, count: int) -> Sequence[int]:
    """Return the indices to draw: all, or the one that was asked for."""
    if index is None:
        return range(count)
    if not 0 <= index < count:
        raise ConfigError(f'there is no {name} {index}: it has {count}, counted from 0')
    return [index]


def _axis_labels(
    source_tokens: Sequence[str], target_tokens: Sequence[str]
) -> dict[str, tuple[list[str], list[str]]]:
    """Return the labels of rows and columns of each stack."""
    source, target = (list(map(_label, tokens)) for tokens in (source_tokens, target_tokens))
    return {
        'encoder': (source, source),
        'decoder': (target, ['<s>', *target[:-1]]),
        'cross': (target, source),
    }


def _near_square(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Divide panels into equal rows, of the smallest length that is at least √(panels)."""
    across = next(
        length
        for length in range(math.isqrt(len(panels) - 1) + 1, len(panels) + 1)
        if len(panels) % length == 0
    )
    return [panels[start : start + across] for start in range(0, len(panels), across)]


def _draw_grid(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Draw rows of panels, all cells equal, in a figure that gives each label a line of its own.

    The figure has a single system of axes, in inches from the top left corner: axes and ticks for
    every panel take ten times as long to draw.
    """
    panels = [panel for row in rows for panel in row]
    left = _label_inches(label for panel in panels for label in panel.rows)
    tops = [
        _label_inches(label for panel in row for label in panel.columns) + LINE_INCHES
        for row in rows
    ]
    cell = max(CELL_INCHES, PANEL_INCHES / max(max(panel.weights.shape) for panel in panels))
    width = max(
        LEGEND_INCHES,
        *(sum(left + cell * len(panel.columns) + GAP_INCHES for panel in row) for row in rows),
    )
    height = sum(tops) + sum(cell * len(row[0].rows) + GAP_INCHES for row in rows) + 2 * LINE_INCHES
    dpi = min(DPI, LARGEST_PIXELS / max(width, height))
    figure = InlineFigure(figsize=(width, height), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _draw_legend(axes)
    y = 2 * LINE_INCHES
    for top, row in zip(tops, rows, strict=True):
        for index, panel in enumerate(row):
            x = left + index * (left + cell * len(panel.columns) + GAP_INCHES)
            _draw_panel(axes, panel, x, y + top, cell)
        y += top + cell * len(row[0].rows) + GAP_INCHES
    return figure


def _label_inches(labels: Iterable[str]) -> float:
    """The room that the longest of some labels takes, in inches."""
    return LETTER_INCHES * (max(map(len, labels)) + 2)


def _draw_panel(axes: Axes, panel: Panel, x: float, y: float, cell: float) -> None:
    """Draw a panel whose first cell has its upper left corner at (x, y), in inches."""
    T, S = panel.weights.shape
    x_S, y_T = x + cell * np.arange(S + 1), y + cell * np.arange(T + 1)
    axes.imshow(panel.weights, extent=(x, x_S[-1], y_T[-1], y), **IMAGE)
    axes.hlines(y_T, x, x_S[-1], color='0.85', linewidth=0.4)
    axes.vlines(x_S, y, y_T[-1], color='0.85', linewidth=0.4)
    style: dict[str, Any] = {'fontsize': FONT_POINTS}
    for label, middle in zip(panel.rows, y_T[:-1] + cell / 2, strict=True):
        axes.text(x - LETTER_INCHES / 2, middle, label, ha='right', va='center_baseline', **style)
    for label, middle in zip(panel.columns, x_S[:-1] + cell / 2, strict=True):
        axes.text(
            middle, y - LETTER_INCHES / 2, label, ha='center', va='bottom', rotation=90, **style
        )
    above = y - _label_inches(panel.columns)
    axes.text(
        (x + x_S[-1]) / 2,
        above,
        panel.title,
        ha='center',
        fontsize=FONT_POINTS + 1,
        fontweight='bold',
    )


def _draw_legend(axes: Axes) -> None:
    """Explain colors, rows and columns, in the top left corner."""
    axes.imshow(np.linspace(0, 1, 100)[None], extent=(0.2, 1.4, 0.25, 0.15), **IMAGE)
    key = (
        'row: the token that is read or written    '
        'column: where the head looks (in the decoder, its inputs so far)'
    )
    for x, text in ((0.1, '0'), (1.45, '1    ' + key)):
        axes.text(x, 0.2, text, va='center_baseline', fontsize=FONT_POINTS)


def _label(token: str) -> str:
    """A token as a label; sentencepiece's '▁' would read as a tick of the axis."""
    token = token.replace('▁', '·')
    return token if len(token) <= LABEL_LETTERS else token[: LABEL_LETTERS - 1] + '…'

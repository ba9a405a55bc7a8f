"""Pictures: where every attention head looks, and learning curves. Matplotlib without pyplot and
its global state.
"""

import collections
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transformer_jax.errors import ConfigError, DataError

FORMATS = ('.png', '.svg', '.pdf')
DPI = 110
# A picture with a longer side shows heads, but no words, on a screen: its layers are then drawn one
# by one as well.
READABLE_INCHES = 40
LARGEST_PIXELS = 10_000  # of a side; what is larger is drawn with fewer dots to the inch
FONT_POINTS = 7
LETTER_INCHES = 0.062  # the width of a letter of that size
CELL_INCHES = 0.13  # a line of that size
PANEL_INCHES = 1.3  # short sentences get larger cells instead of a smaller panel
LABEL_LETTERS = 16  # longer tokens are cut
LINE_INCHES = 0.2
GAP_INCHES = 0.15
LEGEND_INCHES = 7.5
IMAGE = {'cmap': 'Blues', 'vmin': 0, 'vmax': 1, 'interpolation': 'nearest', 'aspect': 'auto'}


class Panel(NamedTuple):
    """One head of one layer: its weights [rows, columns], and the labels of both."""

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
    """Draws every layer (down) and head (across) of every stack as a heat map with its tokens.

    Everything is in `path`. Where that is more than a screen can show readably, each layer is also
    drawn by itself, its heads side by side: `heads.png` is joined by `heads-encoder-1.png`,
    `heads-decoder-1.png`, `heads-cross-1.png`, …

    Args:
        weights: see `attention_weights`.
        source_tokens: S labels.
        target_tokens: T labels, those of the targets.
        path: PNG, SVG or PDF by its suffix.

    Returns:
        the files written, `path` first.

    Raises:
        ConfigError: another suffix.
    """
    path = epath.Path(path)
    source, target = (list(map(_label, tokens)) for tokens in (source_tokens, target_tokens))
    labels = {
        'encoder': (source, source),
        'decoder': (target, ['<s>', *target[:-1]]),
        'cross': (target, source),
    }
    layers = {
        (stack, number): [
            Panel(f'{stack} {number} · head {head}', weights_TS, *labels[stack])
            for head, weights_TS in enumerate(weights_NTS, 1)
        ]
        for stack, weights_LNTS in weights.items()
        for number, weights_NTS in enumerate(weights_LNTS, 1)
    }
    figure = _grid(list(layers.values()))
    files = [save_figure(figure, path)]
    if max(figure.get_size_inches()) > READABLE_INCHES:
        for (stack, number), panels in layers.items():
            across = next(
                n
                for n in range(math.isqrt(len(panels) - 1) + 1, len(panels) + 1)
                if len(panels) % n == 0
            )
            rows = [panels[start : start + across] for start in range(0, len(panels), across)]
            files.append(
                save_figure(_grid(rows), path.parent / f'{path.stem}-{stack}-{number}{path.suffix}')
            )
    return files


def curves(metrics_path: epath.PathLike, path: epath.PathLike) -> epath.Path:
    """Draws a run's metrics.jsonl: loss of training and validation, then validation perplexity and
    BLEU where present.

    Values that are not finite leave a gap.

    Raises:
        ConfigError: a suffix that is no picture's.
        DataError: there is nothing to draw.
    """
    series = collections.defaultdict(lambda: ([], []))
    for line in epath.Path(metrics_path).read_text().splitlines():
        event = json.loads(line)
        for name in ('loss', 'perplexity', 'bleu'):
            if name in event:
                steps, values = series[name, event['split']]
                steps.append(event['step'])
                values.append(float(event[name]))
    names = [
        name
        for name in ('loss', 'perplexity', 'bleu')
        if (name, 'validation') in series or (name, 'train') in series
    ]
    if not names:
        raise DataError(f'{metrics_path} has no losses yet')
    figure = Figure(figsize=(4.5 * len(names), 3.2), dpi=DPI, layout='constrained')
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, colour in (('train', 'tab:gray'), ('validation', 'tab:blue')):
            if (name, split) in series:
                marker = 'o' if split == 'validation' else ''
                axes.plot(
                    *series[name, split],
                    color=colour,
                    label=split,
                    marker=marker,
                    markersize=3,
                    linewidth=1.2,
                )
        axes.set(
            title={'loss': 'loss (nats per token)', 'bleu': 'BLEU'}.get(name, name), xlabel='step'
        )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))


def _grid(rows: Sequence[Sequence[Panel]]) -> Figure:
    """A figure of rows of panels, all cells equal, sized so that each label has a line of its own.

    It is a single system of axes in inches from the top left corner: axes and ticks for every panel
    take ten times as long to draw.
    """
    panels = [panel for row in rows for panel in row]
    left = _room(label for panel in panels for label in panel.rows)
    tops = [_room(label for panel in row for label in panel.columns) + LINE_INCHES for row in rows]
    cell = max(CELL_INCHES, PANEL_INCHES / max(max(panel.weights.shape) for panel in panels))
    width = max(
        LEGEND_INCHES,
        *(sum(left + cell * len(panel.columns) + GAP_INCHES for panel in row) for row in rows),
    )
    height = sum(tops) + sum(cell * len(row[0].rows) + GAP_INCHES for row in rows) + 2 * LINE_INCHES
    figure = Figure(figsize=(width, height), dpi=min(DPI, LARGEST_PIXELS / max(width, height)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _legend(axes)
    y = 2 * LINE_INCHES
    for top, row in zip(tops, rows, strict=True):
        for index, panel in enumerate(row):
            _heat_map(
                axes,
                panel,
                left + index * (left + cell * len(panel.columns) + GAP_INCHES),
                y + top,
                cell,
            )
        y += top + cell * len(row[0].rows) + GAP_INCHES
    return figure


def _room(labels: Iterable[str]) -> float:
    return LETTER_INCHES * (max(map(len, labels)) + 2)


def _heat_map(axes: Axes, panel: Panel, x: float, y: float, cell: float) -> None:
    """A panel whose first cell has its upper left corner at (x, y)."""
    T, S = panel.weights.shape
    x_S, y_T = x + cell * np.arange(S + 1), y + cell * np.arange(T + 1)
    axes.imshow(panel.weights, extent=(x, x_S[-1], y_T[-1], y), **IMAGE)
    axes.hlines(y_T, x, x_S[-1], color='0.85', linewidth=0.4)
    axes.vlines(x_S, y, y_T[-1], color='0.85', linewidth=0.4)
    # Without mathematics: a token may hold a dollar sign.
    style = {'fontsize': FONT_POINTS, 'parse_math': False}
    for label, middle in zip(panel.rows, y_T[:-1] + cell / 2, strict=True):
        axes.text(x - LETTER_INCHES / 2, middle, label, ha='right', va='center_baseline', **style)
    for label, middle in zip(panel.columns, x_S[:-1] + cell / 2, strict=True):
        axes.text(
            middle, y - LETTER_INCHES / 2, label, ha='center', va='bottom', rotation=90, **style
        )
    above = y - _room(panel.columns)
    axes.text(
        (x + x_S[-1]) / 2,
        above,
        panel.title,
        ha='center',
        fontsize=FONT_POINTS + 1,
        fontweight='bold',
    )


def _legend(axes: Axes) -> None:
    """What colours, rows and columns are, in the top left corner."""
    axes.imshow(np.linspace(0, 1, 100)[None], extent=(0.2, 1.4, 0.25, 0.15), **IMAGE)
    key = 'row: the token that is read or written    column: where the head looks (in the decoder, its inputs so far)'
    for x, text in ((0.1, '0'), (1.45, '1    ' + key)):
        axes.text(x, 0.2, text, va='center_baseline', fontsize=FONT_POINTS)


def _label(token: str) -> str:
    # Sentencepiece's mark of a word's start reads as a tick of the axis.
    token = token.replace('▁', '·')
    return token if len(token) <= LABEL_LETTERS else token[: LABEL_LETTERS - 1] + '…'


def check_format(path: epath.Path) -> None:
    if path.suffix not in FORMATS:
        raise ConfigError(f'{path}: pictures are {", ".join(FORMATS)}, by the suffix of the file')


def save_figure(figure: Figure, path: epath.Path) -> epath.Path:
    """Writes a figure in the format that the suffix names; returns the path.

    Raises:
        ConfigError: a suffix that is no picture's.
    """
    check_format(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())
    return path

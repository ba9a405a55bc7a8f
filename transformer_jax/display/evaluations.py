"""Results of evaluations as text for a terminal, and as a figure over lengths."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
import rich.text
from etils import epath

from transformer_jax.display.figures import PlainFigure, save_figure
from transformer_jax.display.lines import fit_scale

# Keys of a result that stand in the title, in a row or table of their own, or for programs alone.
ELSEWHERE = (
    'direction',
    'task',
    'split',
    'checkpoint',
    'steps',
    'decode',
    'classes',
    'confusion',
    'split_sha256',
)


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Format an object of evaluations.json as a table; classes get their confusion matrix."""
    subject = result['direction' if 'direction' in result else 'task']
    title = (
        f'{subject} {result["split"]}, checkpoint {result["checkpoint"]} '
        f'(step {", ".join(map(str, result["steps"]))})'
    )
    table = rich.table.Table(title=rich.text.Text(title, 'table.title'))
    table.add_column('metric')
    table.add_column('value', overflow='fold')
    for name, value in result.items():
        if name not in ELSEWHERE:
            table.add_row(name, rich.text.Text(_readable(value)))
    if 'direction' in result:
        settings = ', '.join(f'{key}={value}' for key, value in result['decode'].items())
        table.add_row('decode', rich.text.Text(settings))
    tables = [table]
    if 'confusion' in result:
        tables.append(_confusion_table(result['classes'], result['confusion']))
    text = io.StringIO()
    rich.console.Console(file=text, width=110).print(*tables)
    return text.getvalue().rstrip()


def _confusion_table(
    classes: Sequence[str], confusion: Sequence[Sequence[int]]
) -> rich.table.Table:
    names = [rich.text.Text(name) for name in classes]
    table = rich.table.Table('class', title='class (down), taken for (across)')
    for name in names:
        table.add_column(name)
    for name, counts in zip(names, confusion, strict=True):
        table.add_row(name, *map(str, counts))
    return table


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return ' … '.join(map(_readable, value))
    if isinstance(value, float):
        return f'{value:,.0f}' if value.is_integer() and abs(value) > 1 else f'{value:.4f}'
    return str(value)


def lengths_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the results of `by_length` as aligned text, a line for each length."""
    columns = ('length', 'examples', 'loss', 'perplexity', 'accuracy', 'exact_match')
    names = [name for name in columns if name in rows[0]]
    lines = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: float) -> str:
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:.4f}' if math.isfinite(value) else str(value)


def draw_lengths(
    rows: Sequence[Mapping[str, Any]], trained_to: int, path: epath.PathLike
) -> epath.Path:
    """Draw the results of `by_length`, a panel for each metric.

    Args:
        rows: an object for each length.
        trained_to: the longest length of training, in tokens; a dashed line marks it.
        path: of the picture; its suffix says the format.

    Returns:
        the path.

    Raises:
        ConfigError: the suffix is not that of a picture.
    """
    names = [name for name in ('loss', 'accuracy', 'exact_match') if name in rows[0]]
    lengths = [row['length'] for row in rows]
    figure = PlainFigure(figsize=(4.5 * len(names), 3.2), dpi=110, layout='constrained')
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.plot(lengths, [row[name] for row in rows], marker='o', markersize=3)
        if f'{name}_interval' in rows[0]:
            low, high = zip(*(row[f'{name}_interval'] for row in rows), strict=True)
            axes.fill_between(lengths, low, high, alpha=0.2)
        axes.axvline(trained_to, color='0.6', linestyle='--', linewidth=1)
        axes.set(
            title=name.replace('_', ' '),
            xlabel='length in tokens (dashed: the longest of training)',
        )
        if name == 'loss':
            fit_scale(axes, 'y', [row[name] for row in rows])
        fit_scale(axes, 'x', lengths)
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))

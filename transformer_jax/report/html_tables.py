"""Tables of report.html."""

import html
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_jax.report import sentences
from transformer_jax.report.columns import VERDICTS, Column, cell, table_columns
from transformer_jax.report.tables import Table, VariantResult

PLOT_WIDTH, PLOT_HEIGHT = 90, 18  # pixels of the plot of a difference


def escape(text: Any) -> str:
    """Escape text, between tags and in attributes."""
    return html.escape(str(text), quote=True)


def results_table(table: Table) -> str:
    """Write a table of results with its heading and notes."""
    columns = table_columns(table, with_plot=True)
    groups = [
        (name, len(list(group)))
        for name, group in itertools.groupby(columns, key=lambda column: column.group)
    ]
    starts = {sum(count for _, count in groups[:number]) for number in range(1, len(groups))}
    classes = [
        _column_class(column, starts_group=number in starts)
        for number, column in enumerate(columns)
    ]
    over = ''.join(
        f'<th colspan="{count}" class="{"starts" if number else ""}">{escape(name)}</th>'
        for number, (name, count) in enumerate(groups)
    )
    heads = ''.join(
        f'<th aria-sort="none" class="{kind}" title="{escape(column.meaning)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column, kind in zip(columns, classes, strict=True)
    )
    rows = ''
    for row in table.rows:
        cells = ''.join(
            _write_cell(table, row, column, kind)
            for column, kind in zip(columns, classes, strict=True)
        )
        rows += f'<tr class="{row.verdict}">{cells}</tr>\n'
    notes = ''.join(f'<li>{escape(note)}</li>' for note in sentences.notes(table))
    return (
        f'<h3>{escape(table.label)} <span class="faint">({sentences.direction(table)})</span></h3>'
        '\n<div class="scroll">'
        f'<table class="sortable"><thead><tr class="groups">{over}</tr><tr>{heads}</tr></thead>\n'
        f'<tbody>{rows}</tbody></table></div>\n<ul class="note">{notes}</ul>\n'
    )


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of texts, which are escaped here."""
    titles = ''.join(
        f'<th class="text" aria-sort="none"><button type="button">{escape(head)}</button></th>'
        for head in heads
    )
    cells = [
        [f'<td class="text" data-value="{escape(cell)}">{escape(cell)}</td>' for cell in row]
        for row in rows
    ]
    lines = ''.join(f'<tr>{"".join(row)}</tr>\n' for row in cells)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{titles}</tr></thead>\n'
        f'<tbody>{lines}</tbody></table></div>'
    )


def _column_class(column: Column, starts_group: bool) -> str:
    names = [column.key.partition(' ')[0]]
    if column.text:
        names.append('text')
    if starts_group:
        names.append('starts')
    return ' '.join(names)


def _write_cell(table: Table, row: VariantResult, column: Column, kind: str) -> str:
    found = cell(table, row, column)
    content = escape(found.text)
    if column.key == 'drawn':
        content = _difference_plot(row, _reach(table))
    elif column.key == 'verdict':
        mark, _ = VERDICTS[row.verdict]
        content = f'<span class="chip {row.verdict}">{mark} {content}</span>'
    content += ''.join(f'<small>{escape(remark)}</small>' for remark in found.remarks)
    value = '' if found.value is None else f' data-value="{escape(found.value)}"'
    return f'<td class="{kind}"{value}>{content}</td>'


def _reach(table: Table) -> float:
    """Half of the axis of differences, which is symmetric about zero."""
    ends = [abs(end) for _, found in table.differences for end in (found.low, found.high)]
    return max(ends, default=0) or 1.0


def _difference_plot(row: VariantResult, reach: float) -> str:
    """Draw the difference and its interval about zero as SVG."""
    found = row.difference
    if found is None:
        return ''
    low, middle, high = (
        PLOT_WIDTH * (0.5 + 0.46 * value / reach) for value in (found.low, found.value, found.high)
    )
    center, y = PLOT_WIDTH / 2, PLOT_HEIGHT / 2
    return (
        f'<svg class="difference {row.verdict}" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" '
        'aria-hidden="true">'
        f'<line class="axis" x1="{center}" x2="{center}" y1="0" y2="{PLOT_HEIGHT}"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{middle:.1f}" cy="{y}" r="3.5"/></svg>'
    )

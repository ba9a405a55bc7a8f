"""Short tables of results in Markdown, as a README and a results page show them.

A table has the variants with their means, differences and verdicts. For an experiment along an axis
with several lines it has a row for each line and a column for each point instead.
"""

from collections.abc import Mapping
from typing import Any

from transformer_jax.report import sentences
from transformer_jax.report.claim_tables import claim_lines
from transformer_jax.report.columns import VERDICTS, Column, cell, table_columns
from transformer_jax.report.markdown import code, escape, grid, join_remarks
from transformer_jax.report.tables import Report, Table, VariantResult, Verdict
from transformer_jax.report.tuning import tuning_notes

TITLES = {
    'variant': 'variant',
    'n': 'seeds',
    'mean': 'mean ± sd',
    'verdict': 'verdict',
}
SHOWN = (*TITLES, 'difference')
MARKED = (Verdict.BETTER, Verdict.WORSE, Verdict.OPEN)


def metric_heading(table: Table) -> str:
    """Write the line above a table: the metric and its direction."""
    return f'**{escape(table.label)}** ({sentences.direction(table)}):'


def short_table(report: Report, table: Table) -> str:
    """Write the table of one metric."""
    axis = report.experiment['axis']
    if axis and len(_lines(axis)) > 1:
        return f'{_axis_table(table, axis)}\n\n{_axis_legend(table, axis)}'
    columns = [
        column
        for column in table_columns(table)
        if column.key in SHOWN or column.key.startswith('paper')
    ]
    heads = [escape(TITLES.get(column.key, column.title)) for column in columns]
    rows = [[_write_cell(table, row, column) for column in columns] for row in table.rows]
    return grid(heads, rows, [column.text for column in columns])


def missing_runs(report: Report) -> str:
    """Say how many runs are missing, which and why; '' if none is."""
    if not report.missing:
        return ''
    gaps = '; '.join(
        f'{variants}, seeds {seeds}: {why}'
        for variants, seeds, why in sentences.missing_rows(report)
    )
    return escape(f'{sentences.missing_runs(report)} {gaps}')


def _write_cell(table: Table, row: VariantResult, column: Column) -> str:
    found = cell(table, row, column)
    if column.key == 'variant':
        return code(found.text)
    if column.key == 'mean':
        return escape(found.text)
    if column.key == 'verdict':
        same = f' (same config and runs as {row.same_as})' if row.same_as else ''
        return escape(f'{VERDICTS[row.verdict][0]} {found.text}{same}')
    if column.key == 'difference':
        return escape(' '.join([found.text, *found.intervals]))
    return escape(join_remarks(found))


def _lines(axis: Mapping[str, Any]) -> dict[str, dict[float, str]]:
    """Return line -> x -> variant of an axis."""
    lines: dict[str, dict[float, str]] = {}
    for variant, (line, x) in axis['points'].items():
        lines.setdefault(line, {})[x] = variant
    return lines


def _axis_table(table: Table, axis: Mapping[str, Any]) -> str:
    places = sorted({x for _, x in axis['points'].values()})
    rows = []
    for line, variants in _lines(axis).items():
        found = [variants.get(x) for x in places]
        cells = ['' if name is None else _point(table, table.row(name)) for name in found]
        rows.append([code(line), *map(escape, cells)])
    heads = [escape(axis['label']), *(f'{x:g}' for x in places)]
    return grid(heads, rows, [True] + [False] * len(places))


def _point(table: Table, row: VariantResult) -> str:
    """Write mean ± sd, the mark of a tested difference, seeds if some are missing, and papers."""
    columns = {column.key: column for column in table_columns(table)}
    parts = [cell(table, row, columns['mean']).text]
    if row.verdict in MARKED:
        parts.append(VERDICTS[row.verdict][0])
    if len(row.values) < row.planned:
        parts.append(f'({cell(table, row, columns["n"]).text} seeds)')
    for number, paper in enumerate(table.papers):
        if row.variant in paper.values:
            parts.append(f'(paper {cell(table, row, columns[f"paper {number}"]).text})')
    return ' '.join(parts)


def _axis_legend(table: Table, axis: Mapping[str, Any]) -> str:
    """Explain what the cells of an axis table hold."""
    planned = table.rows[0].planned
    parts = [f'Mean ± sd over {planned} seeds' if planned > 1 else 'One seed']
    lines = {axis['points'][name][0] for name in table.references if name in axis['points']}
    home = code(lines.pop()) if len(lines) == 1 else escape(table.reference)
    if any(row.verdict in MARKED for row in table.rows):
        words = ', '.join(f'{VERDICTS[v][0]} {VERDICTS[v][1]}' for v in MARKED)
        parts.append(f'against {home} at the same point: {words}')
    parts += [f'paper: {escape(paper.name)}' for paper in table.papers]
    return '; '.join(parts) + '.'


def short_tables(report: Report) -> str:
    """Write claims, the tables of all metrics, how variants were tuned, and what is missing."""
    parts = [claim_lines(report)]
    for table in report.tables:
        parts += [metric_heading(table), short_table(report, table)]
    tuning = escape(' '.join(tuning_notes(report.experiment)))
    return '\n\n'.join(filter(None, [*parts, tuning, missing_runs(report)]))

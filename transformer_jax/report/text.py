"""report.md, and the same tables as LaTeX and as CSV."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_jax.report import words
from transformer_jax.report.analysis import Paper, Report, Table, VariantResult

LATEX = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    **{letter: f'\\{letter}' for letter in '&%$#_{}'},
    # What pdflatex does not take as it is.
    '−': '$-$',
    '–': '--',
    '±': r'$\pm$',
    '≈': r'$\approx$',
    '√': r'$\surd$',
    '×': r'$\times$',
    '≤': r'$\le$',
    '≥': r'$\ge$',
    '→': r'$\to$',
    'τ': r'$\tau$',
    '²': '$^2$',
    '·': r'$\cdot$',
    '…': r'\dots{}',
    '∞': r'$\infty$',
}
IN_LATEX = ('variant', 'n', 'mean', 'difference', 'p', 'verdict', 'paper', 'params', 'step')
SUMMARY = ('mean', 'sd', 'low', 'high')
COMPARISON = ('difference', 'low', 'high', 'test', 'p', 'adjusted', 'verdict', 'detectable')
RESAMPLED = ('difference', 'low', 'high', 'p', 'adjusted')
COSTS = ('params', 'non_embedding_params', 'flops', 'step_seconds', 'memory_bytes', 'wall_seconds')


# --- Markdown -------------------------------------------------------------------------------------


def markdown(report: Report, figures: Iterable[str] = ()) -> str:
    """report.md; `figures` are the names of the pictures beside it."""
    parts = [f'# {escape(report.experiment["claim"])}', escape(' · '.join(words.subtitle(report)))]
    for table in report.tables:
        parts += [
            f'## {escape(table.label)}',
            'Less is better.' if table.lower_is_better else 'More is better.',
            markdown_table(table),
            _list(words.notes(table)),
        ]
    if report.missing:
        rows = [
            [code(variants), seeds, escape(why)]
            for variants, seeds, why in words.missing_rows(report)
        ]
        parts += [
            '## Missing runs',
            escape(words.missing(report)),
            grid(('variant', 'seeds', 'why'), rows),
        ]
    if figures := list(figures):
        parts += ['## Figures', '\n'.join(f'![{escape(name)}]({name})' for name in figures)]
    keys, rows = words.differences(report)
    if keys:
        cells = [[code(name), *map(code, values)] for name, *values in rows]
        parts += [
            '## What differs between the variants',
            grid(('variant', *map(code, keys)), cells),
        ]
    parts += [
        '## How it was run',
        f'```\n{words.command(report.experiment)}\n```',
        _list(f'{name}: {value}' for name, value in words.provenance(report)),
    ]
    return '\n\n'.join(filter(None, parts)) + '\n'


def markdown_table(table: Table) -> str:
    """The main table of a metric."""
    columns = words.columns(table)
    rows = [
        [_markdown_cell(words.cell(table, row, column), column, row) for column in columns]
        for row in table.rows
    ]
    return grid(
        [escape(column.title) for column in columns], rows, [column.text for column in columns]
    )


def _markdown_cell(cell: words.Cell, column: words.Column, row: VariantResult) -> str:
    text = code(cell.text) if column.key == 'variant' else escape(joined(cell))
    return f'{words.MARKS[row.verdict]} {text}' if column.key == 'verdict' else text


def joined(cell: words.Cell) -> str:
    """A cell's text with its remarks: intervals as they are, others in brackets."""
    ends = [remark for remark in cell.remarks if remark.startswith('[')]
    rest = [remark for remark in cell.remarks if remark not in ends]
    return ' '.join([cell.text, *ends, *[f'({"; ".join(rest)})'] * bool(rest)])


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[bool] = ()) -> str:
    """A table of Markdown, from cells that are Markdown already."""
    rules = ['---' if not left or aligned else '--:' for aligned in left or heads]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (heads, rules, *rows))


def escape(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*_{}\[\]|~$#])', r'\\\1', ' '.join(text.split()))


def code(text: str) -> str:
    """Text as code; in a table a bar needs its backslash even there."""
    if not text:
        return ''
    fence = '`' * (max(map(len, re.findall('`+', text)), default=0) + 1)
    room = ' ' if '`' in text[0] + text[-1] else ''
    return f'{fence}{room}{" ".join(text.split())}{room}{fence}'.replace('|', '\\|')


def _list(items: Iterable[str]) -> str:
    return '\n'.join(f'- {escape(item)}' for item in items)


# --- LaTeX ----------------------------------------------------------------------------------------


def latex(report: Report) -> str:
    """A tabular for each metric, in the manner of booktabs."""
    return '\n'.join(_tabular(table) for table in report.tables)


def _tabular(table: Table) -> str:
    columns = [
        column for column in words.columns(table) if column.key.partition(' ')[0] in IN_LATEX
    ]
    layout = ''.join('l' if column.text else 'r' for column in columns)
    rows = [[latex_escape(column.title) for column in columns]]
    for row in table.rows:
        cells = [words.cell(table, row, column) for column in columns]
        rows.append(
            [
                latex_escape(
                    ' '.join([cell.text, *(end for end in cell.remarks if end.startswith('['))])
                )
                for cell in cells
            ]
        )
    lines = [' & '.join(cells) + r' \\' for cells in rows]
    body = '\n'.join(
        f'  {line}' for line in [r'\toprule', lines[0], r'\midrule', *lines[1:], r'\bottomrule']
    )
    return (
        f'% {latex_escape(table.label)}; wants \\usepackage{{booktabs}}\n'
        f'\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}\n'
    )


def latex_escape(text: str) -> str:
    """Text that TeX sets as it stands, also after the end of a row, which takes a bracket or a star
    for its own.
    """
    return '{}' * text.startswith(('[', '*')) + ''.join(
        LATEX.get(letter, letter) for letter in text
    )


# --- CSV ------------------------------------------------------------------------------------------


def runs_csv(report: Report) -> str:
    """A line for each variant, seed and metric; runs that are missing have no value, and
    say why.
    """
    lines: list[list[Any]] = [['variant', 'seed', 'metric', 'value', 'missing']]
    gaps = {
        (variant, seed): gap.why
        for gap in report.missing
        for variant in gap.variants
        for seed in gap.seeds
    }
    for table, seed in itertools.product(report.tables, report.experiment['seeds']):
        lines += [
            [row.variant, seed, table.label, row.values.get(seed), gaps.get((row.variant, seed))]
            for row in table.rows
        ]
    return _csv(lines)


def summary_csv(report: Report) -> str:
    """A line for each variant and metric, with all that was computed of it."""
    papers = list(
        dict.fromkeys(map(_name, (paper for table in report.tables for paper in table.papers)))
    )
    lines: list[list[Any]] = [
        [
            'variant',
            'metric',
            'seeds',
            *SUMMARY,
            'reference',
            *(f'difference: {key}' for key in COMPARISON),
            *(f'over sentences: {key}' for key in RESAMPLED),
            *papers,
            *COSTS,
        ]
    ]
    for table in report.tables:
        for row in table.rows:
            theirs = {_name(paper): paper.values.get(row.variant) for paper in table.papers}
            lines.append(
                [
                    row.variant,
                    table.label,
                    len(row.values),
                    *_fields(row.summary, SUMMARY),
                    row.reference,
                    *_fields(row.comparison, COMPARISON),
                    *_fields(row.resampled, RESAMPLED),
                    *(theirs.get(paper) for paper in papers),
                    *_fields(row.cost, COSTS),
                ]
            )
    return _csv(lines)


def _name(paper: Paper) -> str:
    return f'{paper.source}: {paper.measure}'


def _fields(values: Any, keys: Iterable[str]) -> list[Any]:
    return [getattr(values, key, None) for key in keys]


def _csv(lines: Iterable[Iterable[Any]]) -> str:
    """Without what is unknown: None and NaN are empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(
        [['' if cell is None or cell != cell else cell for cell in line] for line in lines]
    )
    return text.getvalue()

"""report.md, and the parts of Markdown that other pages share with it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from transformer_jax.report import reviewer, sentences
from transformer_jax.report.claims import HEADS, NOTE, claim_rows, doubts
from transformer_jax.report.columns import VERDICTS, Cell, Column, cell, table_columns
from transformer_jax.report.tables import Report, Table, VariantResult
from transformer_jax.report.tuning import tuning_heads, tuning_notes, tuning_rows


def markdown_report(report: Report, figures: Mapping[str, str] | None = None) -> str:
    """Write report.md.

    Args:
        report: what to write.
        figures: the names of the figures, which are in the same folder -> what they show.
    """
    parts = [
        f'# {escape(report.experiment["claim"])}',
        escape(' · '.join(sentences.subtitle(report))),
        escape(report.looks),
    ]
    parts += claims_section(report)
    for table in report.tables:
        parts += [
            f'## {escape(table.label)}',
            f'{sentences.direction(table).capitalize()}.',
            results_table(table, table_columns(table)),
            bullets(sentences.notes(table)),
        ]
    parts += tuning_section(report)
    if report.missing:
        rows = [
            [code(variants), seeds, escape(why)]
            for variants, seeds, why in sentences.missing_rows(report)
        ]
        parts += [
            '## Missing runs',
            escape(sentences.missing_runs(report)),
            grid(('variant', 'seeds', 'why'), rows),
        ]
    if figures:
        shown = (f'![{escape(title)}]({name})' for name, title in figures.items())
        parts += ['## Figures', '\n'.join(shown)]
    keys, rows = sentences.config_differences(report)
    if keys:
        cells = [[code(name), *map(code, values)] for name, *values in rows]
        parts += [
            '## What differs between the variants',
            grid(('variant', *map(code, keys)), cells),
        ]
    parts += [
        '## How it was run',
        f'```\n{sentences.command(report.experiment)}\n```',
        bullets(f'{name}: {value}' for name, value in sentences.provenance(report)),
        *review_sections(report),
    ]
    return '\n\n'.join(filter(None, parts)) + '\n'


def claims_section(report: Report) -> list[str]:
    """Write the claims of an experiment, if it has any: a heading, a table and a note."""
    if not report.claims:
        return []
    return ['## Claims', claims_grid(report), NOTE, doubts_list(report)]


def claims_grid(report: Report) -> str:
    """Write the table of the claims of an experiment."""
    rows = claim_rows(report.claims, report.experiment)
    return grid(HEADS, [[*map(escape, row)] for row in rows], [True] * len(HEADS))


def doubts_list(report: Report) -> str:
    """Write what would change our mind about the claims; '' where no claim says it."""
    lines = bullets(doubts(report.claims))
    return f'What would change our mind:\n\n{lines}' if lines else ''


def tuning_section(report: Report) -> list[str]:
    """Write how the variants were tuned, if they were: a heading, a table and notes."""
    experiment = report.experiment
    if not experiment.get('tune'):
        return []
    heads, rows = tuning_heads(experiment), tuning_rows(experiment)
    cells = [[code(name), code(chosen), *map(escape, scores)] for name, chosen, *scores in rows]
    table = grid([*map(escape, heads)], cells) if rows else ''
    return ['## Tuning', table, bullets(tuning_notes(experiment))]


def review_sections(report: Report) -> list[str]:
    """Write what a reviewer asks: differences from the paper, data, and the rest as a list."""
    fingerprints = [
        [split, code(digest), escape(whose)]
        for split, digest, whose in reviewer.fingerprint_rows(report)
    ]
    return [
        '## Where this differs from the paper',
        differences_table(report) or reviewer.difference_note(report),
        '## What a reviewer asks',
        grid(reviewer.FINGERPRINT_HEADS, fingerprints),
        bullets(f'{name}: {value}' for name, value in reviewer.answers(report)),
    ]


def differences_table(report: Report) -> str:
    """Write the differences from the paper that the experiment states; '' without any."""
    rows = [[*map(escape, row)] for row in reviewer.difference_rows(report)]
    return grid(reviewer.DIFFERENCE_HEADS, rows) if rows else ''


def results_table(table: Table, columns: Sequence[Column]) -> str:
    """Write some columns of a table of results."""
    rows = [
        [_write_cell(cell(table, row, column), column, row) for column in columns]
        for row in table.rows
    ]
    return grid(
        [escape(column.title) for column in columns], rows, [column.text for column in columns]
    )


def _write_cell(found: Cell, column: Column, row: VariantResult) -> str:
    text = code(found.text) if column.key == 'variant' else escape(join_remarks(found))
    return f'{VERDICTS[row.verdict][0]} {text}' if column.key == 'verdict' else text


def join_remarks(found: Cell) -> str:
    """Write a cell's text with its remarks: intervals as they are, others in brackets."""
    rest = [remark for remark in found.remarks if remark not in found.intervals]
    parts = [found.text, *found.intervals]
    return ' '.join([*parts, f'({"; ".join(rest)})'] if rest else parts)


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[bool] = ()) -> str:
    """Write a table of Markdown.

    Args:
        heads: the headings, already Markdown.
        rows: the cells, already Markdown.
        left: for each column whether it is aligned to the left, else to the right; (): all are
            aligned by default.
    """
    rules = ['---' if not left or aligned else '--:' for aligned in left or heads]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (heads, rules, *rows))


def escape(text: str) -> str:
    """Escape text so that nothing in it is Markdown or HTML."""
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*_{}\[\]|~$#])', r'\\\1', ' '.join(text.split()))


def code(text: str) -> str:
    """Write text as code; in a table a bar needs its backslash even there."""
    if not text:
        return ''
    fence = '`' * (max(map(len, re.findall('`+', text)), default=0) + 1)
    room = ' ' if '`' in text[0] + text[-1] else ''
    return f'{fence}{room}{" ".join(text.split())}{room}{fence}'.replace('|', '\\|')


def bullets(items: Iterable[str]) -> str:
    """Write a list of text."""
    return '\n'.join(f'- {escape(item)}' for item in items)

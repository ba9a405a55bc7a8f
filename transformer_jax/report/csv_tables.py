"""runs.csv, summary.csv and tries.csv: the numbers of a report with all of their digits.

A text that a spreadsheet would compute as a formula has an apostrophe before it.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from transformer_jax.ablation.result_shapes import COSTS, LATER_COSTS
from transformer_jax.ablation.statistics import summarize
from transformer_jax.report.tables import Report, VariantResult
from transformer_jax.report.tuning import find_choices

SUMMARY = ('mean', 'sd', 'low', 'high')
COMPARISON = (
    *('difference', 'low', 'high', 'alone_low', 'alone_high'),
    *('test', 'p', 'adjusted', 'verdict', 'detectable', 'seeds_needed'),
)
RESAMPLED = ('difference', 'low', 'high', 'p', 'adjusted')
# A text that a spreadsheet takes for a formula; with the apostrophes that protect one already, so
# that leaving out one apostrophe always gives the text back. The last four are the wide letters.
FORMULA = re.compile(r"\s*'*\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', re.ASCII | re.IGNORECASE)


def runs_csv(report: Report) -> str:
    """Write a line for each variant, seed and metric.

    Runs that are missing have no value; the last column says why.
    """
    lines: list[list[Any]] = [['variant', 'seed', 'metric', 'value', 'missing']]
    gaps = {
        (variant, seed): gap.why
        for gap in report.missing
        for variant in gap.variants
        for seed in gap.seeds
    }
    for table in report.tables:
        for seed in report.experiment['seeds']:
            lines += [
                [
                    row.variant,
                    seed,
                    table.label,
                    row.values.get(seed),
                    gaps.get((row.variant, seed)),
                ]
                for row in table.rows
            ]
    return _write_csv(lines)


def summary_csv(report: Report) -> str:
    """Write a line for each variant and metric, with all that was computed."""
    papers = list(dict.fromkeys(paper.name for table in report.tables for paper in table.papers))
    every = [row.cost for table in report.tables for row in table.rows]
    # Left out where no run has them, as in earlier versions.
    measured = [key for key in LATER_COSTS if any(getattr(cost, key) is not None for cost in every)]
    known = any(row.validation for table in report.tables for row in table.rows)
    validation = ('seeds', 'mean', 'sd') if known else ()
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
            *measured,
            *(f'validation: {key}' for key in validation),
        ]
    ]
    for table in report.tables:
        for row in table.rows:
            theirs = {paper.name: paper.values.get(row.variant) for paper in table.papers}
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
                    *_fields(row.cost, [*COSTS, *measured]),
                    *(_validation(row)[key] for key in validation),
                ]
            )
    return _write_csv(lines)


def tries_csv(report: Report) -> str:
    """Write a line for each run of tuning: variant, values, score, seconds, or why it failed."""
    tune = report.experiment['tune']
    keys, label = [*tune['values']], tune['metric']['label']
    lines: list[list[Any]] = [['variant', *keys, 'seed', label, 'seconds', 'chosen', 'failed']]
    for variant, choice in find_choices(report.experiment).items():
        for each in choice['tries']:
            chosen = 'yes' if each['values'] == choice['chosen'] else 'no'
            for run in each['runs']:
                measured = run['seed'], run['score'], run['wall_seconds']
                values = [each['values'][key] for key in keys]
                lines.append([variant, *values, *measured, chosen, run['failed'] or None])
    return _write_csv(lines)


def _validation(row: VariantResult) -> dict[str, Any]:
    found = summarize(row.validation) if row.validation else None
    return {'seeds': len(row.validation), 'mean': found and found.mean, 'sd': found and found.sd}


def _fields(values: Any, keys: Iterable[str]) -> list[Any]:
    return [getattr(values, key, None) for key in keys]


def _write_csv(lines: Iterable[Iterable[Any]]) -> str:
    """Write lines; None and NaN are empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(map(_cell, line) for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Return a value as a cell that no spreadsheet computes; numbers stay numbers."""
    if value is None or value != value:
        return ''
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        return f"'{value}"
    return value

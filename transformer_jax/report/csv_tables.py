"""runs.csv and summary.csv: the numbers of a report with all of their digits."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from transformer_jax.report.tables import Report

SUMMARY = ('mean', 'sd', 'low', 'high')
COMPARISON = ('difference', 'low', 'high', 'test', 'p', 'adjusted', 'verdict', 'detectable')
RESAMPLED = ('difference', 'low', 'high', 'p', 'adjusted')
COSTS = ('params', 'non_embedding_params', 'flops', 'step_seconds', 'memory_bytes', 'wall_seconds')


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
                    *_fields(row.cost, COSTS),
                ]
            )
    return _write_csv(lines)


def _fields(values: Any, keys: Iterable[str]) -> list[Any]:
    return [getattr(values, key, None) for key in keys]


def _write_csv(lines: Iterable[Iterable[Any]]) -> str:
    """Write lines; None and NaN are empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(
        [['' if cell is None or cell != cell else cell for cell in line] for line in lines]
    )
    return text.getvalue()

"""The tables of README files, from the results that are committed:
`python -m transformer_jax.report.readme README.md`.

`make docs` runs it; a test fails when a table in a file is another.

- experiments/<paper>/README.md: between `<!-- begin report: results_table_small.json -->` and
  `<!-- end report -->` the tables of that file, which lies beside it
- README.md: between `<!-- begin reproduce -->` and `<!-- end reproduce -->` a row for each of
  those files
"""

import json
import re
import sys
from pathlib import Path

from transformer_jax.errors import ConfigError
from transformer_jax.report import numbers, text, words
from transformer_jax.report.analysis import Report, Table, VariantResult, analyze

REPORTS = re.compile(r'(<!-- begin report: (\S+) -->\n).*?(<!-- end report -->)', re.DOTALL)
REPRODUCE = re.compile(r'(<!-- begin reproduce -->\n).*?(<!-- end reproduce -->)', re.DOTALL)
HEADS = ('claim', 'paper', 'ours', 'difference, 95% interval', 'verdict', 'command, results')


def updated(page: str, directory: Path, only: str = '') -> str:
    """An experiment's README with the tables of today.

    Args:
        page: its text.
        directory: where the results are that it names.
        only: the name of the one that is wanted; '': all.

    Raises:
        ConfigError: the page has no place for `only`.
    """
    if only and only not in (match[2] for match in REPORTS.finditer(page)):
        raise ConfigError(
            f'no place for the table: write <!-- begin report: {only} --> and <!-- end report --> where '
            'it is to stand'
        )

    def replaced(match: re.Match) -> str:
        if only and match[2] != only:
            return match[0]
        return f'{match[1]}{tables(analyze(directory / match[2]))}\n{match[3]}'

    return REPORTS.sub(replaced, page)


def update(readme: Path, results: Path) -> Path:
    """Brings the tables of one file of results to today, in the README beside it.

    Raises:
        ConfigError: there is no such README beside the results, or it has no place for
            their tables.
    """
    if not readme.is_file() or readme.resolve().parent != results.resolve().parent:
        raise ConfigError(f'--readme={readme}: name a README beside {results}')
    readme.write_text(updated(readme.read_text(), results.parent, results.name))
    return readme


def tables(report: Report) -> str:
    """All metrics' tables, what must be known to read them, and how many runs are missing."""
    parts = []
    for table in report.tables:
        better = 'less is better' if table.lower_is_better else 'more is better'
        parts += [f'**{text.escape(table.label)}** ({better}):', text.markdown_table(table)]
        parts += ['\n'.join(f'- {text.escape(note)}' for note in words.notes(table))]
    if report.missing:
        gaps = '; '.join(
            f'{variants}, seeds {seeds}: {why}'
            for variants, seeds, why in words.missing_rows(report)
        )
        parts.append(text.escape(f'{words.missing(report)} {gaps}'))
    return '\n\n'.join(filter(None, parts))


def committed(experiments: Path) -> list[Path]:
    """The results of ablations under `experiments`; other files of that name are of single runs."""
    return [
        path
        for path in sorted(experiments.glob('*/results_*.json'))
        if 'experiment' in json.loads(path.read_text())
    ]


def reproduce(page: str, experiments: Path) -> str:
    """The top-level README with the table of today."""
    return REPRODUCE.sub(
        lambda match: f'{match[1]}{reproduce_table(experiments)}\n{match[2]}', page
    )


def reproduce_table(experiments: Path) -> str:
    """A row for each file of results: the variant that differs most from its reference in the
    paper, or in ours.
    """
    files = committed(experiments)
    if not files:
        return 'No results of an ablation are committed yet.'
    return text.grid(HEADS, [_line(path, analyze(path)) for path in files])


def _line(path: Path, report: Report) -> list[str]:
    table = report.tables[0]
    paper = table.papers[0] if table.papers else None
    row = headline(table)
    reference = table.row((row or table.rows[0]).reference)
    theirs, difference, verdict = numbers.NONE, numbers.NONE, []
    if row and paper and {row.variant, row.reference} <= paper.values.keys():
        theirs = ' against '.join(
            f'{text.code(name)} {numbers.printed(paper.values[name], paper.values.values())}'
            for name in (row.variant, row.reference)
        )
        theirs += f' ({text.escape(f"{paper.measure}; {paper.source}")})'
    if row and row.comparison and row.comparison.difference is not None:
        difference = text.joined(words.cell(table, row, words.Column('difference', '', '', '')))
    if row:
        side = f', {paper.sides[row.variant]}' if paper and row.variant in paper.sides else ''
        verdict.append(words.VERDICTS[row.verdict] + side)
    verdict.append(
        'all variants: ' + (', '.join(said for _, said in words.tally(table)) or 'none compared')
    )
    if paper:
        verdict.append(words.agreement(paper.agreement))
    ours = ' against '.join(
        f'{text.code(one.variant)} {_mean(table, one)}' for one in (row, reference) if one
    )
    link = f'[{text.escape(path.name)}]({path.parent.parent.name}/{path.parent.name}/{path.name})'
    return [
        text.escape(report.experiment['claim']),
        theirs,
        f'{text.escape(table.label)}: {ours}',
        text.escape(difference),
        text.escape('; '.join(verdict)),
        f'{text.code(words.command(report.experiment))}, {link}',
    ]


def _mean(table: Table, row: VariantResult) -> str:
    return numbers.fixed(row.summary.mean, words.places(table)) if row.values else numbers.NONE


def headline(table: Table) -> VariantResult | None:
    """The row whose difference from its reference is the largest: in the paper where it has both,
    otherwise in ours.
    """
    theirs = table.papers[0].values if table.papers else {}
    others = [row for row in table.rows if row.verdict not in ('reference', 'same')]
    if there := [row for row in others if {row.variant, row.reference} <= theirs.keys()]:
        return max(there, key=lambda row: abs(theirs[row.variant] - theirs[row.reference]))
    measured = [row for row in others if row.comparison and row.comparison.difference is not None]
    return max(measured, key=lambda row: abs(row.comparison.difference), default=None)


def main(path: Path) -> None:
    """Brings the tables of a top-level README, and of the experiments beside it, to today."""
    experiments = path.parent / 'experiments'
    path.write_text(reproduce(path.read_text(), experiments))
    for readme in sorted(experiments.glob('*/README.md')):
        readme.write_text(updated(readme.read_text(), readme.parent))


if __name__ == '__main__':
    main(Path(sys.argv[1]))

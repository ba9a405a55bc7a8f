"""Tables in README files, made from the results that are committed.

- experiments/<folder>/README.md has short tables of a results file between
  `<!-- begin report: results_table_small.json -->` and `<!-- end report -->`; the file is in the
  same folder.
- README.md has a line for each claim of those files between `<!-- begin claims -->` and
  `<!-- end claims -->`; docs/results/index.md has what was found, too, between
  `<!-- begin findings -->` and `<!-- end findings -->`, and a line for each file between
  `<!-- begin experiments -->` and `<!-- end experiments -->`.

`make docs` writes them (see `site`); a test fails when a table differs from its results.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from transformer_jax.errors import ConfigError
from transformer_jax.report import numbers, sentences
from transformer_jax.report.analysis import analyze
from transformer_jax.report.claim_tables import HEADS as CLAIM_HEADS
from transformer_jax.report.claim_tables import claims_table
from transformer_jax.report.columns import decimal_places
from transformer_jax.report.markdown import code, escape, grid
from transformer_jax.report.short_tables import short_tables
from transformer_jax.report.tables import Report, Side, Table, VariantResult, Verdict
from transformer_jax.storage.files import write_text
from transformer_jax.storage.json_files import read_json

# A marker has a line of its own. No name can make one: what is written has every name in mid-line.
REPORTS = re.compile(
    r'^([ \t]*<!-- begin report: (\S+) -->[ \t]*\n).*?^([ \t]*<!-- end report -->[ \t]*)$',
    re.DOTALL | re.MULTILINE,
)
TABLES = re.compile(
    r'^([ \t]*<!-- begin (claims|findings|experiments) -->[ \t]*\n).*?'
    r'^([ \t]*<!-- end \2 -->[ \t]*)$',
    re.DOTALL | re.MULTILINE,
)
HEADS = ('experiment', 'hypothesis', 'paper', 'ours', 'against the reference')


@functools.cache
def analyze_committed(path: Path) -> Report:
    """Analyze a results file that does not change while this process runs."""
    return analyze(path)


def fill_reports(page: str, directory: Path, only: str = '') -> str:
    """Return an experiment's README with the tables of today's results.

    Args:
        page: the text of the README.
        directory: where the results are that it names.
        only: the name of the one results file whose tables are wanted; '': all.

    Raises:
        ConfigError: the page has no place for `only`.
    """
    if only and only not in (match[2] for match in REPORTS.finditer(page)):
        raise ConfigError(
            f'no place for the table: write <!-- begin report: {only} --> and '
            '<!-- end report --> where it is to stand'
        )

    def fill(match: re.Match) -> str:
        if only and match[2] != only:
            return match[0]
        return f'{match[1]}{short_tables(analyze_committed(directory / match[2]))}\n{match[3]}'

    return REPORTS.sub(fill, page)


def without_tables(page: str) -> str:
    """Return what people wrote of a README: its tables between markers are left out."""
    return REPORTS.sub(r'\1\3', page)


def update_readme(readme: Path, results: Path) -> Path:
    """Write the tables of a results file into the README of its folder; return the README.

    Raises:
        ConfigError: there is no such README next to the results, or it has no place for
            their tables.
    """
    if not readme.is_file() or readme.resolve().parent != results.resolve().parent:
        raise ConfigError(f'--readme={readme}: name a README beside {results}')
    text = fill_reports(readme.read_text(), results.parent, results.name)
    write_text(epath.Path(readme), text, '--readme')
    return readme


def committed_results(experiments: Path) -> list[Path]:
    """List the results of ablations in `experiments`; other such files are of single runs."""
    return [
        path
        for path in sorted(experiments.glob('*/results_*.json'))
        if 'experiment' in read_json(epath.Path(path), {}, 'restore it from a copy')
    ]


def fill_tables(page: str, experiments: Path, links: str) -> str:
    """Return a page with the tables of claims and of experiments that it has places for.

    Args:
        page: the text of the page.
        experiments: the folder experiments/.
        links: the link to the results page of a folder, with '{}' for the name of the page.
    """
    reports = [
        (analyze_committed(path), links.format(page_name(path.parent.name)))
        for path in committed_results(experiments)
    ]
    tables = {
        'claims': functools.partial(claims_table, heads=CLAIM_HEADS[:-1]),
        'findings': claims_table,
        'experiments': experiments_table,
    }
    return TABLES.sub(lambda match: f'{match[1]}{tables[match[2]](reports)}\n{match[3]}', page)


def experiments_table(reports: Sequence[tuple[Report, str]]) -> str:
    """Write a line for each report, given with the link to its page.

    It shows the variant that differs most from its reference in the paper, or else in our results.
    """
    if not reports:
        return 'No results of an ablation are committed yet.'
    return grid(HEADS, [_experiment(*each) for each in reports])


def page_name(folder: str) -> str:
    """Turn the name of an experiment's folder into that of its results page."""
    return folder.replace('_', '-')


def headline(table: Table) -> VariantResult | None:
    """Return the row with the largest difference from its reference.

    The difference is the paper's where it has both numbers, else ours; None where nothing can be
    compared.
    """
    theirs = table.papers[0].values if table.papers else {}
    others = [row for row in table.rows if row.verdict not in (Verdict.REFERENCE, Verdict.SAME)]
    if in_paper := [row for row in others if {row.variant, row.reference} <= theirs.keys()]:
        return max(in_paper, key=lambda row: abs(theirs[row.variant] - theirs[row.reference]))
    measured = [(row, row.difference) for row in others if row.difference is not None]
    largest = max(measured, key=lambda pair: abs(pair[1].value), default=None)
    return None if largest is None else largest[0]


def _experiment(report: Report, link: str) -> list[str]:
    experiment, table = report.experiment, report.tables[0]
    name, _, scale = Path(experiment['file']).name.replace('.py', '').partition(':')
    cells = [f'[{escape(f"{name} ({scale})" if scale else name)}]({link})']
    cells.append(escape(experiment['claim'].rstrip('.')))
    row = headline(table)
    if row is None:
        return [*cells, numbers.NONE, numbers.NONE, 'nothing to compare']
    reference = table.row(row.reference)
    pairs = [f'{code(one.variant)} {_mean(table, one)}' for one in (row, reference)]
    ours = f'{", ".join(pairs)} ({escape(table.label)})'
    return [*cells, _paper(table, row), ours, _verdicts(table)]


def _paper(table: Table, row: VariantResult) -> str:
    """Write the paper's numbers of a variant and its reference; a dash where it lacks one.

    What our test finds is added where it finds a difference: '12.5, 25.8 (BLEU; agrees)'.
    """
    if not table.papers:
        return numbers.NONE
    paper = table.papers[0]
    names = [row.variant, row.reference]
    if not set(names) <= paper.values.keys():
        return numbers.NONE
    pair = ', '.join(numbers.printed(paper.values[name], paper.values.values()) for name in names)
    side = paper.sides.get(row.variant)
    found = f'; {side}' if side in (Side.AGREES, Side.CONTRADICTS) else ''
    return f'{pair} ({escape(paper.measure)}{found})'


def _mean(table: Table, row: VariantResult) -> str:
    if not row.values:
        return numbers.NONE
    return numbers.fixed(row.summary.mean, decimal_places(table))


def _verdicts(table: Table) -> str:
    """Count the verdicts of a table, '2 better, 15 not distinguishable'."""
    counts = sentences.tally(table)
    if [verdict for verdict, _ in counts] == [Verdict.UNTESTED]:
        return 'not tested: one seed' if table.rows[0].planned == 1 else 'not tested'
    return ', '.join(said for _, said in counts)

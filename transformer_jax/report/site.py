"""The results pages of the site, and the tables in README files.

`make docs` writes them by `python -m transformer_jax.report.site`; a test fails when a file differs
from what would be written.

- docs/results/<experiment>.md is experiments/<experiment>/README.md with its tables in full: tests,
  power, the numbers of the paper, command, machine, dates, and links to CSV files.
- docs/results/<experiment>-<table>.csv has the value of every run, …-summary.csv all that was
  computed of every variant.
- docs/results/index.md, README.md and experiments/*/README.md have tables between markers, see
  `readme`.
"""

import re
import sys
from pathlib import Path

from etils import epath
from matplotlib.figure import Figure

from transformer_jax.display.figures import save_figure
from transformer_jax.errors import ConfigError
from transformer_jax.report import readme, sentences
from transformer_jax.report.axis_figures import axis_figures, length_figures
from transformer_jax.report.csv_tables import runs_csv, summary_csv
from transformer_jax.report.figures import differences_figure
from transformer_jax.report.markdown import bullets, claims_grid, doubts_list, escape
from transformer_jax.report.metric_names import metric_name
from transformer_jax.report.short_tables import metric_heading, missing_runs, short_table
from transformer_jax.report.tables import Report
from transformer_jax.storage.files import write_bytes

RESULTS = Path('docs') / 'results'
# A README's paragraph that leads to its results page.
TO_PAGE = re.compile(r'^\[Results page\]\(.*?\n\n', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\[([^\]]*)\]\(([^)\s]+)\)')
SECTION = re.compile(r'^## ', re.MULTILINE)


def page_texts(root: Path) -> dict[Path, str]:
    """Return path -> content of all text files that this module writes under a project's root.

    Raises:
        ConfigError: a README names results that are missing, or links to a file that no page shows.
    """
    experiments = root / 'experiments'
    texts = {}
    # Page -> how it links to a results page.
    pages = {root / 'README.md': f'{RESULTS}/{{}}.md', root / RESULTS / 'index.md': '{}.md'}
    for path, links in pages.items():
        if path.is_file():
            texts[path] = readme.fill_tables(path.read_text(), experiments, links)
    for path in sorted(experiments.glob('*/README.md')):
        texts[path] = readme.fill_reports(path.read_text(), path.parent)
        texts[root / RESULTS / f'{readme.page_name(path.parent.name)}.md'] = results_page(path)
    for path in readme.committed_results(experiments):
        report, stem = readme.analyze_committed(path), file_stem(path)
        texts[root / RESULTS / f'{stem}.csv'] = runs_csv(report)
        texts[root / RESULTS / f'{stem}-summary.csv'] = summary_csv(report)
    return texts


def write_pages(root: Path) -> list[Path]:
    """Write all pages under a project's root; return the files that changed.

    Figures that are drawn here are drawn anew only where their page changed, since their bytes
    depend on the version of Matplotlib.
    """
    changed = []
    for path, text in page_texts(root).items():
        if not path.is_file() or path.read_text() != text:
            write_bytes(epath.Path(path), text.encode())
            changed.append(path)
    for path in sorted((root / 'experiments').glob('*/README.md')):
        page = root / RESULTS / f'{readme.page_name(path.parent.name)}.md'
        for source in shown_figures(path):
            target = page.parent / f'{page.stem}-{source.name}'
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                write_bytes(epath.Path(target), source.read_bytes())
                changed.append(target)
        for results in results_without_figure(path):
            target, figure = page.parent / f'{file_stem(results)}.png', _figure(results)
            if figure and (page in changed or not target.is_file()):
                save_figure(figure, epath.Path(target))
                changed.append(target)
    return changed


def file_stem(results: Path) -> str:
    """Name the files of a results file: 'shaw-clip-small' of shaw/results_clip_small.json."""
    table = results.stem.removeprefix('results_').replace('_', '-')
    return f'{readme.page_name(results.parent.name)}-{table}'


def results_page(path: Path) -> str:
    """Make the results page of an experiment from its README.

    Raises:
        ConfigError: the README names results that are missing, or links to a file that no page
            shows.
    """
    without_figure = results_without_figure(path)

    def fill(match: re.Match) -> str:
        results = path.parent / match[2]
        return _results_block(results, with_figure=results in without_figure)

    text = TO_PAGE.sub('', readme.without_tables(path.read_text()))
    text = LINK.sub(lambda match: _page_link(match, path.parent), text)
    text = readme.REPORTS.sub(fill, text)
    folder = path.parent.name
    return f'<!-- `make docs` writes this page from experiments/{folder}/. Edit that. -->\n\n{text}'


def shown_figures(path: Path) -> list[Path]:
    """List the figures that a README shows; they are in its folder."""
    text = readme.without_tables(path.read_text())
    targets = [target for _, target in LINK.findall(text)]
    return [path.parent / target for target in targets if target.endswith('.png')]


def results_without_figure(path: Path) -> list[Path]:
    """List the results files of a README in whose sections it shows no figure."""
    text, found = readme.without_tables(path.read_text()), []
    for match in readme.REPORTS.finditer(text):
        start = max((m.start() for m in SECTION.finditer(text, 0, match.start())), default=0)
        if '![' not in text[start : match.start()]:
            found.append(path.parent / match[2])
    return found


def _results_block(results: Path, with_figure: bool) -> str:
    """Write what a page says of one results file."""
    report, stem = readme.analyze_committed(results), file_stem(results)
    first = report.tables[0]
    verdicts = ', '.join(said for _, said in sentences.tally(first)) or 'nothing to compare'
    parts = [
        f'Claim: *{escape(report.experiment["claim"].rstrip("."))}*. By {escape(first.label)}: '
        f'{verdicts}.'
    ]
    if report.claims:
        parts += [claims_grid(report), doubts_list(report)]
    for table in report.tables:
        parts += [
            metric_heading(table),
            short_table(report, table),
            bullets(sentences.notes(table, with_detectable=False)),
        ]
    parts.append(missing_runs(report))
    if with_figure and _figure(results):
        parts.append(f'![{escape(first.label)}]({stem}.png)')
    parts.append(_provenance(report, results, stem))
    return '\n\n'.join(filter(None, parts))


def _figure(results: Path) -> Figure | None:
    """Draw the first metric: along the axis or lengths, or differences; None without any."""
    report = readme.analyze_committed(results)
    if figures := axis_figures(report) or length_figures(report):
        return next(iter(figures.values()))[1]
    table, [metric, *_] = report.tables[0], report.experiment['metrics']
    return differences_figure(table, metric_name(metric)) if table.compared else None


def _provenance(report: Report, results: Path, stem: str) -> str:
    machine = '; '.join(sentences.machines(report)) or 'unknown machine'
    return '\n'.join(
        [
            f'- Command: `{sentences.command(report.experiment)}`',
            f'- Machine: {escape(machine)}',
            f'- Dates: {sentences.dates(report)}; steps: {sentences.steps(report)}; '
            f'commits: {escape(sentences.short_commits(report))}',
            f'- Numbers: [every run]({stem}.csv), [every variant]({stem}-summary.csv), '
            f'`experiments/{results.parent.name}/{results.name}`',
        ]
    )


def _page_link(match: re.Match, folder: Path) -> str:
    """Rewrite a link of a README for its page, which is in another folder.

    A figure of the folder is copied next to the page; another file of the folder becomes its path.
    """
    words, target = match[1], match[2]
    if target.startswith(('http:', 'https:', '#')):
        return match[0]
    if page := re.fullmatch(r'\.\./(\w+)/README\.md', target):
        return f'[{words}]({readme.page_name(page[1])}.md)'
    if not (folder / target).is_file():
        raise ConfigError(f'{folder}/README.md links to {target}, which no results page can show')
    if target.endswith('.png'):
        return f'[{words}]({readme.page_name(folder.name)}-{target})'
    return f'`experiments/{folder.name}/{target}`'


if __name__ == '__main__':
    for written in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else '.')):
        print(f'wrote {written}', file=sys.stderr)

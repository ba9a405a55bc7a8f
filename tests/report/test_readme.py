"""Tables in README files and results pages: made from results, and none of them stale."""

from pathlib import Path

import pytest
from helpers.made_up_ablation import make_results, write_file

from transformer_jax.ablation import Claim
from transformer_jax.ablation.claims import record_claims
from transformer_jax.cli import main
from transformer_jax.errors import ConfigError
from transformer_jax.report import readme, site
from transformer_jax.report.analysis import analyze
from transformer_jax.report.short_tables import short_table

ROOT = Path(__file__).parents[2]
TEXTS = site.page_texts(ROOT)
README = """# A made-up experiment

[Results page](../../docs/results/made-up.md): tests, and
the numbers of every run.

See [another](../other_one/README.md), [the record](results_of_one_run.json) and
[a paper](https://example.org/paper).

## A section with a figure

![a figure](along.png)

<!-- begin report: results_made_up.json -->
old
<!-- end report -->

## A section without one

<!-- begin report: results_second_table.json -->
old
<!-- end report -->

after
"""
CLAIMS = '<!-- begin claims -->\nold\n<!-- end claims -->\n'
FINDINGS, EXPERIMENTS = (CLAIMS.replace('claims', name) for name in ('findings', 'experiments'))


@pytest.fixture
def project(tmp_path):
    """Write a project with one experiment, which has two results files and a figure."""
    folder = tmp_path / 'experiments' / 'made_up'
    folder.mkdir(parents=True)
    (tmp_path / 'docs' / 'results').mkdir(parents=True)
    write_file(folder / 'results_made_up.json', make_results())
    write_file(folder / 'results_second_table.json', make_results(lost=()))
    (folder / 'results_of_one_run.json').write_text('{"test": 1}')
    (folder / 'along.png').write_bytes(b'a picture')
    (folder / 'README.md').write_text(README)
    (tmp_path / 'README.md').write_text(EXPERIMENTS)
    (tmp_path / 'docs' / 'results' / 'index.md').write_text(FINDINGS + EXPERIMENTS)
    return tmp_path


def test_report_writes_the_table_of_a_readme(project):
    directory = project / 'experiments' / 'made_up'
    results = directory / 'results_made_up.json'
    command = ['report', str(results), f'--readme={directory / "README.md"}']
    assert main(command) == 0
    written = (directory / 'README.md').read_text()
    found = analyze(results)
    assert short_table(found, found.tables[0]) in written
    assert '6 of 25 runs are missing' in written
    assert written.count('old') == 1  # the other results file was not named
    assert written.endswith('<!-- end report -->\n\nafter\n')
    assert main(command) == 0
    assert (directory / 'README.md').read_text() == written


def test_a_readme_without_a_place_is_refused(project):
    directory = project / 'experiments' / 'made_up'
    (directory / 'README.md').write_text('nothing')
    with pytest.raises(ConfigError, match='no place for the table'):
        readme.update_readme(directory / 'README.md', directory / 'results_made_up.json')
    with pytest.raises(ConfigError, match='name a README beside'):
        readme.update_readme(project / 'README.md', directory / 'results_made_up.json')


def test_a_claim_is_one_line_for_each_results_file(project):
    site.write_pages(project)
    written = (project / 'README.md').read_text()
    lines = [line for line in written.splitlines() if 'made-up' in line]
    assert len(lines) == 2
    assert lines[0] == (
        '| [table1 (small)](docs/results/made-up.md) | Attention &lt;kinds&gt; &amp; their BLEU '
        '| 24.9, 25.8 (BLEU on newstest; agrees) | `linear` 36.08, `softmax` 38.01 (test bleu) '
        '| 1 better, 1 worse, 1 not distinguishable, 1 missing |'
    )
    assert '](made-up.md)' in (project / 'docs' / 'results' / 'index.md').read_text()


def test_claims_are_sorted_by_verdict_with_what_was_found(project):
    results = make_results()
    for entry in results['experiment']['variants'].values():
        entry['config'] |= {'data.task': 'mqar(length=64)', 'model.kind': 'encoder_decoder'}
        entry['config'] |= {'model.encoder_layers': 2, 'model.decoder_layers': 3}
        entry['config'] |= {'model.d_model': 64, 'train.steps': 1000}
    claims = [
        Claim('additive is better', 'test bleu', 'additive', source='Bahdanau et al. 2015, Fig. 2'),
        Claim('linear is worse', 'test bleu', 'linear', direction='worse', doubt='a longer run'),
        Claim('both are better', 'test bleu', ('additive', 'linear')),
        Claim('withdrawn', 'test bleu', 'linear'),
    ]
    now = {'commit': 'abcdef0123', 'date': '2026-11-20', 'seeds': 5, 'runs': 0}
    old = record_claims(claims[3:], [], now)
    results['experiment']['claims'] = record_claims(claims[:3], old, now)
    folder = project / 'experiments' / 'claimed'
    folder.mkdir()
    write_file(folder / 'results_claimed.json', results)
    page = 'x\n<!-- begin report: results_claimed.json -->\n<!-- end report -->\n'
    (folder / 'README.md').write_text(page)
    site.write_pages(project)
    index = (project / 'docs' / 'results' / 'index.md').read_text()
    rows = [line.split(' | ') for line in index.splitlines() if '](claimed.md)' in line][:3]
    assert [row[3] for row in rows] == ['✓ supported', '✓ supported', '✗ contradicted']
    assert rows[1][0] == '| [linear is worse](claimed.md)'
    assert rows[1][2] == 'mqar, 2 + 3 layers of width 64, 1,000 steps, 5 seeds'
    assert 'linear − softmax: −1.93' in rows[1][4]
    assert 'Bahdanau et al. 2015, Fig. 2' in index
    assert 'withdrawn' not in index
    results_page = (project / 'docs' / 'results' / 'claimed.md').read_text()
    assert 'What would change our mind:\n\n- linear is worse: a longer run' in results_page
    assert '- ✓ supported: linear is worse (test bleu: ' in (folder / 'README.md').read_text()


def test_without_results_the_table_of_claims_says_so(tmp_path):
    assert readme.fill_tables(CLAIMS, tmp_path, '{}') == (
        '<!-- begin claims -->\nNo experiment with claims has been run yet.\n<!-- end claims -->\n'
    )


def test_a_results_page_is_the_readme_with_its_tables_in_full(project):
    changed = site.write_pages(project)
    folder = project / 'docs' / 'results'
    page = (folder / 'made-up.md').read_text()
    assert {path.name for path in changed if path.parent == folder} == {
        'index.md',
        'made-up.md',
        'made-up-along.png',
        'made-up-made-up.csv',
        'made-up-made-up-summary.csv',
        'made-up-second-table.csv',
        'made-up-second-table-summary.csv',
        'made-up-second-table.png',
    }
    assert 'Results page' not in page
    assert '[another](other-one.md)' in page
    assert '`experiments/made_up/results_of_one_run.json`' in page
    assert '[a paper](https://example.org/paper)' in page
    assert '![a figure](made-up-along.png)' in page
    assert page.count('![') == 2
    assert 'by a t test with moderated variances' in page
    assert '--root=DIR --seeds=5' in page
    assert '[every run](made-up-made-up.csv)' in page
    assert site.write_pages(project) == []


def test_a_link_that_no_page_can_show_is_refused(project):
    path = project / 'experiments' / 'made_up' / 'README.md'
    path.write_text('[what](nowhere.txt)\n')
    with pytest.raises(ConfigError, match=r'links to nowhere\.txt'):
        site.results_page(path)


def test_an_axis_of_several_lines_is_a_table_of_lines_and_points(tmp_path):
    results = make_results()
    points = {
        'softmax': ['quadratic', 8],
        'linear': ['subquadratic', 8],
        'additive': ['quadratic', 64],
        'lost': ['subquadratic', 64],
    }
    results['experiment']['axis'] = {'label': 'd_k', 'points': points}
    report = analyze(write_file(tmp_path / 'results.json', results))
    lines = short_table(report, report.tables[0]).splitlines()
    assert lines[0] == '| d\\_k | 8 | 64 |'
    assert [line.split(' ')[1] for line in lines[2:4]] == ['`quadratic`', '`subquadratic`']
    assert '▼ (4 of 5 seeds) (paper 24.9) | – (0 of 5 seeds)' in lines[3]
    assert lines[-1].startswith('Mean ± sd over 5 seeds; against `quadratic` at the same point: ▲')


@pytest.mark.parametrize('path', TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_committed_pages_are_those_of_their_results(path):
    assert path.is_file(), f'{path} is missing: run make docs'
    assert path.read_text() == TEXTS[path], f'{path} is stale: run make docs'


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'experiments').glob('*/README.md')), ids=lambda path: path.parent.name
)
def test_committed_pages_have_their_figures(path):
    page = ROOT / site.RESULTS / f'{readme.page_name(path.parent.name)}.md'
    for figure in site.shown_figures(path):
        copy = page.parent / f'{page.stem}-{figure.name}'
        assert copy.read_bytes() == figure.read_bytes(), f'{copy} is stale: run make docs'
    for line in page.read_text().splitlines():
        if line.startswith('!['):
            assert (page.parent / line.partition('](')[2].rstrip(')')).is_file()


def test_every_committed_result_has_its_place_in_a_readme():
    assert readme.TABLES.search((ROOT / 'README.md').read_text())
    for path in readme.committed_results(ROOT / 'experiments'):
        assert f'<!-- begin report: {path.name} -->' in (path.parent / 'README.md').read_text()

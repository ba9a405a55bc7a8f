"""The files of a report: Markdown, LaTeX, CSV, figures; and the command that writes them."""

import csv
import io
import re

import pytest
from helpers.made_up_ablation import (
    MEANS,
    SEEDS,
    analyzed,
    make_results,
    row_of,
    write_file,
    write_root,
)

from transformer_jax.cli import main
from transformer_jax.report import axis_figures, figures, numbers, readme
from transformer_jax.report.analysis import analyze
from transformer_jax.report.columns import table_columns
from transformer_jax.report.csv_tables import summary_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.latex import latex_escape
from transformer_jax.report.markdown import code, markdown_report, results_table


def test_all_files_are_written(out):
    stems = [
        'differences-test-bleu',
        'differences-test-loss',
        'curves-validation-bleu',
        'curves-validation-loss',
        'curves-train-loss',
    ]
    expected = {
        'report.md',
        'report.html',
        'tables.tex',
        'runs.csv',
        'summary.csv',
        *(stem + suffix for stem in stems for suffix in ('.png', '.svg', '.pdf')),
    }
    assert {path.name for path in out.iterdir()} == expected
    shown = re.findall(r'!\[.*\]\((.*)\)', (out / 'report.md').read_text())
    assert shown == [f'{stem}.png' for stem in stems]


def test_what_an_experiment_varies_is_an_axis_of_figures(tmp_path, monkeypatch):
    results = make_results()
    points = {
        'softmax': ['quadratic', 8],
        'linear': ['subquadratic', 8],
        'additive': ['quadratic', 64],
        'lost': ['subquadratic', 64],
    }
    results['experiment']['axis'] = {'label': 'd_k', 'points': points}
    drawn = {}
    monkeypatch.setattr(
        figures, 'save_figure', lambda figure, path: drawn.setdefault(path.name, figure)
    )
    report = analyzed(tmp_path, results)
    names = figures.write_figures(report, tmp_path)
    assert {'by-test-bleu.png', 'by-test-loss.png', 'by-step-time.png'} <= {*names} & {*drawn}
    [axes] = drawn['by-test-bleu.png'].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (
        'd_k',
        'BLEU (test)',
        'log',
    )
    means = {row.variant: row.summary.mean for row in report.tables[0].rows}
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    points = [bars[0].get_xydata().tolist() for bars in axes.containers]
    lines = dict(zip(names, points, strict=True))
    assert lines == {
        'quadratic': [[8, means['softmax']], [64, means['additive']]],
        'subquadratic': [[8, means['linear']]],
    }
    assert re.findall('<img alt="(.*?)"', html_report(report)) == [
        'BLEU (test) over d_k',
        'loss (test) over d_k',
        'milliseconds per step over d_k',
    ]


def test_a_line_of_the_axis_is_the_reference_at_each_point(tmp_path):
    results = make_results(lost=())
    results['experiment']['reference'] = {
        name: 'additive' if name in ('linear', 'additive') else 'same as softmax' for name in MEANS
    }
    report = analyzed(tmp_path, results)
    verdicts = {row.variant: row.verdict for row in report.tables[0].rows}
    assert [verdicts[name] for name in ('softmax', 'same as softmax', 'additive', 'linear')] == [
        'same',
        'reference',
        'reference',
        'worse',
    ]
    means = {row.variant: row.summary.mean for row in report.tables[0].rows}
    assert row_of(report, 'linear').comparison.difference == pytest.approx(
        means['linear'] - means['additive']
    )
    assert report.tables[0].papers[0].sides == {'linear': 'agrees'}  # 24.9 against 25.1
    said = markdown_report(report)
    assert 'reference: same as softmax, additive' in said
    assert 'Differences from the reference at the same point of the axis by a t test' in said
    assert readme.headline(report.tables[0]).variant == 'linear'
    lines = list(csv.DictReader(io.StringIO(summary_csv(report))))
    assert {line['variant']: line['reference'] for line in lines} == results['experiment'][
        'reference'
    ]
    assert '"references":["same as softmax","additive"]' in html_report(
        analyze(write_root(tmp_path / 'root', results))
    )


def test_a_markdown_table_has_equal_rows_whatever_the_names(tmp_path):
    results = make_results()
    variants = results['experiment']['variants']
    variants['a|b `c` <i>'] = variants.pop('additive')
    results['experiment']['published'] = []
    found = analyzed(tmp_path, results).tables[0]
    table = results_table(found, table_columns(found))
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()}) == 1
    assert '``a\\|b `c` <i>``' in table


@pytest.mark.parametrize(
    ('name', 'markdown'), [('a*b_c', '`a*b_c`'), ('`', '`` ` ``'), ('a|b', '`a\\|b`'), ('', '')]
)
def test_code_of_markdown_is_literal(name, markdown):
    assert code(name) == markdown


def test_latex_is_escaped_and_whole(out, report):
    tables = (out / 'tables.tex').read_text()
    assert r'window(8) \textless{}b\textgreater{}\& \textquotedbl{}x\textquotedbl{}\_y\$' in tables
    for tabular in re.findall(r'\\begin{tabular}{([lr]+)}(.*?)\\end{tabular}', tables, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if line.endswith(r'\\')]
        assert len(lines) == 7
        assert {len(re.findall(r'(?<!\\)&', line)) + 1 for line in lines} == {len(tabular[0])}
    assert latex_escape('[a]') == '{}[a]'  # else a bracket after \\ would be a length
    assert tables.isascii()


def test_csv_has_every_run_and_reads_back(out, report):
    with (out / 'runs.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(MEANS) * len(SEEDS) * 2
    lost = [row for row in rows if not row['value']]
    assert len(lost) == 2 * 6
    assert {row['missing'] for row in lost} == {'failed: the loss was <nan> at step 3'}
    found = {
        (row['variant'], int(row['seed'])): float(row['value'])
        for row in rows
        if row['value'] and row['metric'] == 'test bleu'
    }
    assert found['additive', 2] == row_of(report, 'additive').values[2]
    with (out / 'summary.csv').open() as file:
        summary = {(row['variant'], row['metric']): row for row in csv.DictReader(file)}
    row = summary['linear', 'test bleu']
    assert float(row['difference: adjusted']) == row_of(report, 'linear').comparison.adjusted
    assert row['Somebody et al. (2020), Table 1: BLEU on newstest'] == '24.9'


@pytest.mark.parametrize(
    ('said', 'expected'),
    [
        (numbers.fixed(-0.004, 2, signed=True), '0.00'),
        (numbers.fixed(-1.236, 2), '−1.24'),
        (numbers.count(999_600), '1.00M'),
        (numbers.count(None), '–'),
        (numbers.size(1536), '1.50 KiB'),
        (numbers.seconds(0.00123), '1.23 ms'),
        (numbers.seconds(119), '119 s'),
        (numbers.seconds(8000), '2.2 h'),
        (numbers.p_value(0.00001), '< 0.0001'),
        (numbers.decimals([0.21]), 2),
        (numbers.decimals([0.0, 12.0]), 0),
        (numbers.decimals([]), 4),
        (numbers.printed(26.0, [26.0, 5.25]), '26.00'),
        (numbers.printed(-0.5, [1.0]), '−0.5'),
        (numbers.printed(None, []), '–'),
        (numbers.printed(1e-07, [1e-07, 0.5]), '1e−07'),
        (numbers.printed(-2.5e-09, [-2.5e-09]), '−2.5e−09'),
        (numbers.printed(0.5, [1e-07, 0.5]), '0.5'),
        (numbers.printed(3e20, [3e20]), '3e+20'),
        (numbers.printed(4.0, [4.0, 1e-07]), '4.0'),
    ],
)
def test_numbers_have_the_digits_that_mean_something(said, expected):
    assert said == expected


def test_the_command_writes_into_the_root_or_beside_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, 'write_figures', lambda report, out: {})  # takes seconds
    root = write_root(tmp_path / 'root', make_results())
    file = write_file(tmp_path / 'results_x.json', make_results())
    assert main(['report', str(root)]) == 0
    assert (root / 'report' / 'report.html').exists()
    assert main(['report', str(file)]) == 0
    assert (tmp_path / 'results_x' / 'report.md').exists()
    assert main(['report', str(file), f'--out={tmp_path / "out"}']) == 0
    assert (tmp_path / 'out' / 'summary.csv').exists()
    assert 'wrote' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('argument', 'message'), [('', '--results is missing'), ('nowhere', 'nowhere')]
)
def test_what_is_no_ablation_is_refused(argument, message, capsys):
    assert main(['report', *[argument] * bool(argument)]) == 2
    assert message in capsys.readouterr().err


def test_a_metric_at_several_lengths_is_a_line_for_each_variant(tmp_path):
    results = make_results()
    [bleu, loss] = results['experiment']['metrics']
    metrics = [loss | {'length': length, 'label': f'test loss at {length}'} for length in (64, 128)]
    results['experiment'] |= {'metrics': [bleu, *metrics], 'published': []}
    for run in results['runs']:
        for part in ('scores', 'checkpoints', 'selected'):
            if 'test loss' in run.get(part, {}):
                value = run[part].pop('test loss')
                run[part] |= {metric['label']: value for metric in metrics}
    report = analyzed(tmp_path, results)
    [(name, (title, figure))] = axis_figures.length_figures(report).items()
    assert (name, title) == ('by-length-test-loss', 'loss (test) over length')
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ['64', '128']
    assert len(axes.containers) == 5  # the variants with runs

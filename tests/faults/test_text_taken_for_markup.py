"""A user's text is drawn, tabled and written as it is, whatever it would mean as markup."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import rich.console
from helpers.made_up_ablation import analyzed, make_results, write_file

from transformer_jax.cli import main
from transformer_jax.display.attention_heads import attention_figure
from transformer_jax.display.evaluations import evaluation_table
from transformer_jax.display.figures import PlainFigure, draw_legend
from transformer_jax.display.tables import result_table
from transformer_jax.report import axis_figures, csv_tables, figures, site
from transformer_jax.report.csv_tables import runs_csv, summary_csv
from transformer_jax.report.latex import latex_report

PACKAGE = Path(figures.__file__).parents[1]
# Names that mean something to Matplotlib.
DRAWN = [
    r'$\frac$',
    '$x_',
    'a $ b $ c',
    r'\$',
    '_hidden',
    '$',
    r'$$\nonesuch{$$',
    'two\nlines',
    ' ',
    '名前',
    'a\x00\x1bb',
]
README = """# Made up

## A table

<!-- begin report: results_made_up.json -->
<!-- end report -->

after
"""


def with_names(*names: str, claim: str = 'a claim') -> dict:
    """Make results whose first variants, axis and paper have these names."""
    results = make_results()
    text = json.dumps(results)
    for old, new in zip(('softmax', 'linear'), names, strict=False):
        text = text.replace(json.dumps(old), json.dumps(new))
    results = json.loads(text)
    experiment = results['experiment']
    experiment['claim'] = claim
    experiment['axis'] = {
        'label': names[0],
        'points': {name: [name, 1 + at] for at, name in enumerate(experiment['variants'])},
    }
    for published in experiment['published']:
        published['source'] = names[0]
    return results


@pytest.mark.parametrize('name', [r'$\frac$', '_hidden', 'two\nlines'])
def test_figures_of_a_report_draw_any_name(tmp_path, name):
    report = analyzed(tmp_path, with_names(name))
    [(_, along), *_] = axis_figures.axis_figures(report).values()
    for figure in (figures.differences_figure(report.tables[0], name), along):
        figure.draw_without_rendering()


@pytest.mark.parametrize('name', DRAWN)
def test_legends_and_notebooks_draw_any_name(name):
    figure = PlainFigure()
    axes = figure.subplots()
    axes.set(title=name, xlabel=name, ylabel=name)
    legend = draw_legend(axes, axes.plot([1, 2]), [name])
    figure.draw_without_rendering()
    assert [text.get_text() for text in legend.get_texts()] == [name]
    attention_figure({'encoder': np.ones((1, 1, 2, 2))}, [name, 'b'], []).draw_without_rendering()


def test_every_figure_is_a_plain_one():
    found = [
        path.name
        for path in PACKAGE.rglob('*.py')
        if path.name != 'figures.py' or path.parent.name != 'display'
        if ' Figure(' in path.read_text() or 'pyplot' in path.read_text()
    ]
    assert found == []


@pytest.mark.parametrize(
    ('value', 'cell'),
    [
        ('=1+1', "'=1+1"),
        ('+cmd', "'+cmd"),
        ('-dropout', "'-dropout"),
        ('@sum(a1)', "'@sum(a1)"),
        ("'=already", "''=already"),
        ('\t=tab', "'\t=tab"),
        (' \n=space', "' \n=space"),
        ('＝wide', "'＝wide"),
        ("=HYPERLINK('x','y')", "'=HYPERLINK('x','y')"),
        ('-1.5', '-1.5'),
        ('+2e-3', '+2e-3'),
        (-0.25, '-0.25'),
        (-3, '-3'),
        (float('-inf'), '-inf'),
        ('a=b', 'a=b'),
        ("'quoted'", "'quoted'"),
        ('softmax - 1', 'softmax - 1'),
        (None, ''),
        (float('nan'), ''),
    ],
)
def test_no_cell_of_a_csv_file_is_a_formula(value, cell):
    [row] = csv.reader(io.StringIO(csv_tables._write_csv([[value, 'end']]), newline=''))
    assert row == [cell, 'end']


def test_csv_files_protect_every_text_and_no_number(tmp_path):
    report = analyzed(tmp_path, with_names('=1+1', '-linear'))
    runs = list(csv.DictReader(io.StringIO(runs_csv(report))))
    assert {row['variant'] for row in runs} >= {"'=1+1", "'-linear"}
    summary = list(csv.DictReader(io.StringIO(summary_csv(report))))
    assert any(head.startswith("'=1+1: ") for head in summary[0])
    negative = [row['difference: low'] for row in summary if row['difference: low'][:1] == '-']
    assert negative
    assert all(float(value) < 0 for value in negative)


@pytest.mark.parametrize(
    'name',
    [
        'u <!-- end report --> v',
        '<!-- end report -->',
        'a\n<!-- end report -->\nb',
        'a\r<!-- end claims -->\rb',
        '<!-- begin report: results_made_up.json -->',
        '<!-- begin claims -->',
        '## A heading',
        '[a link](nowhere.md)',
        '![a figure](nowhere.png)',
        '[Results page](x)',
        '-->',
        '`',
        '|',
    ],
)
def test_pages_are_the_same_after_each_report(tmp_path, name):
    folder = tmp_path / 'experiments' / 'made_up'
    folder.mkdir(parents=True)
    results = with_names(name, claim=name)
    results['experiment']['axis'] = None
    write_file(folder / 'results_made_up.json', results)
    readme = folder / 'README.md'
    readme.write_text(README)
    (tmp_path / 'README.md').write_text('<!-- begin claims -->\n<!-- end claims -->\n\nend\n')
    command = ['report', str(folder / 'results_made_up.json'), f'--readme={readme}']
    written = []
    for _ in range(2):
        assert main(command) == 0
        texts = site.page_texts(tmp_path)
        (tmp_path / 'README.md').write_text(texts[tmp_path / 'README.md'])
        written.append((readme.read_text(), texts[readme], texts))
    assert written[0] == written[1]
    assert written[0][0] == written[0][1]
    assert written[0][0].endswith('<!-- end report -->\n\nafter\n')
    assert written[0][2][tmp_path / 'README.md'].endswith('<!-- end claims -->\n\nend\n')
    [page] = [text for path, text in written[0][2].items() if path.name == 'made-up.md']
    assert page.endswith('\n\nafter\n')


@pytest.mark.parametrize(
    'name', ['[red]a', '[/]', ':car: x', 'a[bold', '\\[x]', '[link=file:///x]y[/link]']
)
def test_tables_on_a_screen_show_any_name(name):
    table = result_table(name, (name, 'b'), [(name, name)], text_columns=2)
    evaluation = {
        'task': name,
        'split': 'test',
        'checkpoint': 'best',
        'steps': [1],
        'note': name,
        'classes': [name],
        'confusion': [[1]],
    }
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(table)
    assert console.file.getvalue().count(name) == 4
    assert evaluation_table(evaluation).count(name) == 4


@pytest.mark.parametrize('name', ['a\n\nb', '% comment', r'\input{x}', 'a & b', 'x~^y'])
def test_a_latex_table_keeps_its_rows(tmp_path, name):
    [row] = [
        line
        for line in latex_report(analyzed(tmp_path, with_names('softmax', name))).split('\n')
        if '24.9' in line
    ]
    assert row.replace(r'\&', '').count('&') == 8
    assert row.endswith(r'\\')
    assert '%' not in row.replace(r'\%', '')

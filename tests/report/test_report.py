"""The report of made-up ablations: numbers are where they belong, gaps are named, the page works in
a browser.
"""

import csv
import html
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from transformer_jax.ablation import statistics as stats
from transformer_jax.cli import main
from transformer_jax.errors import ConfigError
from transformer_jax.report import figures, numbers, readme, text, words
from transformer_jax.report.analysis import analyze
from transformer_jax.report.page import page
from transformer_jax.report.write import write_report

ROOT = Path(__file__).parents[2]
SEEDS = [0, 1, 2, 3, 4]
MEANS = {
    'softmax': 38.0,
    'linear': 36.0,
    'window(8) <b>& "x"_y$': 38.1,
    'same as softmax': 38.0,
    'additive': 39.0,
    'lost': 30.0,
}
CONFIG = {'model.attention': 'softmax', 'model.d_model': 128, 'model.d_ff': 256, 'train.steps': 400}


def folder(name):
    return 'softmax' if name == 'same as softmax' else name.split('(')[0]


def make_experiment(seeds=SEEDS):
    """What experiment.json holds: one variant is the reference by another name, one has a name that
    must be escaped.
    """
    metrics = [
        {
            'name': 'bleu',
            'split': 'test',
            'checkpoint': 'best',
            'length': 0,
            'lower_is_better': False,
            'label': 'test bleu',
        },
        {
            'name': 'loss',
            'split': 'test',
            'checkpoint': 'best',
            'length': 0,
            'lower_is_better': True,
            'label': 'test loss',
        },
    ]
    variants = {}
    for name in MEANS:
        overrides = {'model.attention': folder(name)}
        matched = {'model.d_ff': 240, 'residual': -0.0012} if name == 'linear' else {}
        variants[name] = {
            'folder': folder(name),
            'overrides': overrides,
            'config': CONFIG | overrides,
            'matched': matched,
        }
    published = [
        {
            'source': 'Somebody et al. (2020), Table 1',
            'measure': 'BLEU on newstest',
            'metric': 'test bleu',
            'values': {'softmax': 25.8, 'linear': 24.9, 'additive': 25.1},
            'lower_is_better': False,
        }
    ]
    return {
        'file': 'experiments/made_up/table1.py:small',
        'claim': 'Attention <kinds> & their BLEU',
        'seeds': seeds,
        'reference': 'softmax',
        'metrics': metrics,
        'published': published,
        'match': 'params',
        'axis': None,
        'variants': variants,
    }


def make_results(seeds=SEEDS, noise=0.25, lost=(('linear', 3),)):
    """A results.json: `lost` has no sound run at all, and `lost` names single runs."""
    experiment, rng = make_experiment(list(seeds)), np.random.default_rng(0)
    runs, missing = [], []
    for name in dict.fromkeys(map(folder, MEANS)):
        mean = next(value for variant, value in MEANS.items() if folder(variant) == name)
        for seed in seeds:
            draw = rng.normal()
            if name == 'lost' or (name, seed) in lost:
                missing.append(
                    {'folder': name, 'seed': seed, 'why': 'failed: the loss was <nan> at step 3'}
                )
                continue
            runs.append(
                {
                    'folder': name,
                    'scores': {
                        'test bleu': mean + noise * draw,
                        'test loss': 5 - mean / 20 - noise / 50 * draw,
                    },
                    'seed': seed,
                    'params': 1_234_567,
                    'non_embedding_params': 1_000_000,
                    'flops': 2_345_678,
                    'step_seconds': 0.0123 + mean / 1e4,
                    'memory_bytes': 123_456_789,
                    'wall_seconds': 321.0,
                    'steps': 400,
                    'step': 380,
                    'commit': '8706208',
                    'date': f'2026-11-{20 + seed % 3}',
                    'machine': {'devices': '1 x cpu cpu', 'cpus': 2, 'versions': {'jax': '0.10.2'}},
                }
            )
    return {'experiment': experiment, 'runs': runs, 'missing': missing}


def sentences(run, rng):
    """Correct and total 1- to 4-grams, length and reference length of 60 sentences."""
    chances = run['scores']['test bleu'] / 50 * np.array([1, 0.8, 0.7, 0.6])
    totals = [12, 11, 10, 9]
    return [[*rng.binomial(totals, chances).tolist(), *totals, 12, 12] for _ in range(60)]


def probes(layers=3, heads=4):
    """What `probe` leaves after two checkpoints; one probe has no meaning in one head."""
    rng = np.random.default_rng(2)
    rows = [
        {
            'site': site,
            'layer': layer,
            'head': head,
            'entropy': rng.uniform(0, 3),
            'normalized_entropy': None,
            'distance': rng.uniform(1, 9),
            'sink': rng.uniform(),
            'max_logit': None if head == 1 else -1.5,
        }
        for site in ('encoder', 'cross')
        for layer in range(layers)
        for head in range(heads)
    ]
    later = [row | {'entropy': row['entropy'] / 2} for row in rows]
    return {
        'split': 'validation',
        'checkpoints': [{'step': 200, 'sites': rows}, {'step': 400, 'sites': later}],
    }


def write_file(path, results):
    path.write_text(json.dumps(results))
    return path


def write_root(root, results):
    """The folders that would give such results, with curves, sentences and one run's probes."""
    (root).mkdir(parents=True, exist_ok=True)
    (root / 'experiment.json').write_text(json.dumps(results['experiment']))
    configs = {v['folder']: v['config'] for v in results['experiment']['variants'].values()}
    rng = np.random.default_rng(1)
    for run in results['runs']:
        workdir = root / run['folder'] / str(run['seed'])
        workdir.mkdir(parents=True)
        nested = {}
        for key, value in configs[run['folder']].items():
            section, _, last = key.partition('.')
            nested.setdefault(section, {})[last] = value
        (workdir / 'config.json').write_text(json.dumps(nested))
        (workdir / 'result.json').write_text(json.dumps(run))
        lines = []
        for step in range(10, 401, 10):
            fall = 6 * np.exp(-step / 120) + 5 - run['scores']['test bleu'] / 12
            lines.append(
                {
                    'step': step,
                    'split': 'train',
                    'loss': fall + 0.1 * rng.normal(),
                    'tokens_per_second': 3.0,
                }
            )
            if step % 50 == 0:
                bleu = run['scores']['test bleu'] * (1 - np.exp(-step / 100)) + 0.3 * rng.normal()
                lines.append(
                    {
                        'step': step,
                        'split': 'validation',
                        'loss': fall,
                        'bleu': bleu,
                        'sentences': 100,
                    }
                )
        if run['folder'] != 'additive':
            (workdir / 'sentences.json').write_text(json.dumps({'test bleu': sentences(run, rng)}))
        (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (root / 'linear' / '1' / 'probes.json').write_text(json.dumps(probes()))
    figure = Figure(figsize=(2, 1))
    figure.savefig(root / 'linear' / '1' / 'attention.png')
    for entry in results['missing']:
        workdir = root / entry['folder'] / str(entry['seed'])
        workdir.mkdir(parents=True)
        (workdir / 'failure.json').write_text(
            json.dumps({'error': entry['why'].removeprefix('failed: ')})
        )
    return root


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp('ablation') / 'root', make_results())


@pytest.fixture(scope='module')
def report(root):
    return analyze(root)


@pytest.fixture(scope='module')
def out(root):
    write_report(root, root / 'report')
    return root / 'report'


def row_of(report, variant, metric=0):
    return next(row for row in report.tables[metric].rows if row.variant == variant)


def analyzed(tmp_path, results):
    return analyze(write_file(tmp_path / 'results.json', results))


# --- What is said ---------------------------------------------------------------------------------


def test_rows_are_means_over_sound_runs_and_name_their_number(report):
    scores = [
        run['scores']['test bleu'] for run in make_results()['runs'] if run['folder'] == 'linear'
    ]
    row = row_of(report, 'linear')
    assert (len(scores), row.planned) == (4, 5)
    assert row.summary.mean == pytest.approx(np.mean(scores))
    assert row.summary.sd == pytest.approx(np.std(scores, ddof=1))
    assert words.cell(report.tables[0], row, words.columns(report.tables[0])[1]).text == '4 of 5'


def test_verdicts_are_those_of_the_statistics_and_turn_with_the_metric(report):
    verdicts = [{row.variant: row.verdict for row in table.rows} for table in report.tables]
    assert (
        verdicts[0]
        == verdicts[1]
        == {
            'softmax': 'reference',
            'linear': 'worse',
            'window(8) <b>& "x"_y$': 'open',
            'same as softmax': 'same',
            'additive': 'better',
            'lost': 'missing',
        }
    )
    values = {row.variant: row.values for row in report.tables[0].rows if not row.same_as}
    assert (
        row_of(report, 'additive').comparison == stats.compare(values, 'softmax', False)['additive']
    )


def test_variants_that_share_runs_are_compared_once(report, tmp_path):
    results = make_results()
    results['experiment']['variants'].pop('same as softmax')
    for variant in ('linear', 'additive'):
        assert (
            row_of(analyzed(tmp_path, results), variant).comparison
            == row_of(report, variant).comparison
        )
    assert row_of(report, 'same as softmax').same_as == 'softmax'


def test_a_reference_that_comes_later_than_its_double_is_still_the_reference(tmp_path):
    results = make_results()
    results['experiment']['reference'] = 'same as softmax'
    found = analyzed(tmp_path, results)
    assert row_of(found, 'same as softmax').verdict == 'reference'
    assert row_of(found, 'softmax').verdict == 'same'


def test_missing_runs_are_listed_with_their_reason(report, out):
    assert [(gap.variants, gap.seeds) for gap in report.missing] == [
        (['linear'], [3]),
        (['lost'], SEEDS),
    ]
    for name in ('report.md', 'report.html'):
        content = (out / name).read_text()
        assert '6 of 25 runs are missing' in content
        assert 'failed: the loss was &lt;nan&gt; at step 3' in content


@pytest.mark.parametrize('seeds', [1, 2])
def test_one_seed_has_no_interval_and_the_report_says_why(tmp_path, seeds):
    found = analyzed(tmp_path, make_results(range(seeds), lost=()))
    table, row = found.tables[0], row_of(found, 'linear')
    written = text.markdown(found)
    assert (row.summary.low is None) == (row.verdict == 'untested') == (seeds == 1)
    assert ('No interval from 1 seed, it needs two: all variants' in written) == (seeds == 1)
    assert ('a test needs two seeds' in written) == (seeds == 1)
    assert ('a chance of' in ' '.join(words.notes(table))) == (seeds == 2)
    assert re.findall(r'\bnan\b', page(found).replace('&lt;nan&gt;', '').replace('isNaN', '')) == []


def test_nothing_sound_at_all_is_still_a_report(tmp_path):
    results = make_results(lost=[(folder(name), seed) for name in MEANS for seed in SEEDS])
    found = analyzed(tmp_path, results)
    assert {row.verdict for row in found.tables[0].rows} == {'missing'}
    assert '25 of 25 runs are missing' in text.markdown(found)
    assert '25 of 25 runs are missing' in page(found)


def test_the_paper_stands_beside_ours_with_direction_and_rank(report):
    [paper] = report.tables[0].papers
    assert report.tables[1].papers == ()
    assert paper.sides == {'linear': 'agrees', 'additive': 'contradicts'}
    assert (paper.agreement.variants, paper.agreement.directions, paper.agreement.agreeing) == (
        3,
        2,
        1,
    )
    note = next(note for note in words.notes(report.tables[0]) if 'Kendall' in note)
    assert note.startswith('Somebody et al. (2020), Table 1, BLEU on newstest: 1 of 2 variants lie')
    assert "Kendall's τ of the ranks of 3 variants 0.33" in note


def test_a_paper_whose_measure_falls_agrees_by_better_and_worse(tmp_path):
    results = make_results()
    perplexities = {'softmax': 5.0, 'linear': 5.2, 'additive': 4.9}
    results['experiment']['published'][0] |= {'lower_is_better': True, 'values': perplexities}
    assert analyzed(tmp_path, results).tables[0].papers[0].sides == {
        'linear': 'agrees',
        'additive': 'agrees',
    }


def test_sentences_are_resampled_where_all_runs_of_a_variant_have_them(report):
    resampled = {row.variant for row in report.tables[0].rows if row.resampled}
    assert resampled == {'linear', 'window(8) <b>& "x"_y$'}  # additive has none
    assert report.tables[0].sentences == 60
    assert not any(row.resampled for row in report.tables[1].rows)
    assert 'over the 60 that were scored' in ' '.join(words.notes(report.tables[0]))


def test_costs_stand_in_every_row_with_what_was_matched(report):
    cells = {
        column.key: words.cell(report.tables[0], row_of(report, 'linear'), column)
        for column in words.columns(report.tables[0])
    }
    assert cells['params'].text == '1.23M'
    assert cells['params'].remarks == ('1.00M non-emb.', 'd_ff 240 (−0.12%)')
    measured = [cells[key].text for key in ('flops', 'step', 'memory', 'wall')]
    assert measured == ['2.35M', '15.9 ms', '118 MiB', '5.3 min']


def test_only_keys_that_differ_are_shown(report):
    keys, rows = words.differences(report)
    assert keys == ['model.attention']
    assert rows[1] == ['linear', 'linear']


def test_the_file_alone_makes_the_same_tables(report, tmp_path):
    found = analyzed(tmp_path, make_results())
    assert [row.comparison for row in found.tables[0].rows] == [
        row.comparison for row in report.tables[0].rows
    ]
    assert found.curves == {}
    assert found.heads == {}


# --- Curves and heads -----------------------------------------------------------------------------


def test_curves_have_every_seed_and_their_mean(report, root):
    assert list(report.curves)[:2] == ['validation bleu', 'validation loss']
    assert not {'validation sentences', 'train tokens_per_second'} & set(report.curves)
    curve = report.curves['validation bleu']['linear']
    events = [
        [
            json.loads(line)
            for line in (root / 'linear' / str(seed) / 'metrics.jsonl').read_text().splitlines()
        ]
        for seed in (0, 1, 2, 4)
    ]
    last = [run[-1]['bleu'] for run in events]
    assert sorted(curve.seeds) == [0, 1, 2, 4]
    assert curve.mean[-1] == (400, pytest.approx(np.mean(last)))


def test_the_mean_ends_where_a_seed_does_and_gaps_stay_gaps(tmp_path):
    root = write_root(tmp_path / 'root', make_results())
    file = root / 'additive' / '0' / 'metrics.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    broken = [
        line | ({'loss': 'nan'} if line['step'] == 100 else {})
        for line in lines
        if line['step'] <= 200
    ]
    file.write_text('\n'.join(map(json.dumps, broken)) + '\n{"step": 210, "spl')
    found = analyze(root)
    curve = found.curves['validation loss']['additive']
    assert [step for step, _ in curve.mean] == [50, 100, 150, 200]
    assert np.isnan(dict(curve.mean)[100])
    assert max(step for step, _ in curve.seeds[1]) == 400
    assert '[100,null]' in page(found)


def test_heads_are_maps_of_layers_and_heads(report, out):
    heads = report.heads['linear']
    assert (heads.seed, heads.steps, len(heads.pictures)) == (1, [200, 400], 1)
    assert set(report.heads) == {'linear'}
    first, last = heads.maps['encoder: entropy (nats)']
    assert first.shape == (3, 4)
    np.testing.assert_allclose(last, first / 2)
    assert np.isnan(heads.maps['cross: largest score'][0][:, 1]).all()
    assert not any('log n' in name for name in heads.maps)  # it has no meaning in any head
    assert 'src="data:image/png;base64,' in (out / 'report.html').read_text()


# --- Forms ----------------------------------------------------------------------------------------


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
        *(stem + suffix for stem in stems for suffix in ('.png', '.svg')),
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
    names = figures.draw(report, tmp_path)
    assert {'by-test-bleu.png', 'by-test-loss.png', 'by-step-time.png'} <= {*names} & {*drawn}
    [axes] = drawn['by-test-bleu.png'].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ('d_k', 'test bleu', 'log')
    means = {row.variant: row.summary.mean for row in report.tables[0].rows}
    lines = {bars.get_label(): bars[0].get_xydata().tolist() for bars in axes.containers}
    assert lines == {
        'quadratic': [[8, means['softmax']], [64, means['additive']]],
        'subquadratic': [[8, means['linear']]],
    }
    assert re.findall('<img alt="(.*?)"', page(report)) == [
        'by test bleu',
        'by test loss',
        'by step time',
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
    said = text.markdown(report)
    assert 'reference: same as softmax, additive' in said
    assert 'Differences from the reference at the same point of the axis by Welch' in said
    assert readme.headline(report.tables[0]).variant == 'linear'
    lines = list(csv.DictReader(io.StringIO(text.summary_csv(report))))
    assert {line['variant']: line['reference'] for line in lines} == results['experiment'][
        'reference'
    ]
    assert '"references":["same as softmax","additive"]' in page(
        analyze(write_root(tmp_path / 'root', results))
    )


def test_a_markdown_table_has_equal_rows_whatever_the_names(tmp_path):
    results = make_results()
    variants = results['experiment']['variants']
    variants['a|b `c` <i>'] = variants.pop('additive')
    results['experiment']['published'] = []
    table = text.markdown_table(analyzed(tmp_path, results).tables[0])
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()}) == 1
    assert '``a\\|b `c` <i>``' in table


@pytest.mark.parametrize(
    ('name', 'markdown'), [('a*b_c', '`a*b_c`'), ('`', '`` ` ``'), ('a|b', '`a\\|b`'), ('', '')]
)
def test_code_of_markdown_is_literal(name, markdown):
    assert text.code(name) == markdown


def test_latex_is_escaped_and_whole(out, report):
    tables = (out / 'tables.tex').read_text()
    assert r'window(8) \textless{}b\textgreater{}\& \textquotedbl{}x\textquotedbl{}\_y\$' in tables
    for tabular in re.findall(r'\\begin{tabular}{([lr]+)}(.*?)\\end{tabular}', tables, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if line.endswith(r'\\')]
        assert len(lines) == 7
        assert {len(re.findall(r'(?<!\\)&', line)) + 1 for line in lines} == {len(tabular[0])}
    assert text.latex_escape('[a]') == '{}[a]'  # else a bracket after \\ would be a length
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
    ],
)
def test_numbers_have_the_digits_that_mean_something(said, expected):
    assert said == expected


# --- The page -------------------------------------------------------------------------------------


class Outline(html.parser.HTMLParser):
    """The tags of a page, and whether each is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for key, value in attributes if key in ('src', 'href')]
        if tag not in ('meta', 'link', 'input', 'br', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)


def test_the_page_is_whole_and_asks_for_nothing_outside(out):
    content, outline = (out / 'report.html').read_text(), Outline()
    outline.feed(content)
    assert outline.open == []
    assert 'b' not in outline.seen  # the tag in a variant's name is text
    assert all(link.startswith(('#', 'data:')) for link in outline.links)
    assert 'http' not in content.replace('http-equiv', '').replace('http://www.w3.org/2000/svg', '')


def test_names_cannot_end_the_script(tmp_path):
    results = make_results()
    evil = '</script><script>alert(1)</script>'
    results['experiment']['variants'][evil] = results['experiment']['variants'].pop('additive')
    results['experiment']['published'] = []
    content = page(analyze(write_root(tmp_path / 'root', results)))
    assert evil not in content
    data = re.search('id="curves-data">(.*?)</script>', content, re.DOTALL)[1]
    assert evil in json.loads(data)['variants']


DRIVER = """<script>
const said = {errors: []};
addEventListener('error', event => said.errors.push(event.message));
const table = document.querySelector('table.sortable');
const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
const press = title => [...table.querySelectorAll('th button')].find(b => b.textContent === title).click();
said.start = order();
for (const turn of ['rising', 'lower_is_better', 'again']) { press('mean ± sd [95%]'); said[turn] = order(); }
press('p (Holm)');
said.p = order();
const chart = document.querySelector('.chart'), plot = chart.querySelector('.plot');
const paths = () => plot.querySelectorAll('path').length;
said.paths = paths();
chart.querySelector('.seeds').click();
said.means = paths();
[...chart.querySelectorAll('.legend button')].find(b => b.textContent.startsWith('linear')).click();
said.toggled = paths();
const box = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 60}));
const inside = (a, b) => a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom;
said.inside = inside(chart.querySelector('.tip').getBoundingClientRect(), chart.getBoundingClientRect());
said.tip = [...chart.querySelectorAll('.tip div')].map(line => line.textContent);
chart.querySelector('select').value = 'train loss';
chart.querySelector('select').dispatchEvent(new Event('change'));
for (const name of ['.log', '.late']) chart.querySelector(name).click();
said.other = paths();
const slider = document.querySelector('.probed input');
slider.value = 0;
slider.dispatchEvent(new Event('input'));
said.step = document.querySelector('.probed output').textContent;
said.maps = [...document.querySelectorAll('.heads')].filter(map => !map.hidden).map(map => map.dataset.step);
said.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const told = {id: 'said', textContent: JSON.stringify(said)};
document.body.replaceChildren(Object.assign(document.createElement('pre'), told));
</script>"""


def test_the_page_works_in_a_browser(out, report, tmp_path):
    browser = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    if browser is None:
        pytest.skip('no chromium is installed')
    copy = tmp_path / 'report.html'
    copy.write_text((out / 'report.html').read_text().replace('</body>', DRIVER + '</body>'))
    command = [
        browser,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--enable-logging=stderr',
        '--v=0',
        f'--user-data-dir={tmp_path / "profile"}',
        '--window-size=1280,900',
        '--dump-dom',
        copy.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert [line for line in run.stderr.splitlines() if 'CONSOLE' in line] == []
    said = json.loads(html.unescape(re.search('<pre id="said">(.*)</pre>', run.stdout)[1]))
    assert said['errors'] == []
    means = {row.variant: row.summary.mean for row in report.tables[0].rows if row.values}
    rising = sorted(means, key=means.get)
    assert said['start'] == said['again'] == list(MEANS)
    assert said['rising'] == [*rising, 'lost']
    assert said['lower_is_better'][0] == rising[-1]
    assert said['lower_is_better'][-1] == 'lost'  # what has no number stays at the end
    assert said['p'][0] == 'additive'  # < 0.0001 is a number too
    runs = 5 + 4 + 5 + 5
    assert (said['paths'], said['means'], said['toggled'], said['other']) == (runs + 4, 4, 3, 3)
    last = report.curves['validation bleu']['softmax'].mean[-1][1]
    assert said['tip'][0] == 'step 400'
    assert f'softmax{last:#.4g}' in said['tip']
    assert said['inside']
    assert not any(line.startswith('linear') for line in said['tip'])
    assert (said['step'], said['maps']) == ('step 200', ['200'])
    assert said['wide'] <= 0  # tables scroll in their own boxes


# --- README files ---------------------------------------------------------------------------------

PLACE = '# A\n\n<!-- begin report: results_made_up.json -->\nold\n<!-- end report -->\n\nafter\n'


@pytest.fixture
def experiments(tmp_path):
    (tmp_path / 'experiments' / 'made_up').mkdir(parents=True)
    write_file(tmp_path / 'experiments' / 'made_up' / 'results_made_up.json', make_results())
    (tmp_path / 'experiments' / 'made_up' / 'results_of_one_run.json').write_text('{"test": 1}')
    (tmp_path / 'experiments' / 'made_up' / 'README.md').write_text(PLACE)
    (tmp_path / 'README.md').write_text('<!-- begin reproduce -->\nold\n<!-- end reproduce -->\n')
    return tmp_path / 'experiments'


def test_report_writes_the_table_of_a_readme(experiments):
    directory = experiments / 'made_up'
    command = [
        'report',
        str(directory / 'results_made_up.json'),
        f'--readme={directory / "README.md"}',
    ]
    assert main(command) == 0
    written = (directory / 'README.md').read_text()
    assert text.markdown_table(analyze(directory / 'results_made_up.json').tables[0]) in written
    assert '6 of 25 runs are missing' in written
    assert 'old' not in written
    assert written.endswith('<!-- end report -->\n\nafter\n')
    assert main(command) == 0
    assert (directory / 'README.md').read_text() == written


def test_a_readme_without_a_place_is_refused(experiments):
    directory = experiments / 'made_up'
    (directory / 'README.md').write_text('nothing')
    with pytest.raises(ConfigError, match='no place for the table'):
        readme.update(directory / 'README.md', directory / 'results_made_up.json')
    with pytest.raises(ConfigError, match='name a README beside'):
        readme.update(experiments.parent / 'README.md', directory / 'results_made_up.json')


def test_the_reproduce_table_has_a_row_for_each_committed_result(experiments):
    readme.main(experiments.parent / 'README.md')
    written = (experiments.parent / 'README.md').read_text()
    [line] = [line for line in written.splitlines() if 'made_up' in line]
    assert '`linear` 24.9 against `softmax` 25.8' in line  # the largest difference in the paper
    assert 'worse, agrees' in line
    assert (
        '`transformer-jax ablate experiments/made_up/table1.py:small --root=DIR --seeds=5`' in line
    )
    assert '(experiments/made_up/results_made_up.json)' in line
    assert 'old' not in (experiments / 'made_up' / 'README.md').read_text()


def test_without_results_the_reproduce_table_says_so(tmp_path):
    assert readme.reproduce('<!-- begin reproduce -->\n<!-- end reproduce -->', tmp_path) == (
        '<!-- begin reproduce -->\nNo results of an ablation are committed yet.\n<!-- end reproduce -->'
    )


@pytest.mark.parametrize(
    'path',
    [ROOT / 'README.md', *sorted((ROOT / 'experiments').glob('*/README.md'))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_committed_tables_are_those_of_their_results(path):
    page = path.read_text()
    fresh = (
        readme.reproduce(page, ROOT / 'experiments')
        if path.parent == ROOT
        else readme.updated(page, path.parent)
    )
    assert fresh == page, f'{path} is stale: run make docs'


def test_every_committed_result_has_its_place_in_a_readme():
    assert readme.REPRODUCE.search((ROOT / 'README.md').read_text())
    for path in readme.committed(ROOT / 'experiments'):
        assert f'<!-- begin report: {path.name} -->' in (path.parent / 'README.md').read_text()


# --- The command ----------------------------------------------------------------------------------


def test_the_command_writes_into_the_root_or_beside_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, 'draw', lambda report, out: [])  # takes seconds
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

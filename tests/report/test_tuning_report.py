"""What a report says of tuning: the choices, edges, ties, failures and seconds."""

import csv
import io

import pytest
from helpers.made_up_ablation import make_results, write_file

from transformer_jax.report.analysis import analyze
from transformer_jax.report.csv_tables import tries_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.latex import latex_report
from transformer_jax.report.markdown import markdown_report
from transformer_jax.report.short_tables import short_tables
from transformer_jax.report.tuning import tuning_heads, tuning_notes, tuning_rows
from transformer_jax.report.tuning_figures import best_scores, tuning_figures
from transformer_jax.report.write import write_report

RATE, DROP = 'optim.learning_rate', 'model.dropout'
TUNE = {
    'values': {RATE: [0.001, 0.01], DROP: [0.0, 0.2]},
    'metric': {
        'name': 'loss',
        'split': 'validation',
        'checkpoint': '',
        'length': 0,
        'label': 'validation loss',
        'lower_is_better': True,
    },
    'seeds': [1_000_000],
}


def make_choice(scores, failed='') -> dict:
    """Make the content of a tuning.json; a score of None has failed."""
    pairs = [(rate, drop) for rate in TUNE['values'][RATE] for drop in TUNE['values'][DROP]]
    tries = [
        {
            'values': {RATE: rate, DROP: drop},
            'score': score,
            'runs': [
                {
                    'seed': 1_000_000,
                    'score': score,
                    'failed': failed if score is None else '',
                    'wall_seconds': 30.0,
                }
            ],
        }
        for (rate, drop), score in zip(pairs, scores, strict=True)
    ]
    best = min((each for each in tries if each['score'] is not None), key=lambda t: t['score'])
    return {
        'tune': TUNE,
        'config': {},
        'chosen': best['values'],
        'score': best['score'],
        'tries': tries,
    }


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    results = make_results()
    experiment = results['experiment']
    choices = {
        'softmax': make_choice([1.5, 1.25, 1.75, 2.0]),
        'linear': make_choice([1.5, None, 1.0, 2.0], 'step 3: loss <nan>'),
        'additive': make_choice([1.5, 1.5, 1.75, 2.0]),
        'window': make_choice([1.5, 1.5, 1.75, 1.25]),
    }
    experiment['tune'] = TUNE
    for entry in experiment['variants'].values():
        if entry['folder'] in choices:
            entry['tuning'] = choices[entry['folder']]
    return write_file(tmp_path_factory.mktemp('tuned') / 'results.json', results)


@pytest.fixture(scope='module')
def tuned(path):
    return analyze(path)


def test_the_table_has_the_choice_and_every_try(tuned):
    pairs = [f'{RATE}={rate}, {DROP}={drop}' for rate in (0.001, 0.01) for drop in (0.0, 0.2)]
    assert tuning_heads(tuned.experiment) == ('variant', 'chosen', 'validation loss', *pairs)
    rows = tuning_rows(tuned.experiment)
    assert rows[:2] == [
        ['softmax, same as softmax', pairs[1], '1.25', '1.5', '✓ 1.25', '1.75', '2'],
        ['linear', pairs[2], '1', '1.5', '✗ failed', '✓ 1', '2'],
    ]


def test_the_notes_say_what_to_mind(tuned):
    equal, edges, ties, failed, untuned, seconds = tuning_notes(tuned.experiment)
    assert equal == (
        f'Every variant had the same 4 tries ({RATE}: 0.001, 0.01; {DROP}: 0.0, 0.2). The best was '
        'chosen by validation loss (less is better), one seed that no table has, before any run of '
        'a table.'
    )
    assert edges.startswith('⚠ The best value lies at an edge of those that were tried')
    assert f'linear ({RATE}=0.01 is the largest of the values tried)' in edges  # dropout 0 is none
    assert ties == 'Several tries share the best score, and the first was chosen: additive.'
    assert failed == (
        'Tries that failed, which count as the worst: linear, optim.learning_rate=0.001, '
        'model.dropout=0.2, seed 1000000: step 3: loss <nan>.'
    )
    assert untuned == 'Not tuned yet: lost.'
    assert seconds == 'The 16 runs of tuning took 8.0 min in all.'


def test_every_form_of_a_report_has_it(tuned, path, report):
    page, text = html_report(tuned), markdown_report(tuned)
    assert '<h2 id="tuning">Tuning</h2>' in page
    assert 'loss &lt;nan&gt;' in page
    assert '## Tuning' in text
    assert '| `linear` | `optim.learning_rate=0.01, model.dropout=0.0` | 1 |' in text
    assert '% Every variant had the same 4 tries' in latex_report(tuned)
    assert 'Every variant had the same 4 tries' in short_tables(tuned)
    files = {file.name for file in write_report(path, path.parent / 'report')}
    assert {'tries.csv', 'tuning-model.dropout.png', 'tuning-optim.learning_rate.png'} <= files
    for untuned in (html_report(report), markdown_report(report), latex_report(report)):
        assert 'tried' not in untuned
        assert 'id="tuning"' not in untuned


def test_every_try_is_in_the_csv(tuned):
    rows = [*csv.DictReader(io.StringIO(tries_csv(tuned)))]
    assert len(rows) == 16
    assert rows[1] == {
        'variant': 'softmax, same as softmax',
        RATE: '0.001',
        DROP: '0.2',
        'seed': '1000000',
        'validation loss': '1.25',
        'seconds': '30.0',
        'chosen': 'yes',
        'failed': '',
    }
    assert (rows[5]['validation loss'], rows[5]['failed']) == ('', 'step 3: loss <nan>')


def test_a_curve_has_the_best_over_the_other_keys(tuned):
    choice = make_choice([1.5, None, 1.0, 2.0])
    assert best_scores(choice, RATE, lower_is_better=True) == [(0.001, 1.5), (0.01, 1.0)]
    assert best_scores(choice, DROP, lower_is_better=False) == [(0.0, 1.5), (0.2, 2.0)]
    figures = tuning_figures(tuned.experiment)
    assert [title for title, _ in figures.values()] == [
        f'tuning: loss (validation) over {key}, best over the other keys' for key in (RATE, DROP)
    ]
    [axes] = figures[RATE][1].axes
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert lines[:2] == [[[0.001, 1.25], [0.01, 1.75]], [[0.001, 1.25]]]  # a curve and its ring
    assert axes.get_xscale() == 'log'

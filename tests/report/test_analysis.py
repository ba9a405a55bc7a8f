"""What a report says: means, verdicts, gaps, costs and the numbers of a paper."""

import re

import numpy as np
import pytest
from helpers.made_up_ablation import MEANS, SEEDS, analyzed, folder, make_results, row_of

from transformer_jax.ablation.scales import SCALES
from transformer_jax.ablation.statistics import compare
from transformer_jax.report import sentences
from transformer_jax.report.columns import cell, table_columns
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report


def test_rows_are_means_over_sound_runs_and_name_their_number(report):
    scores = [
        run['scores']['test bleu'] for run in make_results()['runs'] if run['folder'] == 'linear'
    ]
    row = row_of(report, 'linear')
    assert (len(scores), row.planned) == (4, 5)
    assert row.summary.mean == pytest.approx(np.mean(scores))
    assert row.summary.sd == pytest.approx(np.std(scores, ddof=1))
    assert cell(report.tables[0], row, table_columns(report.tables[0])[1]).text == '4 of 5'


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
        row_of(report, 'additive').comparison
        == compare(values, 'softmax', False, SCALES['percent'])['additive']
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
    written = markdown_report(found)
    assert (row.summary.low is None) == (row.verdict == 'untested') == (seeds == 1)
    assert ('No interval from 1 seed, it needs two: all variants' in written) == (seeds == 1)
    assert ('a test needs two seeds' in written) == (seeds == 1)
    assert ('a chance of' in ' '.join(sentences.notes(table))) == (seeds == 2)
    assert (
        re.findall(r'\bnan\b', html_report(found).replace('&lt;nan&gt;', '').replace('isNaN', ''))
        == []
    )


def test_nothing_sound_at_all_is_still_a_report(tmp_path):
    results = make_results(lost=[(folder(name), seed) for name in MEANS for seed in SEEDS])
    found = analyzed(tmp_path, results)
    assert {row.verdict for row in found.tables[0].rows} == {'missing'}
    assert '25 of 25 runs are missing' in markdown_report(found)
    assert '25 of 25 runs are missing' in html_report(found)


def test_the_paper_stands_beside_ours_with_direction_and_rank(report):
    [paper] = report.tables[0].papers
    assert report.tables[1].papers == ()
    assert paper.sides == {'linear': 'agrees', 'additive': 'contradicts'}
    assert (paper.agreement.variants, paper.agreement.directions, paper.agreement.agreeing) == (
        3,
        2,
        1,
    )
    note = next(note for note in sentences.notes(report.tables[0]) if 'Kendall' in note)
    assert note.startswith('Somebody et al. (2020), Table 1, BLEU on newstest: 1 of 2 variants are')
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
    assert 'over the 60 sentences that were scored' in ' '.join(sentences.notes(report.tables[0]))


def test_costs_stand_in_every_row_with_what_was_matched(report):
    cells = {
        column.key: cell(report.tables[0], row_of(report, 'linear'), column)
        for column in table_columns(report.tables[0])
    }
    assert cells['params'].text == '1.23M'
    assert cells['params'].remarks == ('1.00M non-emb.', 'd_ff 240 (−0.12%)')
    measured = [cells[key].text for key in ('flops', 'step', 'memory', 'wall')]
    assert measured == ['2.35M', '15.9 ms', '118 MiB', '5.3 min']


def test_only_keys_that_differ_are_shown(report):
    keys, rows = sentences.config_differences(report)
    assert keys == ['model.attention']
    assert rows[1] == ['linear', 'linear']


def test_the_file_alone_makes_the_same_tables(report, tmp_path):
    found = analyzed(tmp_path, make_results())
    assert [row.comparison for row in found.tables[0].rows] == [
        row.comparison for row in report.tables[0].rows
    ]
    assert found.curves == {}
    assert found.heads == {}

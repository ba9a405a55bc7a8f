"""MFU, goodput and decoding states in a report, where runs have them."""

import pytest
from helpers.made_up_ablation import make_results

from transformer_jax.report.analysis import analyze
from transformer_jax.report.csv_tables import summary_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report
from transformer_jax.storage.json_text import to_json


@pytest.fixture
def report_of(tmp_path):
    def write(**facts):
        results = make_results()
        for run in results['runs']:
            if run['folder'] == 'softmax':
                run.update(facts)
        path = tmp_path / 'results.json'
        path.write_text(to_json(results))
        return analyze(path)

    return write


def test_they_are_shown(report_of):
    report = report_of(mfu=0.4123, goodput=0.957)
    for text in (markdown_report(report), html_report(report)):
        assert 'MFU' in text
        assert '41.2%' in text
        assert '95.7%' in text
    heads, line, *_ = (row.split(',') for row in summary_csv(report).splitlines())
    assert heads[-2:] == ['mfu', 'goodput']
    assert line[0] != 'softmax' or [float(cell) for cell in line[-2:]] == [0.4123, 0.957]


def test_an_accelerator_without_a_known_peak_has_goodput_alone(report_of):
    text = markdown_report(report_of(mfu=None, goodput=0.9))
    assert 'goodput' in text
    assert 'MFU' not in text


def test_the_decoding_state_is_shown_with_its_length(report_of):
    report = report_of(state_bytes=3 * 2**19, state_length=1024)
    for text in (markdown_report(report), html_report(report)):
        assert 'decoding state' in text
        assert '1.50 MiB' in text
    assert 'at 1,024 tokens' in markdown_report(report)
    heads, *lines = (row.split(',') for row in summary_csv(report).splitlines())
    assert heads[-2:] == ['state_bytes', 'state_length']
    found = {line[0]: line[-2:] for line in lines}
    assert list(map(float, found['softmax'])) == [3 * 2**19, 1024]
    assert found['additive'] == ['', '']


def test_models_that_do_not_decode_have_no_column_for_it(report_of):
    report = report_of(state_bytes=None, state_length=None)
    assert 'decoding state' not in markdown_report(report)
    assert 'state_bytes' not in summary_csv(report)


def test_results_of_earlier_versions_have_no_columns_for_them(report_of):
    report = report_of()
    assert 'goodput' not in markdown_report(report)
    assert 'decoding state' not in markdown_report(report)
    assert summary_csv(report).splitlines()[0].endswith('wall_seconds')

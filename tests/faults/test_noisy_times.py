"""Step times that scatter: they carry their spread, and a table of such times says so."""

import pytest
from helpers.made_up_ablation import make_results

from transformer_jax.profiling.measure import relative_spread
from transformer_jax.report.analysis import analyze
from transformer_jax.report.csv_tables import summary_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report
from transformer_jax.storage.json_text import to_json


@pytest.mark.parametrize(
    ('seconds', 'spread'),
    [
        ([1.0, 1.0, 1.0], 0.0),
        ([1.0, 2.0, 3.0], 0.5),
        ([2.0, 4.0, 6.0], 0.5),  # in any unit
        ([1.0, 1.0, 1.0, 1.0, 99.0], 0.0),  # a single slow step is no spread
        ([1.0, 1.0, 2.0, 3.0, 3.0], 1.0),
        ([0.9, 1.0, 1.0, 1.1], 0.05),
    ],
)
def test_the_spread_is_that_of_the_quartiles(seconds, spread):
    assert relative_spread(seconds) == pytest.approx(spread)


@pytest.mark.parametrize(
    ('spreads', 'shown', 'warned'),
    [
        ([], '', False),  # results of earlier versions
        ([None], '', False),
        ([0.02], 'spread 2%', False),
        ([0.1], 'spread 10%', False),
        ([0.02, 0.34], 'spread 34%', True),  # of any run
        ([0.5], 'spread 50%', True),
    ],
)
def test_a_table_of_noisy_times_is_marked(tmp_path, spreads, shown, warned):
    results = make_results()
    own = [run for run in results['runs'] if run['folder'] == 'softmax']
    for run, spread in zip(own, spreads, strict=False):
        run['step_spread'] = spread
    path = tmp_path / 'results.json'
    path.write_text(to_json(results))
    report = analyze(path)
    for text in (markdown_report(report), html_report(report)):
        assert shown in text
        assert ('The step times are noisy' in text) == warned
    if shown:
        assert 'step_spread' in summary_csv(report).splitlines()[0]

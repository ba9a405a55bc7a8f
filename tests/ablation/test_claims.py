"""Claims: what they refuse, how they end, and how a change of them is recorded."""

import pytest
from helpers.made_up_ablation import analyzed, make_results

from transformer_jax.ablation import Claim
from transformer_jax.ablation.claims import Outcome, derive, judge, read_claim, record_claims
from transformer_jax.ablation.statistics import Comparison
from transformer_jax.errors import ConfigError
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report

NOW = {'commit': 'abcdef0123', 'date': '2026-11-20', 'seeds': 3, 'runs': 0}


def claim(**changes):
    return Claim('a claim', **{'metric': 'test bleu', 'variant': 'linear'} | changes)


def found(low, high, verdict, needed=None, equality=None):
    seeds = {'seeds_needed': needed, 'seeds_for_equality': equality}
    return Comparison(verdict, (low + high) / 2, low, high, **seeds)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'margin': 0.0}, 'margin=0 must be positive'),
        ({'margin': -1.0}, 'margin=-1 must be positive'),
        ({'direction': 'equal'}, "direction='equal' needs a margin"),
        ({'direction': 'up'}, "direction='up', it takes better, worse, equal"),
        ({'over': 'median'}, "over='median', it takes slope, range, mean, excess"),
        ({'variant': ()}, 'needs a text and a variant'),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        claim(**changes)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'metric': 'test blue'}, "'a claim': metric='test blue' is none, it takes test bleu"),
        ({'variant': 'linnear'}, "'linnear' is no variant"),
        ({'against': 'nobody'}, "'nobody' is no variant"),
        ({'over': 'slope', 'variant': 'line', 'against': 'linear'}, "'linear' is no line"),
        ({'over': 'slope', 'variant': 'line'}, 'needs against='),
    ],
)
def test_a_claim_names_what_there_is(changes, message):
    with pytest.raises(ConfigError, match=message):
        claim(**changes).check_names(['linear', 'softmax'], ['line'], ['test bleu'])


def test_a_claim_ends_by_its_intervals():
    better, open_one = found(1, 3, 'better'), found(-1, 3, 'not distinguishable', 8)
    assert judge(claim(), [better]) == (Outcome.SUPPORTED, None)
    assert judge(claim(direction='worse'), [better]) == (Outcome.CONTRADICTED, None)
    assert judge(claim(margin=4.0), [better]) == (Outcome.EQUIVALENT, None)
    assert judge(claim(), [better, open_one]) == (Outcome.UNDECIDED, 8)
    assert judge(claim(), [better, found(-3, -1, 'worse')]) == (Outcome.CONTRADICTED, None)
    equal = claim(direction='equal', margin=0.5)
    assert judge(equal, [better]) == (Outcome.CONTRADICTED, None)
    assert judge(equal, [found(-0.1, 0.4, 'not distinguishable')]) == (Outcome.SUPPORTED, None)
    assert judge(claim(direction='equal', margin=2.0), [better])[0] == Outcome.UNDECIDED
    assert judge(claim(), [Comparison('not tested')]) == (Outcome.UNDECIDED, None)
    across = found(0.2, 0.8, 'worse', 6, 86)  # it differs from 0: the margin is what is open
    assert judge(equal, [across]) == (Outcome.UNDECIDED, 86)


def test_a_line_stands_for_its_points_and_a_slope_is_of_each_seed():
    points = {'a1': ['a', 1], 'a4': ['a', 4], 'b1': ['b', 1], 'b4': ['b', 4]}
    experiment = {'variants': points, 'reference': 'b1', 'axis': {'points': points}}
    assert claim(variant='a').pairs(experiment) == [('a1', 'b1'), ('a4', 'b1')]
    assert claim(variant='a', against='b').pairs(experiment) == [('a1', 'b1'), ('a4', 'b4')]
    values = {'a1': {0: 1.0, 1: 2.0}, 'a4': {0: 5.0, 1: 2.0}, 'b1': {0: 1.0}, 'b4': {1: 1.0}}
    slopes = derive('slope', {'points': points}, values)
    assert derive('excess', {'points': points}, values)['a'] == {0: 2.0, 1: 0.0}
    assert slopes['b'] == {}
    assert slopes['a'] == pytest.approx({0: 2.0, 1: 0.0})


def test_what_was_recorded_stays_and_a_change_is_shown():
    first = record_claims([claim(), claim(margin=1.0)], [], NOW)
    later = NOW | {'date': '2026-12-01', 'runs': 7}
    again = record_claims([claim(), claim(margin=2.0)], first, later)
    assert [entry['stated']['runs'] for entry in again] == [0, 7, 0]
    assert [entry['withdrawn'] for entry in again] == [False, False, True]
    assert record_claims([claim(), claim(margin=2.0)], again, NOW) == again


def test_what_readers_are_told_may_change_and_is_no_other_claim():
    plain = claim(variant=('linear',))
    first = record_claims([plain], [], NOW)
    told = claim(variant=('linear',), source='Press et al. 2022, Figure 1', doubt='a larger model')
    [entry] = record_claims([told], first, NOW | {'runs': 7})
    assert (entry['stated']['runs'], entry['withdrawn']) == (0, False)
    assert read_claim(entry) == told
    del entry['source'], entry['doubt']  # as earlier versions wrote it
    assert read_claim(entry) == plain


def test_a_report_has_the_claims_with_when_they_were_stated(tmp_path):
    results = make_results()
    claims = [
        claim(direction='worse'),
        claim(variant='additive', against='linear', margin=0.1),
        claim(variant='window(8) <b>& "x"_y$', direction='equal', margin=2.0),
        claim(variant='same as softmax', against='additive'),
    ]
    old = record_claims([claim(margin=1.0)], [], NOW)
    results['experiment']['claims'] = record_claims(claims, old, NOW | {'runs': 4})
    report = analyzed(tmp_path, results)
    outcomes = [result.outcome for result in report.claims]
    assert outcomes == ['supported', 'supported', 'supported', 'contradicted', None]
    written = markdown_report(report)
    assert 'after 4 runs, 2026-11-20 at abcdef0; 3 seeds, now 5' in written
    assert 'withdrawn' in written
    assert '✓ supported' in html_report(report)
    assert '<h2 id="claims">' in html_report(report)

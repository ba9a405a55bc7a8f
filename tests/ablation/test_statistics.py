"""Comparisons over seeds: against SciPy, permutation tests, and simulated tables."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from transformer_jax.ablation.bootstrap import holm
from transformer_jax.ablation.many_to_one import LEVEL, balanced, equal_tables
from transformer_jax.ablation.power import power, seeds_to_find
from transformer_jax.ablation.scales import SCALES
from transformer_jax.ablation.statistics import compare, compare_pairs, summarize

RNG = np.random.default_rng
FALLING, RISING = {'lower_is_better': True}, {'lower_is_better': False}


def table(values):
    """Turn a matrix variants × seeds into {'v0': {0: …, 1: …}, …}; v0 is the reference."""
    return {
        f'v{index}': dict(enumerate(row))
        for index, row in enumerate(np.asarray(values, float).tolist())
    }


@pytest.fixture(scope='module')
def simulation():
    path = Path(__file__).parents[2] / 'benchmarks' / 'simulated_tables.py'
    spec = importlib.util.spec_from_file_location('simulated_tables', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(ours, theirs, **options):
    """Compare two lists of runs that share no seeds."""
    values = {
        'base': dict(enumerate(theirs)),
        'new': {100 + seed: value for seed, value in enumerate(ours)},
    }
    return compare(values, 'base', **RISING | options)['new']


# --- Critical values and tests --------------------------------------------------------------------


@pytest.mark.parametrize('seeds', [3, 5, 10])
def test_two_variants_whose_seeds_are_blocks_are_tested_by_the_paired_t_test(seeds):
    runs = 3 * RNG(seeds).normal(size=seeds) + RNG(1).normal(size=(2, seeds)) / 10
    runs[1] += 0.2
    found, theirs = compare(table(runs), 'v0', **RISING)['v1'], stats.ttest_rel(runs[1], runs[0])
    assert found.test == 'moderated, blocks'
    assert found.p == found.adjusted == pytest.approx(theirs.pvalue, abs=0.006)
    ends = theirs.confidence_interval()  # that of 20,000 tables is 1.5% off for 3 seeds
    assert found.high - found.low == pytest.approx(ends.high - ends.low, rel=0.05)
    assert found.high + found.low == pytest.approx(ends.high + ends.low)


def test_with_many_runs_the_critical_value_is_dunnetts():
    seeds, variants = 60, 5
    layout = balanced(seeds, tuple((variant, 0) for variant in range(1, variants)))
    rng = RNG(0)
    runs = rng.normal(size=(variants, seeds)) + np.array([0, 0.5, 0.1, -0.45, 0])[:, None]
    found = compare(table(runs), 'v0', **RISING)
    theirs = stats.dunnett(*runs[1:], control=runs[0], random_state=0)
    ours = [row.adjusted for row in found.values()]
    np.testing.assert_allclose(ours, theirs.pvalue, atol=0.03)
    low, high = theirs.confidence_interval(0.95)
    np.testing.assert_allclose([row.low for row in found.values()], low, atol=0.05)
    np.testing.assert_allclose([row.high for row in found.values()], high, atol=0.05)
    assert equal_tables(layout).critical >= 1


def test_the_critical_value_has_five_percent_of_equal_tables_above_it():
    layout = balanced(3, ((1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)))
    equal = equal_tables(layout)
    assert equal.p_value(equal.critical) == pytest.approx(LEVEL, abs=1e-3)
    assert equal.critical_alone[0] < equal.critical


def test_a_verdict_is_a_simultaneous_interval_beside_zero():
    rng = RNG(5)
    for _ in range(30):
        runs = rng.normal(size=(6, 3)) + rng.choice([0.0, 3.0], (6, 1))
        for row in compare(table(runs), 'v0', **RISING).values():
            apart = row.low > 0 or row.high < 0
            assert apart == (row.verdict in ('better', 'worse')) == (row.adjusted <= LEVEL)
            assert row.low <= row.alone_low <= row.alone_high <= row.high
            assert row.p <= row.adjusted


def test_each_variant_is_compared_with_its_own_reference():
    values = table(RNG(4).normal(size=(6, 4)) + np.arange(6)[:, None] ** 2)
    references = {f'v{v}': f'v{v - v % 3}' for v in range(6)}
    found = compare(values, references, **RISING)
    assert list(found) == ['v1', 'v2', 'v4', 'v5']
    for name, row in found.items():
        means = [np.mean([*values[each].values()]) for each in (name, references[name])]
        assert row.difference == pytest.approx(means[0] - means[1])


def test_any_two_variants_can_be_one_of_the_pairs():
    values = table(RNG(4).normal(size=(4, 5)) + np.array([[0], [0], [9], [9]]))
    found = compare_pairs(values, [('v1', 'v0'), ('v2', 'v1'), ('v3', 'v0')], **FALLING)
    assert [row.verdict for row in found.values()] == ['not distinguishable', 'worse', 'worse']


def test_less_is_better_where_the_metric_falls():
    assert pair([1, 1.1, 0.9], [5, 5.1, 4.9], lower_is_better=True).verdict == 'better'
    assert pair([1, 1.1, 0.9], [5, 5.1, 4.9]).verdict == 'worse'
    assert pair([1, 1.1, 0.9], [1, 1.1, 0.95]).verdict == 'not distinguishable'


# --- Error rates and power: benchmarks/simulated_tables.py has them all ---------------------------


@pytest.mark.slow
@pytest.mark.parametrize(('variants', 'seeds'), [(2, 3), (5, 3), (18, 3), (5, 5)])
def test_false_verdicts_are_rare_even_where_spreads_differ(simulation, variants, seeds):
    tables = 4000
    one, unequal = np.ones(variants), simulation.spreads(variants)
    noise = 3 * math.sqrt(0.05 * 0.95 / tables)
    for correlation in (0.0, 0.8):
        runs = simulation.draw(one, seeds, correlation, tables)
        assert simulation.false_verdicts(runs) < 0.05 + noise
        assert simulation.false_equivalences(runs, one) < 0.05 + noise
    for name, spread in unequal.items():
        runs = simulation.draw(spread, seeds, tables=tables)
        assert simulation.false_verdicts(runs) < 0.08 + noise, name
        assert simulation.false_equivalences(runs, spread) < 0.08 + noise, name


@pytest.mark.slow
def test_power_is_three_times_that_of_tests_pair_by_pair(simulation):
    runs = simulation.draw(np.ones(18), 3, tables=20_000, seed=11)
    runs[:, 1] += 2
    ours = simulation.judge(runs)[0][:, 0].mean()
    assert ours == pytest.approx(power(2, 3, 18), abs=0.01)
    assert ours > 3 * 0.0715  # of Welch's test with Holm's correction, in many such tables


def test_power_rises_with_seeds_and_falls_with_variants():
    assert 0.19 < power(2, 3, 18) < power(2, 5, 18) < power(2, 5, 5) < 0.75
    assert power(-2, 5, 5) == power(2, 5, 5)
    assert power(0, 5, 5) == pytest.approx(LEVEL / 8, abs=0.005)  # on one side, of 4 comparisons


def test_the_seeds_that_would_decide_find_it():
    layout = balanced(3, ((1, 0), (2, 0)))
    needed = seeds_to_find(1.0, layout, 0)
    assert power(1.0, needed, 3) >= 0.75 > 0.7 > power(1.0, needed // 2, 3)
    assert seeds_to_find(0.01, layout, 0) is None


# --- Scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', SCALES)
def test_a_scale_is_undone_by_its_inverse(name):
    scale, values = SCALES[name], np.array([0.01, 0.4, 0.9, 1.0])
    np.testing.assert_allclose(scale.inverse(scale.forward(values)), values)
    assert scale.shift(0.4, scale.forward(values) - scale.forward(np.float64(0.4))) == (
        pytest.approx(values - 0.4)
    )
    assert SCALES['share'].takes(np.array([0.0, 1.0]))
    assert not SCALES['log'].takes(np.zeros(1))


def test_the_arcsine_of_a_count_has_one_variance():
    for share in (0.03, 0.5, 0.97):
        values = SCALES['share'].forward(RNG(0).binomial(1000, share, 20_000) / 1000)
        assert values.var() == pytest.approx(1 / 4000, rel=0.05)


def test_no_run_varies_less_than_a_count():
    values = table([[1, 1, 1], [1, 1, 0.998], [0.99, 0.99, 0.99], [0.998, 1, 1]])
    found = compare(values, 'v0', **RISING, scale=SCALES['share'])
    assert [row.verdict for row in found.values()][::2] == ['not distinguishable'] * 2
    assert all(row.low < row.difference < row.high for row in found.values())


# --- One variant ----------------------------------------------------------------------------------


def test_a_summary_has_students_interval():
    x = [3.0, 4.5, 2.0, 7.0]
    found = summarize(dict(enumerate(x)))
    assert (found.seeds, found.mean, found.reason) == (4, np.mean(x), '')
    assert found.sd == pytest.approx(np.std(x, ddof=1))
    theirs = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    np.testing.assert_allclose([found.low, found.high], theirs)


def test_one_seed_has_no_interval_and_says_why():
    found = summarize({3: 0.5})
    assert (found.mean, found.sd, found.low, found.high) == (0.5, None, None, None)
    assert found.reason == 'no interval from 1 seed, it needs two'
    assert math.isnan(summarize({}).mean)


# --- Edge cases and errors ------------------------------------------------------------------------


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_variants_with_one_seed_are_not_tested_and_do_not_count():
    values = table([[1, 1.2, 0.9], [2, 2.1, 1.9], [1, 1.1, 1]])
    whole = compare(values, 'v0', **RISING)
    some = compare(values | {'short': {0: 3.0}, 'none': {}}, 'v0', **RISING)
    assert {name: some[name] for name in whole} == whole
    assert some['short'].verdict == some['none'].verdict == 'not tested'
    assert some['short'].reason == 'not tested with 1 seed, a test needs two'
    assert some['none'].p is some['short'].low is some['short'].detectable is None
    lone = compare(values | {'v0': {0: 1.0}}, 'v0', **RISING)
    assert {row.reason for row in lone.values()} == {
        'not tested with 1 seed of v0, a test needs two'
    }
    assert compare({'v0': {0: 1.0}}, 'v0', **RISING) == {}


def test_seeds_that_some_variants_lack_are_no_obstacle():
    runs = 5 * RNG(3).normal(size=6) + RNG(4).normal(size=(5, 6)) / 20
    values = table(runs)
    del values['v1'][2], values['v3'][5]
    found = compare(values, 'v0', **RISING)
    assert {row.test for row in found.values()} == {'moderated, blocks'}
    alone = {
        name: {s + 10 * int(name[1]): v for s, v in row.items()} for name, row in values.items()
    }
    assert {row.test for row in compare(alone, 'v0', **RISING).values()} == {'moderated'}


def test_tables_without_spread_are_told_apart_only_where_permuting_them_could():
    equal, three, five = (
        pair([0.1 + 0.2] * 5, [0.3] * 5),
        pair([1.0] * 3, [0.5] * 3),
        pair([1.0] * 5, [0.5] * 5),
    )
    assert (equal.test, equal.p, equal.verdict) == ('permutation', 1.0, 'not distinguishable')
    assert (three.p, three.verdict) == (2 / 20, 'not distinguishable')
    assert (five.p, five.verdict) == (2 / 252, 'better')
    assert five.detectable is None
    exact = stats.permutation_test(([1.0] * 3, [0.5] * 3), lambda x, y: np.mean(x) - np.mean(y))
    assert three.p == pytest.approx(exact.pvalue)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(value):
    values = table([[1, 2], [3, 4]]) | {'bad': {0: 1.0, 7: value}}
    with pytest.raises(ValueError, match=r'bad, seed 7: -?(nan|inf) is not finite'):
        compare(values, 'v0', **RISING)


def test_a_reference_that_is_no_variant_is_refused():
    with pytest.raises(ValueError, match="reference='base' is none of the variants: v0, v1"):
        compare(table([[1, 2], [3, 4]]), 'base', **RISING)


def test_power_needs_two_of_each():
    for seeds, variants in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match='two of each'):
            power(1, seeds, variants)


def test_a_constant_lead_is_not_taken_for_certainty():
    rising = np.arange(5.0)
    found = compare(table([rising, rising + 1, rising + 2]), 'v0', **RISING)
    assert {row.test for row in found.values()} == {'moderated'}
    assert all(0.05 < row.p < 1 for row in found.values())


def test_a_difference_at_its_margin_needs_more_seeds_than_one_within_or_beyond():
    rng = np.random.default_rng(0)
    means = {'a': 1.0, 'b': 1.03}
    values = {name: dict(enumerate(rng.normal(mean, 0.01, 8))) for name, mean in means.items()}
    step = float(np.mean([*values['b'].values()]) - np.mean([*values['a'].values()]))

    def needed(margin):
        pair = 'b', 'a'
        found = compare_pairs(
            values, [pair], lower_is_better=True, scale=SCALES['plain'], margins={pair: margin}
        )
        return found[pair].seeds_for_equality

    assert needed(0.2 * step) is not None
    assert needed(0.2 * step) == needed(1.8 * step)
    assert needed(0.95 * step) is None or needed(0.95 * step) > needed(0.2 * step)

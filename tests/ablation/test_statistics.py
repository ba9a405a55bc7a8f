"""Tests, intervals, verdicts and power against SciPy, Stata's examples and simulated tables."""

import math

import numpy as np
import pytest
from scipy import stats as reference_stats

from transformer_jax.ablation.power import LEVEL, power
from transformer_jax.ablation.seed_correlation import CORRELATION_LEVEL, seeds_correlate
from transformer_jax.ablation.statistics import compare, holm, summarize

RNG = np.random.default_rng


def table(values):
    """Turn a matrix variants × seeds into {'v0': {0: …, 1: …}, …}; v0 is the reference."""
    return {
        f'v{index}': dict(enumerate(row))
        for index, row in enumerate(np.asarray(values, float).tolist())
    }


def pair(ours, theirs, **options):
    """Compare two lists of runs that share no seeds, so that nothing can be paired."""
    values = {
        'base': dict(enumerate(theirs)),
        'new': {100 + seed: value for seed, value in enumerate(ours)},
    }
    return compare(values, 'base', **{'lower_is_better': False} | options)['new']


def scaled(count, mean, sd, seed):
    """Draw numbers with exactly this mean and standard deviation."""
    x = RNG(seed).normal(size=count)
    return (mean + sd * (x - x.mean()) / x.std(ddof=1)).tolist()


def along(points):
    """Map three variants at each point of an axis to the first of them, their reference."""
    return {f'v{index}': f'v{index - index % 3}' for index in range(3 * points)}


def simulated(variants, seeds, correlation=0.0, count=2000, shift=0.0, seed=0, reference='v0'):
    """Compare tables of normal runs of spread 1; only v1 is `shift` above the others."""
    rng = RNG(seed)
    common = rng.normal(size=(count, 1, seeds)) * math.sqrt(correlation)
    values = common + rng.normal(size=(count, variants, seeds)) * math.sqrt(1 - correlation)
    values[:, 1] += shift
    return [compare(table(matrix), reference, lower_is_better=False) for matrix in values]


# --- Error rates and power, over simulated tables -------------------------------------------------


@pytest.mark.parametrize(
    ('variants', 'seeds', 'correlation'),
    [
        (5, 5, 0.0),
        (5, 5, 0.8),
        pytest.param(5, 5, 0.4, marks=pytest.mark.slow),
        pytest.param(2, 5, 0.0, marks=pytest.mark.slow),
        pytest.param(9, 5, 0.0, marks=pytest.mark.slow),
        pytest.param(5, 3, 0.0, marks=pytest.mark.slow),
        pytest.param(9, 3, 0.8, marks=pytest.mark.slow),
        pytest.param(5, 10, 0.0, marks=pytest.mark.slow),
    ],
)
def test_tables_of_equal_variants_have_a_false_verdict_in_one_of_twenty(
    variants, seeds, correlation
):
    tables = simulated(variants, seeds, correlation)
    assert all(len(comparisons) == variants - 1 for comparisons in tables)
    share = np.mean(
        [
            any(row.verdict in ('better', 'worse') for row in comparisons.values())
            for comparisons in tables
        ]
    )
    assert 0.035 <= share <= 0.065


@pytest.mark.parametrize(
    ('seeds', 'correlation'),
    [
        (5, 0.0),
        pytest.param(3, 0.8, marks=pytest.mark.slow),
        pytest.param(5, 0.8, marks=pytest.mark.slow),
    ],
)
def test_so_have_tables_with_a_reference_at_each_point_of_an_axis(seeds, correlation):
    tables = simulated(9, seeds, correlation, reference=along(3))
    assert all(list(comparisons) == ['v1', 'v2', 'v4', 'v5', 'v7', 'v8'] for comparisons in tables)
    share = np.mean(
        [
            any(row.verdict in ('better', 'worse') for row in comparisons.values())
            for comparisons in tables
        ]
    )
    assert 0.035 <= share <= 0.065


@pytest.mark.parametrize(
    ('variants', 'seeds', 'shift'),
    [
        (5, 5, 2.0),
        pytest.param(2, 5, 2.0, marks=pytest.mark.slow),
        pytest.param(9, 5, 2.0, marks=pytest.mark.slow),
        pytest.param(4, 3, 3.0, marks=pytest.mark.slow),
        pytest.param(3, 2, 4.0, marks=pytest.mark.slow),
    ],
)
def test_power_is_that_of_simulated_tables(variants, seeds, shift):
    tables = simulated(variants, seeds, shift=shift, count=2500, seed=1)
    found = np.mean([comparisons['v1'].verdict == 'better' for comparisons in tables])
    assert abs(found - power(shift, seeds, variants)) < 0.03
    assert 0.05 < found < 0.95  # where a wrong power would show


def test_what_is_detectable_is_found_in_four_of_five_tables():
    comparisons = compare(
        table([scaled(5, mean, 3, seed) for seed, mean in enumerate((0, 1, 2))]),
        'v0',
        lower_is_better=False,
    )
    assert power(comparisons['v1'].detectable / 3, seeds=5, variants=3) == pytest.approx(
        0.8, abs=1e-6
    )


def test_power_is_near_that_of_the_test_with_one_spread_where_seeds_are_many():
    for shift, seeds, variants in ((0.5, 20, 2), (1.0, 20, 5), (1.0, 12, 9), (2.0, 7, 5)):
        dof, level = 2 * seeds - 2, LEVEL / (variants - 1)
        critical, noncentrality = (
            reference_stats.t.ppf(1 - level / 2, dof),
            shift / math.sqrt(2 / seeds),
        )
        exact = sum(reference_stats.nct.sf(critical, dof, side * noncentrality) for side in (1, -1))
        assert power(shift, seeds, variants) == pytest.approx(exact, abs=0.01)
        assert power(-shift, seeds, variants) == power(shift, seeds, variants)
    assert power(0, 5, 2) == pytest.approx(LEVEL, abs=0.003)


# --- The tests themselves -------------------------------------------------------------------------


def test_welchs_test_is_statas():
    """Compare with `ttest, welch` of Stata, as two sources print it.

    They are Rosetta Code and Park (2005), Comparing Group Means, page 19.
    """
    found = pair([3, 4, 1, 2.1], [490.2, 340, 433.9])
    assert (found.test, found.verdict) == ('welch', 'worse')
    np.testing.assert_allclose(
        [found.difference, found.low, found.high], [-418.8417, -607.2052, -230.4782], rtol=1e-6
    )
    found = pair(scaled(20, 3.006, 0.3001298, 0), scaled(24, 2.618333, 0.5983722, 1))
    np.testing.assert_allclose(
        [found.difference, found.low, found.high], [0.3876667, 0.1050824, 0.6702509], atol=1e-5
    )
    assert round(found.p, 4) == 0.0085


@pytest.mark.parametrize('seed', range(5))
def test_welchs_test_has_scipys_statistic_and_no_fewer_degrees_of_freedom(seed):
    rng = RNG(seed)
    x, y = rng.normal(size=5).tolist(), rng.normal(0.5, 3, size=4).tolist()
    theirs = reference_stats.ttest_ind(x, y, equal_var=False)
    found = pair(x, y)
    a, b = np.var(x, ddof=1) / 5, np.var(y, ddof=1) / 4
    dof = (a + b) ** 2 / (a**2 / 6 + b**2 / 5) - 2
    assert found.p == pytest.approx(2 * reference_stats.t.sf(abs(theirs.statistic), dof))
    assert 0.5 * theirs.pvalue < found.p < theirs.pvalue
    constant = pair(x, [0.5, 0.5, 0.5])  # only one spread: both formulas give 4 degrees of freedom
    assert constant.p == pytest.approx(reference_stats.ttest_1samp(x, 0.5).pvalue)


def test_runs_that_vary_together_are_paired():
    rng = RNG(0)
    common = rng.normal(size=5)
    values = 3 * common + rng.normal(size=(4, 5)) / 10 + np.array([[0], [0.4], [0], [-0.4]])
    comparisons = compare(table(values), 'v0', lower_is_better=False)
    for index in (1, 2, 3):
        found, theirs = (
            comparisons[f'v{index}'],
            reference_stats.ttest_rel(values[index], values[0]),
        )
        assert (found.test, found.p) == ('paired', pytest.approx(theirs.pvalue))
        np.testing.assert_allclose([found.low, found.high], [*theirs.confidence_interval()])
        gap = (values[index] - values[0]).std(ddof=1)
        critical = reference_stats.t.ppf(1 - LEVEL / 6, 4)
        noncentrality = found.detectable / gap * math.sqrt(5)
        assert reference_stats.nct.sf(critical, 4, noncentrality) == pytest.approx(0.8, abs=1e-6)
    assert [row.verdict for row in comparisons.values()] == [
        'better',
        'not distinguishable',
        'worse',
    ]
    alone = {
        name: {seed + 10 * int(name[1]): value for seed, value in runs.items()}
        for name, runs in table(values).items()
    }
    assert {row.test for row in compare(alone, 'v0', lower_is_better=False).values()} == {'welch'}


def test_a_correlation_is_shown_by_chance_as_rarely_as_said():
    for scales in ((1, 1), (1, 1, 1, 1, 1), (0.01, 1, 100, 1e4)):
        rng = RNG(len(scales))
        rows = (
            rng.normal(size=(1000, len(scales), 5)) * np.array(scales)[:, None]
            + np.array(scales)[:, None]
        )
        share = np.mean([seeds_correlate(table(row), 'v0') for row in rows])
        assert abs(share - CORRELATION_LEVEL) < 3 * math.sqrt(CORRELATION_LEVEL / 1000)


def test_the_correlation_of_two_variants_is_pearsons():
    for seed in range(200):
        rows = RNG(seed).normal(size=(2, 5)) + 1.5 * RNG(seed + 1000).normal(size=(1, 5))
        p = reference_stats.pearsonr(*rows, alternative='greater').pvalue
        if abs(p - CORRELATION_LEVEL) > 0.005:
            assert seeds_correlate(table(rows), 'v0') == (p < CORRELATION_LEVEL)
    assert not seeds_correlate(
        table([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]), 'v0'
    )  # a negative one has no cause


def test_each_variant_is_compared_with_its_own_reference():
    values = RNG(4).normal(size=(6, 4)) + np.arange(6)[:, None] ** 2
    found = compare(table(values), along(2), lower_is_better=False)
    for index, home in ((1, 0), (2, 0), (4, 3), (5, 3)):
        row = found[f'v{index}']
        assert row.difference == pytest.approx(values[index].mean() - values[home].mean())
        assert row.p == compare(table(values), f'v{home}', lower_is_better=False)[f'v{index}'].p
    assert [row.adjusted for row in found.values()] == holm([row.p for row in found.values()])
    lost = compare(table(values) | {'v3': {0: 1.0}}, along(2), lower_is_better=False)
    assert [row.reason[:33] for row in lost.values()] == [
        '',
        '',
        *['not tested with 1 seed of v3, a t'] * 2,
    ]


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    for seed in range(50):
        p = RNG(seed).uniform(0, 0.06, size=6)
        rejected = []
        for step, index in enumerate(np.argsort(p)):
            if p[index] > LEVEL / (6 - step):
                break
            rejected.append(index)
        assert sorted(rejected) == [
            index for index, adjusted in enumerate(holm(p)) if adjusted <= LEVEL
        ]


def test_holm_is_near_dunnetts_test_for_many_runs_of_one_spread():
    values = np.stack([scaled(40, mean, 1, seed) for seed, mean in enumerate((0, 0.55, 0.1, -0.3))])
    theirs = reference_stats.dunnett(*values[1:], control=values[0], random_state=0).pvalue
    ours = [row.adjusted for row in compare(table(values), 'v0', lower_is_better=False).values()]
    assert theirs[0] < LEVEL
    assert (
        0.9 * theirs[0] < ours[0] < 1.25 * theirs[0]
    )  # Holm's bound ignores that comparisons share a reference


def test_less_is_better_where_the_metric_falls():
    assert pair([1, 1.1, 0.9], [5, 5.1, 4.9], lower_is_better=True).verdict == 'better'
    assert pair([1, 1.1, 0.9], [5, 5.1, 4.9], lower_is_better=False).verdict == 'worse'
    assert (
        pair([1, 1.1, 0.9], [1, 1.1, 0.95], lower_is_better=True).verdict == 'not distinguishable'
    )


# --- One variant ----------------------------------------------------------------------------------


def test_a_summary_has_students_interval():
    x = [3.0, 4.5, 2.0, 7.0]
    found = summarize(dict(enumerate(x)))
    assert (found.seeds, found.mean, found.sd, found.reason) == (
        4,
        np.mean(x),
        pytest.approx(np.std(x, ddof=1)),
        '',
    )
    theirs = reference_stats.t.interval(0.95, 3, np.mean(x), reference_stats.sem(x))
    np.testing.assert_allclose([found.low, found.high], theirs)


def test_one_seed_has_no_interval_and_says_why():
    found = summarize({3: 0.5})
    assert (found.mean, found.sd, found.low, found.high) == (0.5, None, None, None)
    assert found.reason == 'no interval from 1 seed, it needs two'
    assert math.isnan(summarize({}).mean)
    assert 'from 0 seeds' in summarize({}).reason


# --- Edge cases and errors ------------------------------------------------------------------------


def test_variants_with_one_seed_are_not_tested_and_do_not_count():
    values = table([[1, 1.2, 0.9], [2, 2.1, 1.9], [1, 1.1, 1]])
    whole = compare(values, 'v0', lower_is_better=False)
    some = compare(values | {'short': {0: 3.0}, 'none': {}}, 'v0', lower_is_better=False)
    assert {name: some[name] for name in whole} == whole
    assert some['short'].verdict == some['none'].verdict == 'not tested'
    assert some['short'].reason == 'not tested with 1 seed, a test needs two'
    assert some['none'].p is some['short'].low is some['short'].detectable is None
    lone = compare(values | {'v0': {0: 1.0}}, 'v0', lower_is_better=False)
    assert {row.reason for row in lone.values()} == {
        'not tested with 1 seed of v0, a test needs two'
    }
    assert compare({'v0': {0: 1.0}}, 'v0', lower_is_better=False) == {}


def test_variants_that_lack_seeds_of_the_reference_are_compared_by_what_they_have():
    rng = RNG(3)
    values = table(5 * rng.normal(size=5) + rng.normal(size=(5, 5)) / 20)
    values['v1'] = {seed: values['v1'][seed] for seed in (0, 2, 3)} | {9: 40.0}
    values['v2'] = {seed + 20: value for seed, value in values['v2'].items()}
    found = compare(values, 'v0', lower_is_better=False)
    theirs = reference_stats.ttest_rel(
        *([values[name][seed] for seed in (0, 2, 3)] for name in ('v1', 'v0'))
    )
    assert (found['v1'].test, found['v1'].p) == ('paired', pytest.approx(theirs.pvalue))
    assert [found[name].test for name in ('v2', 'v3', 'v4')] == ['welch', 'paired', 'paired']


def test_runs_without_spread_are_told_apart_only_where_permuting_them_could():
    equal, three, five = (
        pair([0.1 + 0.2] * 5, [0.3] * 5),
        pair([1.0] * 3, [0.5] * 3),
        pair([1.0] * 5, [0.5] * 5),
    )
    assert (equal.test, equal.p, equal.verdict) == ('permutation', 1.0, 'not distinguishable')
    assert (three.p, three.verdict) == (2 / 20, 'not distinguishable')
    assert (five.p, five.verdict) == (2 / 252, 'better')
    assert five.low == five.high == 0.5
    assert five.detectable is None
    assert 'no spread' in five.reason
    assert pair([0.0] * 3, [0.0] * 3).p == 1
    exact = reference_stats.permutation_test(
        ([1.0] * 3, [0.5] * 3), lambda x, y: np.mean(x) - np.mean(y)
    )
    assert three.p == pytest.approx(exact.pvalue)


def test_a_constant_lead_is_not_taken_for_certainty():
    rising = np.arange(5.0)
    found = compare(
        table([rising, rising + 1, rising + 2]), 'v0', lower_is_better=False
    )  # correlation 1, differences constant
    assert {row.test for row in found.values()} == {'welch'}
    assert all(0.05 < row.p < 1 for row in found.values())


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(value):
    values = table([[1, 2], [3, 4]]) | {'bad': {0: 1.0, 7: value}}
    with pytest.raises(ValueError, match=r'bad, seed 7: -?(nan|inf) is not finite'):
        compare(values, 'v0', lower_is_better=False)
    with pytest.raises(ValueError, match='seed 7'):
        summarize(values['bad'])


def test_a_reference_that_is_no_variant_is_refused():
    with pytest.raises(ValueError, match="reference='base' is none of the variants: v0, v1"):
        compare(table([[1, 2], [3, 4]]), 'base', lower_is_better=False)


def test_power_needs_two_of_each():
    for seeds, variants in ((1, 5), (5, 1)):
        with pytest.raises(ValueError, match='two of each'):
            power(1, seeds, variants)

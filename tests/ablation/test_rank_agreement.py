"""Rank agreement against SciPy's Kendall and by hand; the coverage of its interval, simulated."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from transformer_jax.ablation.rank_agreement import kendall, rank_agreement

PAPER = {'base': 25.8, 'small': 24.9, 'big': 26.4, 'same': 25.8, 'theirs only': 20.0}


def table(**means):
    """Make three runs of each variant: at its mean, 0.1 below and 0.1 above."""
    return {name: {0: mean - 0.1, 1: mean, 2: mean + 0.1} for name, mean in means.items()}


def test_ranks_and_directions_by_hand():
    ours = table(base=30, small=28, big=30.02, same=31, mine=2)
    found = rank_agreement(ours, PAPER, 'base', lower_is_better=False, theirs_lower_is_better=False)
    # The paper ties one of 6 pairs; of the other 5, ours agrees on all but big and same.
    assert found.tau == pytest.approx((4 - 1) / np.sqrt(6 * 5))
    assert (found.variants, found.directions, found.agreeing) == (
        4,
        2,
        2,
    )  # `same` has no direction in the paper
    assert (found.clear, found.clear_agreeing) == (1, 1)  # small is clearly worse, big is not clear
    assert found.low <= found.tau <= found.high
    assert found.reason == ''


def test_a_clear_contradiction_is_counted():
    found = rank_agreement(
        table(base=30, small=35, big=31),
        PAPER,
        'base',
        lower_is_better=False,
        theirs_lower_is_better=False,
    )
    assert (found.directions, found.agreeing, found.clear, found.clear_agreeing) == (2, 1, 2, 1)


def test_measures_may_run_opposite_ways():
    ours = table(base=3, small=5, big=2)
    plain = rank_agreement(
        table(base=-3, small=-5, big=-2),
        PAPER,
        'base',
        lower_is_better=False,
        theirs_lower_is_better=False,
    )
    assert plain.tau == plain.low == plain.high == 1
    assert (
        rank_agreement(ours, PAPER, 'base', lower_is_better=True, theirs_lower_is_better=False)
        == plain
    )
    assert (
        rank_agreement(
            ours,
            {name: -number for name, number in PAPER.items()},
            'base',
            lower_is_better=True,
            theirs_lower_is_better=True,
        )
        == plain
    )
    assert (
        rank_agreement(ours, PAPER, 'base', lower_is_better=False, theirs_lower_is_better=False).tau
        == -1
    )


@pytest.mark.parametrize('seed', range(20))
def test_tau_is_scipys_ties_and_all(seed):
    ours, theirs = np.random.default_rng(seed).integers(0, 6, size=(2, 8)).tolist()
    assert kendall(ours, theirs) == pytest.approx(kendalltau(ours, theirs).statistic)


@pytest.mark.parametrize(
    ('gap', 'paper'),
    [
        (1.0, (0, 1, 2, 3, 4, 5)),
        (0.5, (0, 1, 2, 3, 4, 5)),
        (1.0, (1, 0, 2, 4, 3, 5)),
        (1.0, (5, 1, 4, 0, 2, 3)),
    ],
)
def test_the_interval_covers_the_order_of_the_true_means(gap, paper):
    rng = np.random.default_rng(0)
    true = kendalltau(range(6), paper).statistic
    theirs = {str(index): float(number) for index, number in enumerate(paper)}
    covered = []
    for _ in range(100):
        values = rng.normal(size=(6, 5)) + gap * np.arange(6)[:, None]
        ours = {str(index): dict(enumerate(row)) for index, row in enumerate(values.tolist())}
        found = rank_agreement(
            ours, theirs, '0', lower_is_better=False, theirs_lower_is_better=False
        )
        covered.append(found.low - 1e-9 <= true <= found.high + 1e-9)
    assert np.mean(covered) >= 0.9


def test_noise_widens_the_interval():
    def width(noise):
        ours = {
            name: {0: mean - noise, 1: mean, 2: mean + noise}
            for name, mean in (('base', 3), ('small', 2), ('big', 4), ('same', 3.5))
        }
        found = rank_agreement(
            ours, PAPER, 'base', lower_is_better=False, theirs_lower_is_better=False
        )
        return found.high - found.low

    assert width(0) == 0 <= width(0.01) < width(1) <= 2


def test_what_has_no_order_says_so():
    alone = rank_agreement(
        table(base=3, mine=2), PAPER, 'base', lower_is_better=False, theirs_lower_is_better=False
    )
    assert (alone.variants, alone.tau, alone.low, alone.directions) == (1, None, None, 0)
    assert 'two variants' in alone.reason
    ties = rank_agreement(
        table(base=3, same=2), PAPER, 'base', lower_is_better=False, theirs_lower_is_better=False
    )
    assert (ties.tau, ties.directions) == (None, 0)
    short = rank_agreement(
        table(base=3, big=4) | {'small': {0: 2.0}, 'same': {}},
        PAPER,
        'base',
        lower_is_better=False,
        theirs_lower_is_better=False,
    )
    assert (short.variants, short.tau, short.low, short.high) == (3, 1, None, None)
    assert short.reason == '1 seed of small: an interval needs two'
    assert (short.directions, short.agreeing, short.clear) == (2, 2, 1)


def test_a_paper_without_the_reference_still_ranks():
    found = rank_agreement(
        table(mine=3, small=2, big=4),
        PAPER,
        'mine',
        lower_is_better=False,
        theirs_lower_is_better=False,
    )
    assert (found.tau, found.directions) == (1, 0)


def test_directions_are_from_the_reference_of_each():
    ours = table(base=30, small=28, big=20, same=31)
    found = rank_agreement(
        ours,
        PAPER,
        {'base': 'base', 'small': 'base', 'big': 'big', 'same': 'big'},
        lower_is_better=False,
        theirs_lower_is_better=False,
    )
    assert (found.directions, found.agreeing, found.clear, found.clear_agreeing) == (
        2,
        1,
        2,
        1,
    )  # `same` is above `big`


def test_a_number_of_the_paper_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match='small'):
        rank_agreement(
            table(base=3, small=2),
            PAPER | {'small': float('nan')},
            'base',
            lower_is_better=False,
            theirs_lower_is_better=False,
        )

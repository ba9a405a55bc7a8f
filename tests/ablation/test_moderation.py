"""Moderated variances against the formulas of Smyth (2004), computed another way."""

import numpy as np
import pytest
from scipy import optimize, special

from transformer_jax.ablation.moderation import fit_prior, moderate, trigamma_inverse


def test_the_inverse_of_trigamma_is_its_inverse():
    y = np.geomspace(0.05, 500, 40)
    np.testing.assert_allclose(trigamma_inverse(special.polygamma(1, y)), y, rtol=1e-8)


@pytest.mark.parametrize('seed', range(5))
def test_the_prior_solves_smyths_equations_of_moments(seed):
    rng, dof = np.random.default_rng(seed), np.array([2.0, 3.0] * 20)
    s2 = rng.chisquare(dof) / dof * 5 * 4.0 / rng.chisquare(4, 40)
    d0, s02 = (float(found[0]) for found in fit_prior(s2[None], dof))
    log_s2 = np.log(s2)
    expected = special.digamma(dof / 2) - np.log(dof / 2)
    spread = np.sum((log_s2 - expected - np.mean(log_s2 - expected)) ** 2) / 39
    left = spread - np.mean([special.zeta(2, each / 2) for each in dof])  # zeta(2, x) = trigamma
    if left <= 0:
        assert d0 == np.inf
        return
    half = optimize.brentq(lambda x: special.zeta(2, x) - left, 1e-3, 1e6)
    assert d0 == pytest.approx(2 * half, rel=1e-6)
    mean = np.log(s02) - special.digamma(half) + np.log(half)
    assert mean == pytest.approx(
        -2 * special.digamma(half)
        + 2 * np.log(half)
        + np.log(s02)
        + special.digamma(half)
        - np.log(half)
    )
    assert np.mean(log_s2 - expected) == pytest.approx(
        np.log(s02) - special.digamma(half) + np.log(half)
    )


def test_the_prior_of_many_variances_is_that_they_were_drawn_from():
    rng, dof = np.random.default_rng(0), np.full(20_000, 3.0)
    s2 = rng.chisquare(dof) / dof * 2.0 * 6.0 / rng.chisquare(6, dof.shape)
    d0, s02 = fit_prior(s2[None], dof)
    assert (d0[0], s02[0]) == (pytest.approx(6, rel=0.1), pytest.approx(2, rel=0.03))
    same = rng.chisquare(dof) / dof
    assert fit_prior(same[None], dof)[0][0] > 100


def test_alike_variances_become_one_and_an_odd_one_stays():
    dof = np.full(9, 4.0)
    s2 = np.array([[1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.0, 1.0, 1.0]])
    moderated, freedom = moderate(s2, dof, 9)
    assert np.ptp(moderated) < 0.05
    np.testing.assert_allclose(freedom, 4 * 8)  # its own, and those of the others but one
    odd, dof = np.append(np.linspace(0.8, 1.2, 17), 60.0)[None], np.full(18, 4.0)
    moderated, freedom = moderate(odd, dof, 18)
    assert (moderated[0, -1], freedom[0, -1]) == (60.0, 4.0)


def test_one_or_two_variances_stay_as_they_are():
    for count in (1, 2):
        s2, dof = np.arange(1.0, count + 1)[None], np.full(count, 2.0)
        moderated, freedom = moderate(s2, dof, count)
        np.testing.assert_array_equal(moderated, s2)
        np.testing.assert_array_equal(freedom, np.broadcast_to(dof, s2.shape))

"""Variances of many variants, each moderated by all: Smyth (2004), as in limma's eBayes.

The variances σ² of the variants are taken as drawn from one distribution, d₀ s₀² / χ²(d₀). A sample
variance s² with d degrees of freedom then is s₀² F(d, d₀), and the posterior of σ² is as if d₀ more
degrees of freedom had been seen: s̃² = (d₀ s̄² + d s²) / (d₀ + d). Where spreads are alike, d₀
comes out large and one variance serves all; where they differ, it comes out small.

Two choices keep a spread from being taken too small, which makes false verdicts. The variances are
drawn towards their mean s̄², not towards limma's s₀², which is lower where d₀ is small. And a
variance that is too large for the others stays as it is (the case of Phipson et al. 2016).
"""

import numpy as np
from scipy import special

UNLIKELY = 5  # over the square of the number of comparisons: that a variance is so large by chance


def fit_prior(s2_BM: np.ndarray, dof_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the prior to sample variances by the moments of their logarithms.

    Smyth (2004), section 6.2: e = log s² - ψ(d/2) + log(d/2) has the mean
    log s₀² - ψ(d₀/2) + log(d₀/2), and the variance ψ'(d/2) + ψ'(d₀/2).

    Args:
        s2_BM: positive variances of M variants, in B tables.
        dof_M: their degrees of freedom.

    Returns:
        d₀ (infinite where the variances differ no more than chance makes them) and s₀², each of
        shape [B].
    """
    half_M = dof_M / 2
    e_BM = np.log(s2_BM) - special.digamma(half_M) + np.log(half_M)
    mean_B = e_BM.mean(-1)
    excess_B = e_BM.var(-1, ddof=1) - special.polygamma(1, half_M).mean()
    differ_B = excess_B > 0
    half_B = trigamma_inverse(np.where(differ_B, excess_B, 1.0))
    finite_B = np.exp(mean_B + special.digamma(half_B) - np.log(half_B))
    d0_B = np.where(differ_B, 2 * half_B, np.inf)
    return d0_B, np.where(differ_B, finite_B, s2_BM @ dof_M / dof_M.sum())


def trigamma_inverse(x: np.ndarray) -> np.ndarray:
    """Solve ψ'(y) = x for y > 0, by the Newton steps of Smyth (2004), appendix."""
    y = 0.5 + 1 / x
    for _ in range(10):
        trigamma = special.polygamma(1, y)
        y = y + trigamma * (1 - trigamma / x) / special.polygamma(2, y)
    return y


def moderate(
    s2_BM: np.ndarray, dof_M: np.ndarray, comparisons: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moderate the variances of M variants by each other.

    d₀ is at most what the others of a variant can know: their degrees of freedom, less those of one
    of them, since their common spread is estimated too. So one or two variants stay as they are. A
    variance stays as it is, too, where chance makes one so large with a probability of less than
    5 / `comparisons`².

    Args:
        s2_BM: positive variances of M variants, in B tables.
        dof_M: their degrees of freedom.
        comparisons: of the table.

    Returns:
        s̃² and its degrees of freedom d₀ + d, each of shape [B, M].
    """
    most_M = np.maximum(dof_M.sum() - dof_M - dof_M.mean(), 0)
    if len(dof_M) < 3 or not most_M.any():
        return s2_BM, np.broadcast_to(dof_M, s2_BM.shape)
    mean_B1 = (s2_BM @ dof_M / dof_M.sum())[:, None]
    d0_BM = np.minimum(fit_prior(s2_BM, dof_M)[0][:, None], most_M)
    chance_BM = special.fdtrc(dof_M, np.maximum(d0_BM, 1e-3), s2_BM / mean_B1)
    d0_BM = np.where(chance_BM < UNLIKELY / comparisons**2, 0.0, d0_BM)
    return (d0_BM * mean_B1 + dof_M * s2_BM) / (d0_BM + dof_M), d0_BM + dof_M

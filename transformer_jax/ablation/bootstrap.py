"""Paired bootstrap over the examples of a test set, for corpus BLEU and for means.

A score is computed from what is known of each example.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transformer_jax.ablation.seed_values import Reference, references_of, refuse_nonfinite


@dataclasses.dataclass(frozen=True)
class Resampled:
    """One variant minus its reference over resampled examples: what other test sets might say.

    Attributes:
        difference: on the test set as it is.
        low, high: the 2.5% and 97.5% points of the difference over samples.
        p: two-sided.
        adjusted: p after Holm.
    """

    difference: float
    low: float
    high: float
    p: float
    adjusted: float


def bootstrap(
    runs: Mapping[str, Mapping[int, Sequence]],
    reference: Reference,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Resample the examples of a test set in pairs (Koehn 2004), in the order of `runs`.

    A sample draws as many examples as there are, with replacement, the same for all runs; a
    variant's score in it is the mean of the scores of its seeds' runs, each of the whole sample. So
    the result is about other test sets for these trained models, not about other seeds. p is
    two-sided: the share of samples whose difference is as far from the mean over samples as the
    observed difference is from 0, the observed one counted too.

    Args:
        runs: variant -> seed -> a row for each example: one number, of which the score is the mean,
            or ten, of which it is corpus BLEU: correct 1- to 4-grams, total 1- to 4-grams, length,
            reference length. A variant without runs is left out.
        reference: a variant, or that of each; what is compared with a variant without runs is left
            out.
        samples: how many.
        seed: of the draws.

    Raises:
        ValueError: a number is not finite, runs differ in the number or columns of their examples,
            or a reference is no variant.
    """
    references = references_of(runs, reference)
    rows = _checked_rows(runs)
    shapes = {array.shape for by_seed in rows.values() for array in by_seed.values()}
    if not shapes:
        return {}
    count = next(iter(shapes))[0]
    times_SE = _sample_counts(count, samples, seed)
    scores = {
        name: np.mean([_score(times_SE @ array, count) for array in by_seed.values()], 0)
        for name, by_seed in rows.items()
        if by_seed
    }
    gaps = {
        name: score - scores[references[name]]
        for name, score in scores.items()
        if references[name] != name and references[name] in scores
    }
    p = {name: _share(abs(gap[1:] - gap[1:].mean()) >= abs(gap[0])) for name, gap in gaps.items()}
    adjusted = dict(zip(p, holm([*p.values()]), strict=True))
    found = {}
    for name, gap in gaps.items():
        low, high = np.quantile(gap[1:], [0.025, 0.975]).tolist()
        found[name] = Resampled(float(gap[0]), low, high, p[name], adjusted[name])
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values: rejecting those up to α, any false rejection has a chance of at most α.

    Holm (1979).
    """
    values = np.asarray(p, float)
    order = np.argsort(values)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted.tolist()


def _checked_rows(
    runs: Mapping[str, Mapping[int, Sequence]],
) -> dict[str, dict[int, np.ndarray]]:
    """Return the rows as arrays [examples, 1 or 10]; raise ValueError where they are not that."""
    rows = {
        name: {key: np.asarray(row, float) for key, row in by_seed.items()}
        for name, by_seed in runs.items()
    }
    refuse_nonfinite(
        {
            name: {key: array.sum() for key, array in by_seed.items()}
            for name, by_seed in rows.items()
        }
    )
    shapes = {array.shape for by_seed in rows.values() for array in by_seed.values()}
    odd = [shape for shape in shapes if len(shape) != 2 or not shape[0] or shape[1] not in (1, 10)]
    if len(shapes) > 1 or odd:
        raise ValueError(
            f'sentences × numbers of the runs: {sorted(shapes)}; all must be alike, '
            'with 1 or 10 numbers'
        )
    return rows


def _sample_counts(count: int, samples: int, seed: int) -> np.ndarray:
    """How often each example is in each sample, [1 + samples, examples].

    The first row is the test set as it is.
    """
    draws = np.random.default_rng(seed).choice(count, (samples, count))
    # Numbered through all samples, one bincount counts them all.
    numbers = draws + count * np.arange(samples)[:, None]
    times = np.bincount(numbers.ravel(), minlength=samples * count).reshape(samples, count)
    return np.concatenate([np.ones((1, count)), times])


def _score(sums: np.ndarray, examples: int) -> np.ndarray:
    """Compute the scores of samples from their sums over examples, [samples, 1 or 10].

    They are means, or corpus BLEU as sacreBLEU smooths it by default.
    """
    if sums.shape[1] == 1:
        return sums[:, 0] / examples
    correct, total, lengths, references = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    # The first order of n-grams without a match counts as 1/2 of a match, the second as 1/4, …
    misses = 2.0 ** np.cumsum(correct == 0, 1)
    precision = np.where(correct == 0, 1 / misses, correct) / np.maximum(total, 1)
    brevity = np.exp(np.minimum(1 - references / np.maximum(lengths, 1), 0))
    scored = correct.any(1) & total.all(1)  # a sample too short for 4-grams scores 0
    return np.where(scored, 100 * brevity * np.exp(np.log(precision).mean(1)), 0)


def _share(happened: np.ndarray) -> float:
    """The share of samples, the observed one counted too, so that p is never 0."""
    return float((1 + happened.sum()) / (1 + len(happened)))

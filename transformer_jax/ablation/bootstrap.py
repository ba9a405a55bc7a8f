"""Paired bootstrap over the sentences of a test set: corpus BLEU and means from what is known of
each sentence.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from transformer_jax.ablation.statistics import Reference, holm, references_of, refuse_nonfinite


@dataclasses.dataclass(frozen=True)
class Resampled:
    """One variant minus its reference over resampled sentences: what another test set of this kind
    might have said.
    """

    difference: float  # on the test set as it is
    low: float  # 2.5% and 97.5% points of the difference over samples
    high: float
    p: float
    adjusted: float  # p after Holm


def bootstrap(
    runs: Mapping[str, Mapping[int, Sequence]],
    reference: Reference,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Paired bootstrap over the sentences of a test set (Koehn 2004), in the order of `runs`.

    A sample draws as many sentences as there are, with replacement, the same for all runs; a
    variant's score in it is the mean of the scores of its seeds' runs, each of the whole sample. So
    it speaks of other test sets for these trained models, not of other seeds. p is two-sided: the
    share of samples whose difference lies as far from the mean over samples as the observed
    difference from 0, the observed one counted in.

    Args:
        runs: variant -> seed -> a row for each sentence: one number, of which the score is the
            mean, or ten, of which it is corpus BLEU: correct 1- to 4-grams, total 1- to 4-grams,
            length, reference length. A variant without runs is left out.
        reference: a variant, or that of each; what is compared with a variant without runs is
            left out.
        samples: how many.
        seed: of the draws.

    Raises:
        ValueError: a number is not finite, runs differ in their sentences' number or columns, or a
            reference is no variant.
    """
    references = references_of(runs, reference)
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
    if len(shapes) > 1 or any(
        len(shape) != 2 or not shape[0] or shape[1] not in (1, 10) for shape in shapes
    ):
        raise ValueError(
            f'sentences × numbers of the runs: {sorted(shapes)}; all must be alike, with 1 or 10 numbers'
        )
    if not shapes:
        return {}
    count = next(iter(shapes))[0]
    draws = (
        np.random.default_rng(seed).choice(count, (samples, count))
        + count * np.arange(samples)[:, None]
    )
    times = np.bincount(draws.ravel(), minlength=samples * count).reshape(samples, count)
    times = np.concatenate([np.ones((1, count)), times])  # first the test set as it is
    scores = {
        name: np.mean([_score(times @ array, count) for array in by_seed.values()], 0)
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
    return {
        name: Resampled(
            float(gap[0]), *np.quantile(gap[1:], [0.025, 0.975]).tolist(), p[name], adjusted[name]
        )
        for name, gap in gaps.items()
    }


def _score(sums: np.ndarray, sentences: int) -> np.ndarray:
    """Means, or corpus BLEU as sacreBLEU's default smooths it, of samples' sums over sentences."""
    if sums.shape[1] == 1:
        return sums[:, 0] / sentences
    correct, total, lengths, references = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    misses = 2.0 ** np.cumsum(
        correct == 0, 1
    )  # the first order without a match counts 1/2, the second 1/4, …
    precision = np.where(correct == 0, 1 / misses, correct) / np.maximum(total, 1)
    brevity = np.exp(np.minimum(1 - references / np.maximum(lengths, 1), 0))
    scored = correct.any(1) & total.all(1)  # too short for 4-grams: 0
    return np.where(scored, 100 * brevity * np.exp(np.log(precision).mean(1)), 0)


def _share(happened: np.ndarray) -> float:
    """With the observed one counted in: p is never 0."""
    return float((1 + happened.sum()) / (1 + len(happened)))

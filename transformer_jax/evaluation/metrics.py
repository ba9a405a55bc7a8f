"""Scores of translations that can be compared: each BLEU comes with its signature, direction and
references' hash.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import DataError

Z_95 = 1.959963984540054  # the standard normal distribution's 97.5% point
# Of these less is better; of the other metrics more.
FALLING = ('loss', 'perplexity', 'word_perplexity', 'bits_per_byte')


def translation_metrics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    source: str,
    target: str,
    tokenize: str = '13a',
) -> dict[str, Any]:
    """Corpus scores against one reference per sentence, as plain values for JSON.

    Args:
        hypotheses: one line a sentence; empty ones count.
        references: as many.
        source: the language translated from, 'en'.
        target: the language translated to, 'de'.
        tokenize: sacreBLEU's tokenizer: '13a' for detokenised text, 'none' for text that is
            tokenised already (the score is then comparable with others on the same tokenisation
            only; the signature says so).

    Returns:
        bleu (0 to 100; Post 2018) and chrf (0 to 100; chrF2, Popović 2015) with their signatures;
        exact_match, the share (0 to 1) of hypotheses equal to their reference, with its 95% Wilson
        interval; direction ('en-de'); reference_sha256 of the references joined by newlines, in
        UTF-8; sentences, their number.

    Raises:
        DataError: no sentences, or not as many hypotheses as references.
    """
    if len(hypotheses) != len(references) or not references:
        raise DataError(
            f'{len(hypotheses)} translations for {len(references)} references: the files must have the '
            'same number of lines, at least one'
        )
    # `force` only silences the warning that the text looks tokenised, which for 'none' it is meant
    # to be.
    bleu, chrf = BLEU(tokenize=tokenize, force=True), CHRF()
    scores = {
        'bleu': bleu.corpus_score(hypotheses, [references]).score,
        'bleu_signature': str(bleu.get_signature()),
        'chrf': chrf.corpus_score(hypotheses, [references]).score,
        'chrf_signature': str(chrf.get_signature()),
    }
    matches = sum(
        hypothesis == reference
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    )
    return scores | {
        'exact_match': matches / len(references),
        'exact_match_interval': wilson_interval(matches, len(references)),
        'direction': f'{source}-{target}',
        'reference_sha256': hashlib.sha256('\n'.join(references).encode()).hexdigest(),
        'sentences': len(references),
    }


def classification_metrics(
    predicted: Sequence[int], labels: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy with its 95% Wilson interval, the share of the largest class, and the
    confusion matrix.

    Args:
        predicted: a class number for each example.
        labels: the true ones.
        classes: their names.

    Returns:
        plain values for JSON; `confusion[i][j]` counts examples of class i taken for class j.
    """
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (np.asarray(labels), np.asarray(predicted)), 1)
    right, total = int(confusion.trace()), int(confusion.sum())
    return {
        'accuracy': right / total,
        'accuracy_interval': wilson_interval(right, total),
        'majority': int(confusion.sum(1).max()) / total,
        'examples': total,
        'classes': list(classes),
        'confusion': confusion.tolist(),
    }


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> list[float]:
    """[low, high] of a proportion (Wilson 1927): unlike ±z·σ it is sound at 0 and 1, where held-out
    accuracy ends.
    """
    share = successes / trials
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def perplexities(loss_sum: float, tokens: float, references: Sequence[str]) -> dict[str, float]:
    """Perplexity per token and per word, and bits per byte, of one negative log-likelihood:
    `loss_sum` nats in all.

    Per token it is exp(loss_sum / tokens), which depends on the vocabulary. Per word it is
    exp(loss_sum / words), which compares across vocabularies; words are those between white space,
    and one end of sentence for each sentence. Bits per byte are loss_sum / ln 2 over the bytes of
    the text in UTF-8, one end of sentence counted as a byte likewise.
    """
    size = sum(len(reference.encode()) + 1 for reference in references)
    return {
        'perplexity': perplexity(loss_sum / tokens),
        'word_perplexity': perplexity(loss_sum / count_words(references)),
        'bits_per_byte': loss_sum / math.log(2) / size,
    }


def count_words(sentences: Sequence[str]) -> int:
    """Words between white space, and one end of sentence for each sentence."""
    return sum(len(sentence.split()) + 1 for sentence in sentences)


def perplexity(loss: float) -> float:
    """Exp of a mean loss in nats."""
    return math.exp(loss) if loss < 709 else math.inf  # math.exp raises where a float64 overflows

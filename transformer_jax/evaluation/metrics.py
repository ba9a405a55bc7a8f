"""The table of metrics, and the formulas of those that are made from texts and classes.

Scores of translations can be compared with other people's: each BLEU comes with its sacreBLEU
signature, its direction and the hash of its references.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from transformer_jax.errors import DataError

Z_95 = 1.959963984540054  # the standard normal distribution's 97.5% point


@dataclasses.dataclass(frozen=True)
class MetricKind:
    """A row of METRICS: how a metric is written, and in which direction it is better."""

    label: str  # in lines of the log
    format: str  # of `str.format`, for one value
    lower_is_better: bool = False
    logged: bool = False  # in the line of the log that an evaluation during training writes
    selects_checkpoint: bool = False  # may be `evaluate.best_metric`
    from_hypotheses: bool = False  # made from the decoded texts, which a reader may want to see
    timed: bool = False  # measured by a clock, not by an evaluation
    decodes: bool = False  # what is timed is decoding, not training steps
    probed: bool = False  # measured on a few batches of a split: probes, the gradient
    has_parts: bool = False  # of all parameters, or of some of them
    scale: str = 'log'  # of `ablation.scales`, on which runs are compared


# A metric that an evaluation reports as a single number. The order is that of lines of the log.
METRICS = {
    'loss': MetricKind(
        'loss', '{:.4f}', lower_is_better=True, logged=True, selects_checkpoint=True
    ),
    'perplexity': MetricKind(
        'perplexity', '{:.3f}', lower_is_better=True, logged=True, selects_checkpoint=True
    ),
    'word_perplexity': MetricKind('perplexity per word', '{:.3f}', lower_is_better=True),
    'bits_per_byte': MetricKind('bits per byte', '{:.4f}', lower_is_better=True),
    'accuracy': MetricKind(
        'accuracy', '{:.2%}', logged=True, selects_checkpoint=True, scale='share'
    ),
    'bleu': MetricKind(
        'BLEU',
        '{:.2f}',
        logged=True,
        selects_checkpoint=True,
        from_hypotheses=True,
        scale='percent',
    ),
    'chrf': MetricKind(
        'chrF', '{:.2f}', selects_checkpoint=True, from_hypotheses=True, scale='percent'
    ),
    'exact_match': MetricKind(
        'exact match', '{:.2%}', logged=True, selects_checkpoint=True, scale='share'
    ),
    'sink': MetricKind(
        'weight on the first token', '{:.4f}', lower_is_better=True, probed=True, scale='share'
    ),
    # An entropy is a logarithm itself; a distance and the largest score need not be positive.
    'entropy': MetricKind('entropy of attention', '{:.4f}', probed=True, scale='plain'),
    'normalized_entropy': MetricKind(
        'normalized entropy of attention', '{:.4f}', probed=True, scale='share'
    ),
    'distance': MetricKind('distance of attention', '{:.3f}', probed=True, scale='plain'),
    'max_logit': MetricKind(
        'largest attention score', '{:.3f}', lower_is_better=True, probed=True, scale='plain'
    ),
    'logit_std': MetricKind(
        'standard deviation of attention scores', '{:.4f}', lower_is_better=True, probed=True
    ),
    'gradient_norm': MetricKind(
        'norm of the gradient', '{:.4f}', lower_is_better=True, probed=True, has_parts=True
    ),
    'step_seconds': MetricKind('seconds per step', '{:.4f}', lower_is_better=True, timed=True),
    'decode_seconds': MetricKind(
        'seconds per decoded token', '{:.3g}', lower_is_better=True, timed=True, decodes=True
    ),
}


# SacreBLEU's tokenizers for languages that write no spaces between words, by their codes: to 13a
# and intl a whole sentence is one word there, and BLEU is 0. 'zh' keeps Latin words whole.
UNSPACED = {
    **dict.fromkeys(('zh', 'zho', 'chi', 'cmn', 'yue', 'wuu'), 'zh'),
    **dict.fromkeys(('ja', 'jpn', 'th', 'tha', 'lo', 'lao', 'km', 'khm', 'my', 'mya'), 'char'),
    **dict.fromkeys(('bur', 'bo', 'bod', 'tib', 'dz', 'dzo'), 'char'),
}
LONGEST_WORD = 8  # letters; text of such a language with shorter words has been tokenized


def bleu_tokenizer(tokenize: str, language: str, references: Sequence[str]) -> str:
    """Choose sacreBLEU's tokenizer for a target language.

    Args:
        tokenize: the tokenizer that was asked for, `evaluate.bleu_tokenize`.
        language: of the references, such as 'zh' or 'zh-CN'; any part of a file name is allowed.
        references: text that spaces separate into short words already keeps `tokenize`.

    Returns:
        `tokenize`, or where that finds no words in the language, the tokenizer that does.
    """
    codes = [code for code in re.split('[^a-z]+', language.lower()) if code in UNSPACED]
    if tokenize not in ('13a', 'intl') or not codes:
        return tokenize
    words = [word for reference in references for word in reference.split()]
    spaced = sum(len(reference.split()) > 1 for reference in references)
    short = sum(map(len, words)) <= LONGEST_WORD * len(words)
    return tokenize if short and 2 * spaced > len(references) else UNSPACED[codes[-1]]


def translation_metrics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    source: str,
    target: str,
    tokenize: str = '13a',
) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """Score translations against one reference for each sentence.

    Args:
        hypotheses: one line for each sentence; empty lines count.
        references: as many lines.
        source: the language translated from, 'en'.
        target: the language translated to, 'de'.
        tokenize: sacreBLEU's tokenizer: '13a' for detokenized text, 'none' for text that is
            tokenized already. The score of the latter can be compared only with scores on the
            same tokenization; the signature says so.

    Returns:
        the scores, and what 'bleu' and 'exact_match' are made of, sentence by sentence.

        The scores are plain values for JSON: bleu (0 to 100; Post 2018) and chrf (0 to 100; chrF2,
        Popović 2015) with their signatures; exact_match, the share (0 to 1) of hypotheses equal to
        their reference, with its 95% Wilson interval; direction ('en-de'); reference_sha256 of the
        references joined by newlines, in UTF-8; sentences, their number.

        BLEU is made of ten counts a sentence: n-grams of 1 to 4 words that the reference holds,
        n-grams of 1 to 4 words of the hypothesis, words of the hypothesis, words of the
        reference. Exact match is made of 0 or 1.

    Raises:
        DataError: no sentences, or not as many hypotheses as references.
    """
    if len(hypotheses) != len(references) or not references:
        raise DataError(
            f'{len(hypotheses)} translations for {len(references)} references: the files must have '
            'the same number of lines, at least one'
        )
    # `force` only silences the warning that the text looks tokenized, which for 'none' it is meant
    # to be.
    bleu, chrf = BLEU(tokenize=tokenize, force=True), CHRF()
    pairs = list(zip(hypotheses, references, strict=True))
    counts = [_bleu_counts(bleu, hypothesis, reference) for hypothesis, reference in pairs]
    matches = [[int(hypothesis == reference)] for hypothesis, reference in pairs]
    exact = sum(match for [match] in matches)
    scores = {
        'bleu': bleu_score(counts),
        'bleu_signature': str(bleu.get_signature()),
        'chrf': chrf.corpus_score(hypotheses, [references]).score,
        'chrf_signature': str(chrf.get_signature()),
        'exact_match': exact / len(references),
        'exact_match_interval': wilson_interval(exact, len(references)),
        'direction': f'{source}-{target}',
        'reference_sha256': hashlib.sha256('\n'.join(references).encode()).hexdigest(),
        'sentences': len(references),
    }
    return scores, {'bleu': counts, 'exact_match': matches}


def _bleu_counts(bleu: BLEU, hypothesis: str, reference: str) -> list[int]:
    found = bleu.corpus_score([hypothesis], [[reference]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def bleu_score(counts: Sequence[Sequence[int]]) -> float:
    """Return the BLEU of a corpus, given the ten counts of each sentence, or of some of them."""
    total = np.sum(counts, axis=0).tolist()
    score = BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method='exp')
    return score.score


def classification_metrics(
    predicted: Sequence[int], labels: Sequence[int], classes: Sequence[str]
) -> dict[str, Any]:
    """Score the predicted classes of examples.

    Args:
        predicted: a class number for each example.
        labels: the true class numbers.
        classes: the names of the classes.

    Returns:
        plain values for JSON: accuracy with its 95% Wilson interval; majority, the share of the
        largest class; examples, their number; classes; and confusion, where `confusion[i][j]`
        counts examples of class i that were taken for class j.
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
    """Return [low, high] of a proportion (Wilson 1927).

    Unlike ±z·σ it is sound at 0 and 1, where accuracy on held-out examples often ends.

    Args:
        successes: at most `trials`.
        trials: 1 or more.
        z: quantile of the standard normal distribution; by default of a 95% interval.
    """
    share = successes / trials
    scale = 1 + z**2 / trials
    center = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return [max(0.0, center - half), min(1.0, center + half)]


class TextSize(NamedTuple):
    """The size of the text that a likelihood is about."""

    words: int  # between white space, and one end of sentence for each sentence
    bytes: int  # in UTF-8; one end of sentence counts as a byte

    def plus(self, text: str, ends: bool = True) -> 'TextSize':
        """Add a text, and its end of sentence where `ends`."""
        return TextSize(
            self.words + len(text.split()) + ends, self.bytes + len(text.encode()) + ends
        )

    def minus(self, text: str, ends: bool) -> 'TextSize':
        """Take a text away, and its end of sentence where `ends`."""
        words, size = TextSize(0, 0).plus(text, ends)
        return TextSize(self.words - words, self.bytes - size)


def perplexities(loss_sum: float, tokens: float, size: TextSize) -> dict[str, float]:
    """State one negative log-likelihood per token, per word and per byte.

    - perplexity: exp(loss_sum / tokens), which depends on the vocabulary
    - word_perplexity: exp(loss_sum / words), which compares across vocabularies
    - bits_per_byte: loss_sum / ln 2 / bytes

    A text without a whole word, or a whole character, has an infinite one.

    Args:
        loss_sum: in nats, over all counted tokens.
        tokens: their number.
        size: of the text that the counted tokens stand for.
    """
    return {
        'perplexity': perplexity(loss_sum / tokens),
        'word_perplexity': perplexity(loss_sum / size.words) if size.words else math.inf,
        'bits_per_byte': loss_sum / math.log(2) / size.bytes if size.bytes else math.inf,
    }


def perplexity(loss: float) -> float:
    """Return exp(loss) of a mean loss in nats, infinite where that is too large a float."""
    return math.exp(loss) if loss < 709 else math.inf  # math.exp raises where a float64 overflows

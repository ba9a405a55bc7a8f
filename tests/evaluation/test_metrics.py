"""Scores against sacreBLEU called directly, textbook numbers and edge cases."""

import functools
import hashlib
import json
import math

import pytest
import sacrebleu

from transformer_jax.errors import DataError
from transformer_jax.evaluation.metrics import (
    TextSize,
    perplexities,
    translation_metrics,
    wilson_interval,
)

REFERENCES = [
    'Ein Mann, der läuft, lächelt.',
    'Zwei Hunde spielen im Schnee!',
    'Eine Frau liest ein Buch.',
]
HYPOTHESES = [
    'Ein Mann, der rennt, lächelt.',
    'Zwei Hunde spielen im Schnee!',
    'Frau liest das Buch.',
]


def scores(hypotheses, references, **options):
    found, _ = translation_metrics(hypotheses, references, source='en', target='de', **options)
    return found


def test_scores_are_those_of_sacrebleu():
    found = scores(HYPOTHESES, REFERENCES)
    assert found['bleu'] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found['chrf'] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    version = sacrebleu.__version__
    assert (
        found['bleu_signature'] == f'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}'
    )
    assert (
        found['chrf_signature']
        == f'nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}'
    )
    assert found['direction'] == 'en-de'
    assert found['sentences'] == 3


def test_tokenised_text_is_scored_as_it_stands_and_says_so(caplog):
    hypotheses = ['ein mann , der rennt , lacht .'] * 120
    references = ['ein mann , der läuft , lacht .'] * 120
    found = scores(hypotheses, references, tokenize='none')
    assert (
        found['bleu']
        == sacrebleu.corpus_bleu(hypotheses, [references], tokenize='none', force=True).score
    )
    assert '|tok:none|' in found['bleu_signature']
    assert not caplog.records  # sacreBLEU would warn of "tokenized period" from 100 lines on
    glued = ['läuft,lacht und singt.']
    spaced = ['läuft , lacht und singt .']
    assert scores(spaced, glued)['bleu'] == pytest.approx(100)
    assert scores(spaced, glued, tokenize='none')['bleu'] < 50


def test_exact_match_counts_equal_lines():
    found = scores(HYPOTHESES, REFERENCES)
    assert found['exact_match'] == 1 / 3
    low, high = found['exact_match_interval']
    assert low < 1 / 3 < high


def test_wilson_interval_against_published_numbers():
    # Newcombe (1998), Table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(successes, trials) == pytest.approx([low, high], abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx([1 - 0.1611, 1.0], abs=5e-5)


def test_reference_hash_is_of_the_references_alone():
    found = scores(HYPOTHESES, REFERENCES)['reference_sha256']
    assert found == hashlib.sha256('\n'.join(REFERENCES).encode('utf-8')).hexdigest()
    assert scores(REFERENCES, REFERENCES)['reference_sha256'] == found
    assert scores(HYPOTHESES, HYPOTHESES)['reference_sha256'] != found


def test_empty_hypotheses_score_zero():
    found = scores(['', '', ''], REFERENCES)
    assert (found['bleu'], found['chrf'], found['exact_match']) == (0, 0, 0)
    assert scores(['', REFERENCES[1], ''], REFERENCES)['exact_match'] == 1 / 3


def test_single_sentence_and_json():
    found = scores(REFERENCES[:1], REFERENCES[:1])
    assert found['bleu'] == pytest.approx(100)
    assert found['chrf'] == pytest.approx(100)
    assert found['exact_match'] == 1
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(('hypotheses', 'references'), [([], []), (['a'], ['a', 'b']), (['a'], [])])
def test_line_counts_must_agree(hypotheses, references):
    with pytest.raises(
        DataError, match=f'{len(hypotheses)} translations for {len(references)} references'
    ):
        scores(hypotheses, references)


def test_perplexities():
    sentences = ['vier  Hunde\tspielen ', '']  # 3 words and 2 ends
    size = functools.reduce(TextSize.plus, sentences, TextSize(0, 0))
    assert size == (5, 22)
    found = perplexities(10.0, 8, size)
    assert found == {
        'perplexity': pytest.approx(math.exp(10 / 8)),
        'word_perplexity': pytest.approx(math.exp(2)),
        'bits_per_byte': pytest.approx(10 / math.log(2) / 22),
    }  # 20 letters and 2 ends
    assert perplexities(1e6, 8, size)['perplexity'] == math.inf


def test_uniform_model_has_the_vocabulary_as_perplexity():
    assert perplexities(12 * math.log(50), 12, TextSize(3, 4))['perplexity'] == pytest.approx(50)

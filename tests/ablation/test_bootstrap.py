"""The paired bootstrap against sacreBLEU's, and against the normal distribution of a mean."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from transformer_jax.ablation.bootstrap import _score, bootstrap

WORDS = [f'w{index}' for index in range(30)]


@pytest.fixture(scope='module')
def corpora():
    """Make references, and three systems that replace more and more of their words."""
    rng = np.random.default_rng(0)
    references = [rng.choice(WORDS, rng.integers(3, 15)).tolist() for _ in range(120)]
    systems = [
        [
            [rng.choice(WORDS) if rng.random() < rate else word for word in sentence]
            for sentence in references
        ]
        for rate in (0.2, 0.22, 0.4)
    ]
    systems[0] = [
        sentence[:-1] if index % 5 == 0 else sentence for index, sentence in enumerate(systems[0])
    ]
    return [[' '.join(sentence) for sentence in text] for text in (references, *systems)]


def rows(hypotheses, references):
    """Return for each sentence correct and total n-grams, then the lengths.

    sacreBLEU puts the lengths first.
    """
    statistics = BLEU(tokenize='none')._extract_corpus_statistics(hypotheses, [references])
    return [[*row[2:], *row[:2]] for row in statistics]


def test_scores_of_samples_are_sacrebleus(corpora):
    references, system, *_ = corpora
    statistics = np.array(rows(system, references), float)
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 120):  # few sentences: n-grams without a match, and no 4-grams at all
        for _ in range(40):
            index = rng.integers(len(system), size=size)
            theirs = BLEU(tokenize='none').corpus_score(
                [system[i] for i in index], [[references[i] for i in index]]
            )
            assert _score(statistics[index].sum(0, keepdims=True), size)[0] == pytest.approx(
                theirs.score
            )
    assert _score(np.zeros((1, 10)), 1)[0] == 0


def test_p_is_twice_that_of_sacrebleu(corpora, monkeypatch):
    """sacreBLEU counts one tail; it draws the same samples from the same seed."""
    references, *systems = corpora
    monkeypatch.setenv('SACREBLEU_SEED', '5')
    named = [(str(index), system) for index, system in enumerate(systems)]
    metrics = {'BLEU': BLEU(tokenize='none', references=[references])}
    _, theirs = PairedTest(named, metrics, [references], 'bs', 2000)()
    found = bootstrap(
        {name: {0: rows(system, references)} for name, system in named}, '0', samples=2000, seed=5
    )
    scores = theirs['BLEU']
    for position, name in enumerate(('1', '2'), 1):
        assert found[name].difference == pytest.approx(scores[position].score - scores[0].score)
        assert found[name].p / 2 == pytest.approx(scores[position].p_value, abs=0.02)
        assert found[name].low < found[name].difference < found[name].high
    assert found['1'].p > 0.02
    assert found['2'].p == 1 / 2001  # the least that 2,000 samples can say
    assert found['2'].adjusted == 2 / 2001
    assert found['2'].high < 0


def test_means_have_the_normal_interval():
    rng = np.random.default_rng(0)
    base = rng.random((2000, 1)) < 0.6
    new = np.where(rng.random((2000, 1)) < 0.1, ~base, base)
    runs = {'base': {0: base.astype(int).tolist()}, 'new': {0: new.astype(int).tolist()}}
    found = bootstrap(runs, 'base', samples=4000)['new']
    gap = new.astype(int) - base.astype(int)
    half = 1.96 * gap.std() / math.sqrt(2000)
    assert found.difference == pytest.approx(gap.mean())
    np.testing.assert_allclose(
        [found.low, found.high], [gap.mean() - half, gap.mean() + half], atol=half / 15
    )
    assert found.p == pytest.approx(
        math.erfc(abs(gap.mean()) / (half / 1.96) / math.sqrt(2)), abs=0.03
    )


def test_seeds_are_averaged_over_the_same_sentences(corpora):
    references, *systems = corpora
    first, second, third = (rows(system, references) for system in systems)
    both = bootstrap({'base': {0: first}, 'new': {0: second, 1: third}}, 'base')['new']
    alone = [
        bootstrap({'base': {0: first}, 'new': {0: one}}, 'base')['new'].difference
        for one in (second, third)
    ]
    assert both.difference == pytest.approx(np.mean(alone))
    shuffled = bootstrap({'base': {3: first, 1: third}, 'new': {5: third, 8: first}}, 'base')['new']
    assert (shuffled.difference, shuffled.p) == (0, 1)  # the same runs, whatever their seeds
    assert shuffled.low == shuffled.high == 0


def test_each_variant_has_its_own_reference():
    runs = {
        name: {0: np.random.default_rng(seed).integers(0, 2, (40, 1)).tolist()}
        for seed, name in enumerate('abcd')
    }
    found = bootstrap(runs, {'a': 'a', 'b': 'a', 'c': 'c', 'd': 'c'})
    for name, home in (('b', 'a'), ('d', 'c')):
        alone = bootstrap(runs, home)[name]
        assert (found[name].difference, found[name].low, found[name].p) == (
            alone.difference,
            alone.low,
            alone.p,
        )
    assert list(found) == ['b', 'd']
    assert list(bootstrap(runs | {'a': {}}, {'a': 'a', 'b': 'a', 'c': 'c', 'd': 'c'})) == ['d']


def test_samples_are_those_of_the_seed():
    runs = {'base': {0: [[0], [1], [1]]}, 'new': {0: [[1], [1], [0]]}}
    assert bootstrap(runs, 'base', seed=1) == bootstrap(runs, 'base', seed=1)


def test_what_cannot_be_resampled():
    good = {'base': {0: [[0], [1]]}, 'new': {0: [[1], [1]]}}
    assert list(bootstrap(good | {'none': {}}, 'base')) == ['new']
    assert bootstrap(good | {'base': {}}, 'base') == {}
    with pytest.raises(ValueError, match='none of the variants'):
        bootstrap(good, 'other')
    with pytest.raises(ValueError, match='new, seed 4: nan is not finite'):
        bootstrap(good | {'new': {4: [[1], [math.nan]]}}, 'base')
    for bad in ([[1], [0], [1]], [[1, 2], [3, 4]], [], [1, 0]):
        with pytest.raises(ValueError, match='must be alike, with 1 or 10 numbers'):
            bootstrap(good | {'new': {0: bad}}, 'base')

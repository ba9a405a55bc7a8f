"""Decoding against exhaustive search, a naive beam search in NumPy and the definition of the
distributions.

The model of most tests is a table of random logits, indexed by a hash of the whole prefix. Every
token changes all later logits, so a lost cache row, a wrong parent or a wrong order of beams fails
the test.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model

from transformer_jax.attention import cache as caches
from transformer_jax.batch import BOS, EOS, PAD, Batch
from transformer_jax.decoding import beam_search as search
from transformer_jax.decoding import sampling
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.decoding.hypotheses import top_words
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DecodeConfig, ModelConfig

MAX_LEN = 8
STATES = 1009


class Prefix(NamedTuple):
    """The cache of the hash model: one hash for each row, and a scalar, as real caches have."""

    hash_R: jax.Array
    position: jax.Array


class HashModel:
    """The model p(token | prefix) in NumPy float64; `hash_step` is the same in JAX."""

    def __init__(self, vocab: int, seed: int = 0, scale: float = 1.5, banned_bonus: float = 0.0):
        self.vocab = vocab
        self.table_XV = (
            np.random.default_rng(seed).normal(scale=scale, size=(STATES, vocab)).astype(np.float32)
        )
        self.table_XV[:, :EOS] += banned_bonus

    def distribution(self, start: int, prefix: tuple[int, ...]) -> np.ndarray:
        state = start
        for position, token in enumerate((BOS, *prefix)):
            state = (state * 31 + token * 17 + position + 7) % STATES
        logits_V = self.table_XV[state].astype(np.float64)
        return logits_V - np.log(np.sum(np.exp(logits_V)))

    def log_p(self, start: int, tokens: tuple[int, ...]) -> float:
        return sum(self.distribution(start, tokens[:i])[token] for i, token in enumerate(tokens))


def hash_step(table_XV, tokens_R, cache):
    hash_R = (cache.hash_R * 31 + tokens_R * 17 + cache.position + 7) % STATES
    return table_XV[hash_R], Prefix(hash_R, cache.position + 1)


def naive_beam_search(model, start, limit, beam, alpha, open_end=False):
    """Search by the definition, without early stopping: [(score, tokens)], best first."""
    live, finished = [(0.0, ())], []
    for length in range(1, limit + 1):
        continuations = []
        for parent, (total, prefix) in enumerate(live):
            log_p_V = model.distribution(start, prefix)
            allowed = range(EOS, model.vocab) if length < limit or open_end else [EOS]
            continuations += [
                (-total - log_p_V[token], token != EOS, parent, token, prefix) for token in allowed
            ]
        continuations.sort()
        for cost, goes_on, *_, token, prefix in continuations[:beam]:
            if not goes_on or length == limit:
                finished.append((-cost / ((5 + length) / 6) ** alpha, (*prefix, token)))
        live = [
            (-cost, (*prefix, token))
            for cost, goes_on, _, token, prefix in continuations
            if goes_on
        ][:beam]
    return sorted(finished, key=lambda scored: -scored[0])[:beam]


def exhaustive_search(model, start, limit, alpha):
    """Score all Y within the limit: [(score, tokens)], best first."""
    found = []
    for length in range(1, limit + 1):
        for words in itertools.product(range(EOS + 1, model.vocab), repeat=length - 1):
            found.append(
                (model.log_p(start, (*words, EOS)) / ((5 + length) / 6) ** alpha, (*words, EOS))
            )
    return sorted(found, reverse=True)


# The table is an argument, so that tests with the same shapes share a compiled program.
@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _beam_search(table_XV, starts_B, limits_B, alpha, beam, max_len, open_end):
    step, cache = functools.partial(hash_step, table_XV), Prefix(starts_B, jnp.int32(0))
    return search.beam_search(
        step,
        cache,
        caches.reorder,
        limits_B,
        beam=beam,
        max_len=max_len,
        alpha=alpha,
        open_end=open_end,
    )


@functools.partial(
    jax.jit, static_argnums=(0, 4), static_argnames=('temperature', 'top_k', 'top_p')
)
def _generate(method, table_XV, starts_B, limits_B, max_len, keys_B=None, **options):
    step, cache = functools.partial(hash_step, table_XV), Prefix(starts_B, jnp.int32(0))
    if method == 'greedy':
        return sampling.greedy(step, cache, limits_B, max_len=max_len)
    return sampling.sample(step, cache, limits_B, keys_B, max_len=max_len, **options)


def beam_search(model, starts_B, limits_B, beam, alpha, max_len=MAX_LEN, open_end=False):
    starts_B, limits_B = np.int32(starts_B), np.int32(limits_B)
    return jax.device_get(
        _beam_search(model.table_XV, starts_B, limits_B, alpha, beam, max_len, open_end)
    )


def greedy(model, starts_B, limits_B):
    return jax.device_get(
        _generate('greedy', model.table_XV, np.int32(starts_B), np.int32(limits_B), MAX_LEN)
    )


def sample(model, starts_B, limits_B, key=0, rows_B=None, max_len=MAX_LEN, **options):
    rows_B = np.int32(range(len(starts_B)) if rows_B is None else rows_B)
    return jax.device_get(
        _generate(
            'sample',
            model.table_XV,
            np.int32(starts_B),
            np.int32(limits_B),
            max_len,
            sampling.row_keys(jax.random.key(key), rows_B),
            **options,
        )
    )


def hypotheses(decoded, row, open_limit=0):
    """Return [(score, tokens)] of a row, after checks that every result must pass."""
    found = []
    for tokens_T, score, length in zip(
        decoded.tokens_BKT[row], decoded.scores_BK[row], decoded.lengths_BK[row], strict=True
    ):
        assert (length == 0) == (score == -np.inf)
        assert (tokens_T[length:] == PAD).all()
        assert length in (0, open_limit) or tokens_T[length - 1] == EOS
        assert (tokens_T[: max(0, length - 1)] > EOS).all()
        if length:
            found.append((score, tuple(tokens_T[:length].tolist())))
    return found


def assert_same(found, expected):
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    np.testing.assert_allclose(
        [score for score, _ in found], [score for score, _ in expected], rtol=1e-5
    )


@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.0])
def test_beam_as_wide_as_all_prefixes_is_exhaustive_search(alpha):
    model = HashModel(vocab=6)  # EOS and three words
    starts, limit = range(6), 5
    everything = sum(3**n for n in range(limit))
    ranked = beam_search(model, starts, [limit] * 6, beam=everything, alpha=alpha)
    # A step has at most 4 · 3³ continuations.
    narrower = beam_search(model, starts, [limit] * 6, beam=4 * 3**3, alpha=alpha)
    for row in starts:
        expected = exhaustive_search(model, row, limit, alpha)
        assert len(expected) == everything
        assert_same(hypotheses(ranked, row), expected)
        assert_same(hypotheses(narrower, row), expected[: 4 * 3**3])


@pytest.mark.parametrize('beam', [1, 2, 3, 5])
@pytest.mark.parametrize('vocab', [9, 400])  # with 400, `top_words` works by blocks
def test_small_beams_against_naive_beam_search(beam, vocab):
    model = HashModel(vocab, scale=3.0)
    limits = [1, 2, 3, 5, 7, 8, 8, 8]
    for alpha in (0.0, 0.6, 1.5):
        found = beam_search(model, range(8), limits, beam, alpha)
        for row, limit in enumerate(limits):
            assert_same(hypotheses(found, row), naive_beam_search(model, row, limit, beam, alpha))


def test_the_length_penalty_changes_what_wins():
    model = HashModel(vocab=9)
    lengths = [
        beam_search(model, range(40), [8] * 40, 4, alpha).lengths_BK[:, 0].mean()
        for alpha in (0.0, 0.6, 3.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]
    np.testing.assert_allclose(search.length_penalty(7, 0.6), 2**0.6, rtol=1e-6)
    np.testing.assert_allclose(search.length_penalty(1, 0.6), 1)


OPEN_ENDS = [(1, 0.0), (1, 0.6), (2, 0.0), (3, 1.0), (5, 0.0)]  # beam, alpha


@pytest.mark.parametrize(('beam', 'alpha'), OPEN_ENDS)
def test_at_an_open_end_no_hypothesis_pays_for_its_end(beam, alpha):
    model, limits = HashModel(vocab=7), [1, 2, 3, 5, 8] * 2
    found = beam_search(model, range(10), limits, beam, alpha, open_end=True)
    for row, limit in enumerate(limits):
        expected = naive_beam_search(model, row, limit, beam, alpha, open_end=True)
        assert_same(hypotheses(found, row, limit), expected)
        for score, tokens in hypotheses(found, row, limit):
            assert tokens[-1] == EOS or len(tokens) == limit
            penalty = search.length_penalty(len(tokens), alpha)
            np.testing.assert_allclose(score * penalty, model.log_p(row, tokens), rtol=1e-5)


def test_ties_are_broken_as_documented():
    model = HashModel(vocab=9, scale=0.0)
    for beam in (1, 3):
        for row, limit in enumerate([1, 2, 5]):
            found = beam_search(model, [0, 0, 0], [1, 2, 5], beam, 0.0)
            assert_same(hypotheses(found, row), naive_beam_search(model, 0, limit, beam, 0.0))
    assert hypotheses(greedy(model, [0], [5]), 0)[0][1] == (EOS,)


def test_beam_1_without_length_penalty_is_greedy_search():
    model = HashModel(vocab=7)
    limits = list(range(1, 9)) * 5
    beam, best = beam_search(model, range(40), limits, 1, 0.0), greedy(model, range(40), limits)
    np.testing.assert_array_equal(beam.tokens_BKT, best.tokens_BKT)
    np.testing.assert_array_equal(beam.lengths_BK, best.lengths_BK)
    np.testing.assert_allclose(beam.scores_BK, best.scores_BK, rtol=1e-6)
    assert len(np.unique(best.lengths_BK)) == 8
    for row, limit in enumerate(limits):
        ((score, tokens),) = hypotheses(best, row)
        for i, token in enumerate(tokens):
            assert token == (
                EOS
                if i == limit - 1
                else EOS + np.argmax(model.distribution(row, tokens[:i])[EOS:])
            )
        np.testing.assert_allclose(score, model.log_p(row, tokens), rtol=1e-5)


def run_beam(model, starts, limits, rows):
    del rows
    return beam_search(model, starts, limits, 3, 0.6)


def run_greedy(model, starts, limits, rows):
    del rows
    return greedy(model, starts, limits)


def run_sample(model, starts, limits, rows):
    return sample(model, starts, limits, rows_B=rows, top_k=5, top_p=0.9)


@pytest.mark.parametrize('run', [run_beam, run_greedy, run_sample])
def test_rows_do_not_see_each_other(run):
    model = HashModel(vocab=40)
    starts, limits, rows = np.arange(6) + 20, np.array([8, 1, 4, 0, 8, 3]), np.arange(6) + 100
    together = run(model, starts, limits, rows)
    order = np.array([4, 2, 0, 3, 5, 1])
    for left, right in zip(
        together, run(model, starts[order], limits[order], rows[order]), strict=True
    ):
        np.testing.assert_array_equal(left[order], right)
    for row in range(6):
        one = slice(row, row + 1)
        for left, right in zip(
            together, run(model, starts[one], limits[one], rows[one]), strict=True
        ):
            np.testing.assert_array_equal(left[one], right)
    assert (together.lengths_BK.max(axis=1) <= limits).all()
    assert (together.tokens_BKT[3] == PAD).all()
    assert (together.scores_BK[3] == -np.inf).all()


@pytest.mark.parametrize('run', [run_beam, run_greedy, run_sample])
def test_pad_and_bos_are_never_emitted_but_count_as_mass(run):
    model = HashModel(vocab=40, banned_bonus=7.0)
    found = run(model, range(6), [8] * 6, range(6))
    for row in range(6):
        for score, tokens in hypotheses(found, row):  # this also checks the tokens
            penalty = ((5 + len(tokens)) / 6) ** 0.6 if run is run_beam else 1
            np.testing.assert_allclose(score * penalty, model.log_p(row, tokens), rtol=1e-5)


def test_limits_are_clipped_to_the_room_in_the_cache():
    model = HashModel(vocab=40)
    for run in (run_beam, run_greedy, run_sample):
        clipped = run(model, range(6), [99] * 6, range(6))
        assert clipped.lengths_BK.max() == MAX_LEN
        for left, right in zip(clipped, run(model, range(6), [MAX_LEN] * 6, range(6)), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(('alpha', 'expected'), [(None, 4), (0.0, 4), (1.0, 9)])
def test_the_loop_ends_when_no_row_can_improve(alpha, expected):
    """Count the steps of a model that predicts 5 5 5 EOS; every other token costs 20 nats.

    alpha None means greedy search.
    """
    steps = []

    def step(tokens_R, cache):
        jax.debug.callback(lambda position: steps.append(int(position)), cache.position)
        logits_V = jnp.where(jnp.arange(9) == jnp.where(cache.position < 3, 5, EOS), 20.0, 0.0)
        return jnp.broadcast_to(logits_V[None], (len(tokens_R), 9)), Prefix(
            cache.hash_R, cache.position + 1
        )

    limits_B, cache = jnp.full(2, 50), Prefix(jnp.zeros(2), jnp.int32(0))
    if alpha is None:
        found = sampling.greedy(step, cache, limits_B, max_len=50)
    else:
        found = search.beam_search(
            step, cache, caches.reorder, limits_B, beam=2, max_len=50, alpha=alpha
        )
    jax.effects_barrier()
    assert hypotheses(jax.device_get(found), 0)[0][1] == (5, 5, 5, EOS)
    # α = 1: the second best hypothesis is 5 5 5 x EOS with a score of -20 / lp(5) = -12. The best
    # live hypothesis has log P = -20 after 4 steps and loses 20 with each further step:
    # -100 / lp(50) = -10.9 could still enter the set, -120 / lp(50) = -13.1 could not.
    assert steps == list(range(expected))


@pytest.mark.parametrize('run', [run_beam, run_greedy])
def test_not_a_number_ends_and_shows(run):
    model = HashModel(vocab=9)
    model.table_XV[:] = np.nan
    assert np.isnan(run(model, [0], [8], [0]).scores_BK[0, 0])


@pytest.mark.parametrize(('vocab', 'k'), [(7, 4), (7, 9), (131, 2), (131, 3), (1003, 8)])
@pytest.mark.parametrize('digits', [0, 6])  # 0: hundreds of ties
def test_top_words_is_top_k_ties_included(vocab, k, digits):
    logits_RV = np.random.default_rng(vocab).normal(size=(50, vocab)).round(digits)
    logits_RV = logits_RV.astype(np.float32) + 0.0  # + 0.0 turns -0.0 into 0.0
    logits_RV[0] = -np.inf
    best_RC, words_RC = jax.device_get(top_words(jnp.asarray(logits_RV), k))
    order_RC = np.argsort(-logits_RV[:, EOS + 1 :], axis=1, kind='stable')[:, :k] + EOS + 1
    np.testing.assert_array_equal(words_RC, order_RC)
    np.testing.assert_array_equal(best_RC, np.take_along_axis(logits_RV, order_RC, axis=1))


@pytest.mark.parametrize(
    'options',
    [{'top_k': 1}, {'top_p': 1e-6}, {'temperature': 0.0}, {'temperature': 1e-37}],
    ids=str,
)
def test_sampling_at_its_limits_is_greedy_search(options):
    model = HashModel(vocab=30, scale=100.0)  # many logits overflow when divided by 1e-37
    limits = list(range(1, 9)) * 3
    for left, right in zip(
        sample(model, range(24), limits, **options), greedy(model, range(24), limits), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def expected_first_token(model, temperature, top_k, top_p):
    """Compute the distribution of the first token: temperature, then top k, then nucleus."""
    log_p_V = model.distribution(0, ())
    log_p_V[:EOS] = -np.inf
    p_V = np.exp(log_p_V / temperature)
    order_V = np.argsort(-p_V)
    p_V[order_V[top_k or model.vocab :]] = 0
    p_V /= p_V.sum()
    nucleus = np.searchsorted(np.cumsum(p_V[order_V]), top_p) + 1
    p_V[order_V[nucleus:]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize(
    'options',
    [
        {'temperature': 0.5},
        {'temperature': 2.0, 'top_k': 4},
        {'top_p': 0.8},
        {'temperature': 1.5, 'top_k': 6, 'top_p': 0.7},
    ],
    ids=str,
)
def test_sampled_frequencies(options):
    model, draws = HashModel(vocab=14), 20_000
    expected_V = expected_first_token(
        model, **{'temperature': 1.0, 'top_k': 0, 'top_p': 1.0} | options
    )
    found = sample(model, [0] * draws, [2] * draws, max_len=2, **options)
    counts_V = np.bincount(found.tokens_BKT[:, 0, 0], minlength=14)
    assert (counts_V[expected_V == 0] == 0).all()
    assert (expected_V > 0).sum() > 2
    deviations_V = np.sqrt(draws * expected_V * (1 - expected_V))
    assert (np.abs(counts_V - draws * expected_V) <= 4.5 * deviations_V).all()


def test_sampling_draws_anew_for_each_step_row_and_key():
    model, rows = HashModel(vocab=300, scale=0.0), [0] * 64
    found = sample(model, rows, [MAX_LEN] * 64).tokens_BKT[:, 0]
    np.testing.assert_array_equal(found, sample(model, rows, [MAX_LEN] * 64).tokens_BKT[:, 0])
    other_key = sample(model, rows, [MAX_LEN] * 64, key=1).tokens_BKT[:, 0]
    # Two independent samples of about 300 equally likely tokens agree once in 298.
    assert (found[:, 0] == other_key[:, 0]).mean() < 0.1
    assert (found[:, 0] == found[:, 1]).mean() < 0.1
    assert len(np.unique(found[:, 0])) > 45


# The decoder of a whole model.

VOCAB = 23
SOURCE = np.random.default_rng(5).integers(4, VOCAB, size=(5, 7))
LENGTHS = [7, 3, 5, 0, 1]


@functools.cache
def whole_model():
    config = ModelConfig(encoder_layers=1, decoder_layers=1, d_model=16, d_ff=32, num_heads=2)
    model = build_model(config, VOCAB)
    batch = Batch(*source_rows(LENGTHS, 7), *[np.ones((5, 4), np.int32)] * 4, None)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), batch)['params'])
    # An untrained model gives nearly equal probabilities; larger weights separate the hypotheses.
    return model, jax.tree.map(lambda leaf: 3 * leaf, params)


def source_rows(lengths, width):
    source_BS = np.full((len(lengths), width), PAD, np.int32)
    segments_BS = np.zeros_like(source_BS)
    for row, length in enumerate(lengths):
        if length:
            source_BS[row, :length] = [*SOURCE[row, : length - 1], EOS]
            segments_BS[row, :length] = 1
    positions_BS = np.where(segments_BS > 0, np.arange(width)[None], 0).astype(np.int32)
    return source_BS, positions_BS, segments_BS


CONFIGS = {
    method: DecodeConfig(method=method, beam=3, max_extra_tokens=4, temperature=3.0, top_k=8)
    for method in ('beam', 'greedy', 'sample')
}


@functools.cache
def decode_rows(method, width=7):
    model, params = whole_model()
    decoder = make_decoder(model, CONFIGS[method], VOCAB)
    return jax.device_get(
        decoder(params, *source_rows(LENGTHS, width), jax.random.key(0), np.arange(5))
    )


def teacher_forcing(tokens_BT):
    model, params = whole_model()
    inputs_BT = np.concatenate([np.full((5, 1), BOS), tokens_BT[:, :-1]], axis=1)
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    batch = Batch(
        *source_rows(LENGTHS, 7),
        inputs_BT,
        tokens_BT,
        positions_BT,
        np.int32(tokens_BT != PAD),
        None,
    )
    return jax.nn.log_softmax(jax.jit(model.apply)({'params': params}, batch))


@pytest.mark.parametrize('length_penalty', [0.0, 0.6, 10.0])
def test_one_hypothesis_is_greedy_search(length_penalty):
    model, params = whole_model()
    decode = dataclasses.replace(CONFIGS['beam'], beam=1, length_penalty=length_penalty)
    decoder = make_decoder(model, decode, VOCAB)
    found = decoder(params, *source_rows(LENGTHS, 7), jax.random.key(0), np.arange(5))
    np.testing.assert_array_equal(found[0], decode_rows('greedy')[0])


@pytest.mark.parametrize('method', CONFIGS)
def test_a_model_decodes_within_limits_and_scores_as_teacher_forcing(method):
    tokens_BT, scores_B = decode_rows(method)
    assert tokens_BT.shape == (5, 7 + 4)
    lengths_B = (tokens_BT != PAD).sum(axis=1)
    assert (lengths_B <= [length + 4 if length else 0 for length in LENGTHS]).all()
    assert (lengths_B[3], scores_B[3]) == (0, -np.inf)
    log_p_BTV = np.asarray(teacher_forcing(tokens_BT))
    log_p_BT = np.take_along_axis(log_p_BTV, tokens_BT[:, :, None], axis=2)[:, :, 0]
    totals_B = np.where(tokens_BT != PAD, log_p_BT, 0).sum(axis=1)
    penalties_B = ((5 + lengths_B) / 6) ** 0.6 if method == 'beam' else np.ones(5)
    rows = [0, 1, 2, 4]
    np.testing.assert_allclose(scores_B[rows], (totals_B / penalties_B)[rows], rtol=1e-5)
    assert (lengths_B > 2).any()
    going_on_BT = np.arange(11)[None] < lengths_B[:, None] - 1
    is_best_BT = EOS + np.argmax(log_p_BTV[:, :, EOS:], axis=2) == tokens_BT
    assert is_best_BT[going_on_BT].all() == (method == 'greedy')


def test_padding_of_the_source_changes_nothing():
    (tokens_BT, scores_B), (padded_BT, padded_scores_B) = (
        decode_rows('beam'),
        decode_rows('beam', width=12),
    )
    np.testing.assert_array_equal(padded_BT[:, : tokens_BT.shape[1]], tokens_BT)
    assert (padded_BT[:, tokens_BT.shape[1] :] == PAD).all()
    np.testing.assert_allclose(padded_scores_B, scores_B, rtol=1e-5)


def test_more_top_k_than_tokens_is_refused():
    with pytest.raises(ConfigError, match=r'decode\.top_k=22 is more than the 21 tokens'):
        make_decoder(None, DecodeConfig(method='sample', top_k=22), VOCAB)

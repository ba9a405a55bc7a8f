"""Greedy search and sampling over an explicit cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, EOS, PAD
from transformer_jax.decoding.hypotheses import Decoded, StepFn, top_words

# (logits_BV, step t) → tokens_B
ChooseFn = Callable[[jax.Array, jax.Array], jax.Array]


def greedy(step: StepFn, cache: Any, limits_B: jax.Array, *, max_len: int) -> Decoded:
    """Choose the most probable token at each step; the score is log P(Y).

    Arguments as of `beam_search`.
    """
    return _generate(step, cache, limits_B, lambda logits_BV, t: _best(logits_BV), max_len)


def sample(
    step: StepFn,
    cache: Any,
    limits_B: jax.Array,
    keys_B: jax.Array,
    *,
    max_len: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Sample each token from softmax(logits / temperature), restricted to the top k and a nucleus.

    The score is log P(Y) of the model itself, before temperature and restrictions.

    Args:
        step, cache, limits_B, max_len: as of `beam_search`.
        keys_B: a key for each row, see `row_keys`, so that the result of a row does not depend on
            the other rows.
        temperature: 0 is greedy search.
        top_k: sample from the `top_k` most probable tokens; 0: all.
        top_p: then from the smallest set of most probable tokens whose probability is at least
            `top_p` (Holtzman et al. 2020, equation 2); 1: all.
    """

    def choose(logits_BV, t):
        keys_step_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
        return sample_tokens(logits_BV, keys_step_B, temperature, top_k, top_p)

    return _generate(step, cache, limits_B, choose, max_len)


def row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """Make a key for each row from its number in the data set, whatever batch it is in.

    Args:
        key: of the whole data set.
        rows_B: int32, the numbers of the rows.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)


def _best(logits_BV: jax.Array) -> jax.Array:
    """Choose the most probable token other than PAD and BOS; ties go to EOS, then to the lower."""
    best_B1, words_B1 = top_words(logits_BV, 1)
    return jnp.where(logits_BV[:, EOS] >= best_B1[:, 0], EOS, words_B1[:, 0])


def sample_tokens(
    logits_BV: jax.Array, keys_B: jax.Array, temperature: float, top_k: int, top_p: float
) -> jax.Array:
    """Sample one token for each row, never PAD or BOS; arguments as of `sample`."""
    if temperature == 0:
        return _best(logits_BV)
    logits_BC = logits_BV[:, EOS:]
    ids_BC = jnp.broadcast_to(jnp.arange(EOS, logits_BV.shape[1])[None], logits_BC.shape)
    if top_k or top_p < 1:  # not otherwise: sorting takes most of the time
        logits_BC, ids_BC = jax.lax.top_k(logits_BC, top_k or logits_BC.shape[1])
        ids_BC = ids_BC + EOS
    # Subtract the maximum first: with a low temperature the quotient would overflow.
    logits_BC = (logits_BC - jnp.max(logits_BC, axis=1, keepdims=True)) / temperature
    if top_p < 1:
        probabilities_BC = jax.nn.softmax(logits_BC, axis=1)
        before_BC = jnp.cumsum(probabilities_BC, axis=1) - probabilities_BC
        logits_BC = jnp.where(before_BC < top_p, logits_BC, -jnp.inf)
    places_B = jax.vmap(jax.random.categorical)(keys_B, logits_BC)
    return jnp.take_along_axis(ids_BC, places_B[:, None], axis=1)[:, 0]


def _generate(
    step: StepFn, cache: Any, limits_B: jax.Array, choose: ChooseFn, max_len: int
) -> Decoded:
    """Extend one hypothesis per row by the tokens that `choose` returns."""
    limits_B = jnp.minimum(limits_B, max_len)

    def advance(state):
        t, cache, last_B, live_B, scores_B, tokens_TB = state
        logits_BV, cache = step(last_B, cache)
        tokens_B = jnp.where(t + 1 < limits_B, choose(logits_BV, t), EOS)
        chosen_B1 = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=1)
        log_p_B = chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=1)
        scores_B = jnp.where(live_B, scores_B + log_p_B, scores_B)
        tokens_TB = tokens_TB.at[t].set(jnp.where(live_B, tokens_B, PAD))
        return t + 1, cache, tokens_B, live_B & (tokens_B != EOS), scores_B, tokens_TB

    live_B = limits_B > 0
    start = (
        jnp.int32(0),
        cache,
        jnp.full_like(limits_B, BOS),
        live_B,
        jnp.where(live_B, 0.0, -jnp.inf),
        jnp.full((max_len, limits_B.shape[0]), PAD, jnp.int32),
    )
    *_, scores_B, tokens_TB = jax.lax.while_loop(
        lambda state: (state[0] < max_len) & jnp.any(state[3]), advance, start
    )
    tokens_BT = tokens_TB.T
    return Decoded(
        tokens_BT[:, None], scores_B[:, None], jnp.sum(tokens_BT != PAD, axis=1, keepdims=True)
    )

"""What search and sampling share: the model as a function, hypotheses, and the best words."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.batch import EOS

StepFn = Callable[
    [jax.Array, Any], tuple[jax.Array, Any]
]  # (tokens_R int32, cache) -> (logits_RV f32, cache)

BLOCK = 64  # words in a block of `top_words`; 32 to 128 are within 1.2 ms of each other at 320 rows


class Decoded(NamedTuple):
    """Hypotheses of each row, best first; K = 1 for greedy search and sampling.

    tokens_BKT: int32, PAD after EOS, T = max_len; scores_BK: float32, -inf where there is
        no hypothesis;
    lengths_BK: int32, EOS included, 0 where there is no hypothesis.
    """

    tokens_BKT: jax.Array
    scores_BK: jax.Array
    lengths_BK: jax.Array


def top_words(logits_RV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Logits and tokens of the k best words (the tokens above EOS), best first; fewer where there
    are fewer.

    Exactly `lax.top_k`, ties included: the k best lie in the k blocks whose maxima come first,
    because every block before theirs holds an element before them. Measured on 2 CPU cores at
    B = 64, K = 5, V = 10,000: 1.8 ms where `lax.top_k` takes 8.7; all that the search adds to a
    step 3.6 ms, where `log_softmax` and `top_k` over K·V take 11.4.
    """
    rows, vocab = logits_RV.shape
    first = EOS + 1
    blocks = (vocab - first) // BLOCK
    rest = first + blocks * BLOCK
    if blocks < k:
        logits_RC, words_RC = jax.lax.top_k(logits_RV[:, first:], min(k, vocab - first))
        return logits_RC, words_RC + first
    maxima_RC = jnp.max(logits_RV[:, first:rest].reshape(rows, blocks, BLOCK), axis=2)
    starts_RC = first + BLOCK * jnp.sort(jax.lax.top_k(maxima_RC, k)[1], axis=1)
    words_RC = (starts_RC[:, :, None] + jnp.arange(BLOCK)[None, None]).reshape(rows, k * BLOCK)
    last_RC = jnp.broadcast_to(jnp.arange(rest, vocab)[None], (rows, vocab - rest))
    words_RC = jnp.concatenate([words_RC, last_RC], axis=1)
    logits_RC, places_RC = jax.lax.top_k(jnp.take_along_axis(logits_RV, words_RC, axis=1), k)
    return logits_RC, jnp.take_along_axis(words_RC, places_RC, axis=1)

"""The compiled decoder of a model."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention import cache as caches
from transformer_jax.batch import EOS, Tokens
from transformer_jax.decoding.beam_search import beam_search
from transformer_jax.decoding.hypotheses import Decoded, StepFn
from transformer_jax.decoding.sampling import greedy, row_keys, sample
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DecodeConfig

# See `make_decoder` for its arguments.
DecoderFn = Callable[..., tuple[jax.Array, jax.Array]]


def make_decoder(
    model: Any, decode: DecodeConfig, vocab_size: int, reach: float = math.inf
) -> DecoderFn:
    """Make a function that decodes one output for each row; it compiles for each source shape.

    Args:
        model: with the methods `start` and `step`.
        decode: the configuration.
        vocab_size: V.
        reach: the most positions of the decoder, those of a prompt included: an output ends there
            at the latest, so that no position is looked up beyond the end of a table.

    Returns:
        (params, source_BS, positions_BS, segments_BS, key, rows_B) → (tokens_BT int32, scores_B
        float32), the best hypothesis of each row. A row of the source is one sentence; one without
        tokens gives PAD and -inf. The tokens have PAD after EOS, T = S + decode.max_extra_tokens,
        and |Y| ≤ the length of the row's own source + decode.max_extra_tokens (both count EOS).
        Scores are log P / lp for the method 'beam' and log P for the others; 'beam' with one
        hypothesis is 'greedy'. `rows_B` are the rows' numbers in the data set; together with `key`
        they seed 'sample', and 'beam' and 'greedy' ignore both.

    Raises:
        ConfigError: `decode.top_k` is more than the number of tokens to sample from.
    """
    if decode.top_k > vocab_size - EOS:
        raise ConfigError(
            f'decode.top_k={decode.top_k} is more than the {vocab_size - EOS} tokens that can be '
            'sampled; set it lower, or to 0 for all'
        )

    @jax.jit
    def best(params, source_BS, positions_BS, segments_BS, key, rows_B):
        variables = {'params': params}
        max_len = source_BS.shape[1] + decode.max_extra_tokens
        source = Tokens(positions_BS, segments_BS)
        room = max_len * (decode.beam if decode.method == 'beam' else 1)
        cache, memory = model.apply(variables, source_BS, source, room, method='start')
        lengths_B = jnp.sum(segments_BS > 0, axis=1)
        limits_B = jnp.where(lengths_B > 0, lengths_B + decode.max_extra_tokens, 0)
        if reach < math.inf:
            limits_B = jnp.minimum(limits_B, int(reach) - cache.position_R)

        def step(tokens_R, cache):
            return model.apply(variables, tokens_R, cache, memory, method='step')

        if decode.method == 'sample':
            keys_B = row_keys(key, rows_B)
            found = _sample(decode, step, cache, limits_B, keys_B, max_len)
        else:
            found = _search(decode, step, cache, limits_B, max_len)
        return found.tokens_BKT[:, 0], found.scores_BK[:, 0]

    return best


def _search(
    decode: DecodeConfig, step: StepFn, cache: Any, limits_B: jax.Array, max_len: int
) -> Decoded:
    """Decode by beam search or greedy search, as configured."""
    if decode.method == 'greedy' or decode.beam == 1:
        return greedy(step, cache, limits_B, max_len=max_len)
    return beam_search(
        step,
        cache,
        caches.reorder,
        limits_B,
        beam=decode.beam,
        max_len=max_len,
        alpha=decode.length_penalty,
    )


def _sample(
    decode: DecodeConfig,
    step: StepFn,
    cache: Any,
    limits_B: jax.Array,
    keys_B: jax.Array,
    max_len: int,
) -> Decoded:
    """Decode by sampling, with the temperature and restrictions of the configuration."""
    return sample(
        step,
        cache,
        limits_B,
        keys_B,
        max_len=max_len,
        temperature=decode.temperature,
        top_k=decode.top_k,
        top_p=decode.top_p,
    )

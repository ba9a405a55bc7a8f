"""The decoder of a model, as its configuration has it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention import cache as caches
from transformer_jax.batch import EOS, Tokens
from transformer_jax.decoding.beam_search import beam_search
from transformer_jax.decoding.sampling import greedy, row_keys, sample
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DecodeConfig

DecoderFn = Callable[..., tuple[jax.Array, jax.Array]]  # see `make_decoder`


def make_decoder(model: Any, decode: DecodeConfig, vocab_size: int) -> DecoderFn:
    """The compiled translator of a model; compiled anew for each shape of the source.

    Returns:
        (params, source_BS, positions_BS, segments_BS, key, rows_B) -> (tokens_BT int32, scores_B
        float32): the best hypothesis of each row, PAD after EOS, T = S + decode.max_extra_tokens, and
        |Y| ≤ the row's own source length + decode.max_extra_tokens (EOS counted in both). One sentence per
        row; a row without source yields PAD and -inf. Scores are log P / lp for method 'beam' and
        log P for the others. `rows_B` are the rows' numbers in the data set: with `key` they decide
        what 'sample' draws; 'beam' and 'greedy' ignore both.

    Raises:
        ConfigError: `decode.top_k` is more than there are tokens to draw.
    """
    if decode.top_k > vocab_size - EOS:
        raise ConfigError(
            f'decode.top_k={decode.top_k} is more than the {vocab_size - EOS} tokens that can be '
            'drawn; set it lower, or to 0 for all'
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

        def step(tokens_R, cache):
            return model.apply(variables, tokens_R, cache, memory, method='step')

        if decode.method == 'beam':
            found = beam_search(
                step,
                cache,
                caches.reorder,
                limits_B,
                beam=decode.beam,
                max_len=max_len,
                alpha=decode.length_penalty,
            )
        elif decode.method == 'greedy':
            found = greedy(step, cache, limits_B, max_len=max_len)
        else:
            found = sample(
                step,
                cache,
                limits_B,
                row_keys(key, rows_B),
                max_len=max_len,
                temperature=decode.temperature,
                top_k=decode.top_k,
                top_p=decode.top_p,
            )
        return found.tokens_BKT[:, 0], found.scores_BK[:, 0]

    return best

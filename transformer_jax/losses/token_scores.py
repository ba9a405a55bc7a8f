"""Scores of every target token: its negative log-likelihood, and the model's prediction."""

from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import Batch
from transformer_jax.layers.functional import softcap
from transformer_jax.losses.chunks import (
    counted_first,
    join_chunks,
    join_rows,
    reorder,
    split_rows,
    time_chunks,
)


class TokenScores(NamedTuple):
    """Scores of every target token, given the true tokens before it; 0 at tokens of weight 0."""

    nll_BT: jax.Array  # float32, nats, without label smoothing
    predicted_BT: jax.Array  # int32, the most likely token; the first of equally likely ones


def token_scores(model: nn.Module, params: dict, batch: Batch) -> TokenScores:
    """Score every target token of a batch in one forward pass, without dropout.

    The logits of at most one chunk of tokens are in memory at once, as in `cross_entropy`.

    Args:
        model: of the parameters.
        params: unboxed.
        batch: rows [B, T]. Only tokens whose weight is not 0 are scored.

    Returns:
        the scores, [B, T].
    """
    variables = {'params': params}
    x_BTD = cast(jax.Array, model.apply(variables, batch, method='features'))
    w_VD = cast(jax.Array, model.apply(variables, method='output_table')).astype(x_BTD.dtype)
    cap = model.architecture.logit_softcap

    def score(x_CD: jax.Array, targets_C: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_CV = jnp.einsum('CD,VD->CV', x_CD, w_VD, preferred_element_type=jnp.float32)
        logits_CV = softcap(logits_CV, cap)
        target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], -1)[:, 0]
        nll_C = jax.nn.logsumexp(logits_CV, axis=-1) - target_C
        return nll_C, logits_CV.argmax(-1).astype(jnp.int32)

    def skip(x_CD: jax.Array, targets_C: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(targets_C.shape), jnp.zeros(targets_C.shape, jnp.int32)

    def body(_: None, chunk: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x_CD, targets_C, weights_C = chunk
        return None, jax.lax.cond((weights_C != 0).any(), score, skip, x_CD, targets_C)

    order_RT = counted_first(split_rows(batch.weights_BT))
    sides = x_BTD, batch.targets_BT, batch.weights_BT
    chunks = tuple(time_chunks(reorder(split_rows(side), order_RT)) for side in sides)
    _, (nll_LC, predicted_LC) = jax.lax.scan(body, None, chunks)
    back_RT = jnp.argsort(order_RT, axis=1)

    def restore(a_LC: jax.Array) -> jax.Array:
        a_RT = reorder(join_chunks(a_LC, len(order_RT)), back_RT)
        return jnp.where(batch.weights_BT != 0, join_rows(a_RT, len(batch.weights_BT)), 0)

    return TokenScores(restore(nll_LC), restore(predicted_LC))

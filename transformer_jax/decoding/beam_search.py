"""Beam search over an explicit cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, EOS, PAD
from transformer_jax.decoding.hypotheses import Decoded, StepFn, top_words

# (cache, parents_BK) → the cache of these hypotheses, see `attention.cache.reorder`
ReorderFn = Callable[[Any, jax.Array], Any]


class _Finished(NamedTuple):
    """The best finished hypotheses, best first."""

    scores_BK: jax.Array
    lengths_BK: jax.Array  # |Y|
    beams_BK: jax.Array  # the live beam of length |Y| − 1 that the last token was appended to
    last_BK: jax.Array  # the last token, EOS but at an open end


class _Beams(NamedTuple):
    """The live hypotheses of length t, as back-pointers to the steps before."""

    t: jax.Array
    cache: Any
    live_BK: jax.Array  # log P, -inf where there is no hypothesis
    parents_TBK: jax.Array  # for each step, which hypothesis was extended
    tokens_TBK: jax.Array  # and by which token
    finished: _Finished


def length_penalty(length: Any, alpha: float) -> jax.Array:
    """Compute lp(Y) = ((5 + |Y|) / 6)^α (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def beam_search(
    step: StepFn,
    cache: Any,
    reorder: ReorderFn,
    limits_B: jax.Array,
    *,
    beam: int,
    max_len: int,
    alpha: float,
    open_end: bool = False,
) -> Decoded:
    """Search for the `beam` hypotheses with the highest log P(Y) / lp(Y).

    Wu et al. (2016), section 7. A step ranks all continuations of a row's live hypotheses by log P.
    Continuations with EOS that are among the first `beam` are finished: they enter a set of the
    `beam` best by score and are never extended. The first `beam` of the other continuations stay
    live. A row is done when the set is full and no live hypothesis can enter it: log P never rises,
    so with α ≥ 0 no score can exceed log P / lp(limit). It follows that a beam at least as wide as
    the number of continuations searches all Y within the limit, and that beam 1 with α = 0 is
    greedy search.

    Args:
        step: the model; it is called with B·K rows, the beams of a row adjacent.
        cache: of B rows, before BOS; `reorder` widens it to B·K.
        reorder: gathers hypotheses of the cache.
        limits_B: int32, the longest |Y| allowed in each row; clipped to `max_len`.
        beam: K.
        max_len: T, the steps that the cache has room for, with `beam` hypotheses each.
        alpha: α ≥ 0 of the length penalty; with 0 the score is log P.
        open_end: at the limit a hypothesis is finished without EOS too, and its score does not
            include the probability of ending there.

    Returns:
        `beam` hypotheses for each row.
    """
    batch = limits_B.shape[0]
    limits_B1 = jnp.minimum(limits_B, max_len)[:, None]

    def advance(beams: _Beams) -> _Beams:
        t, live_BK, finished = beams.t, beams.live_BK, beams.finished
        last_BK = jnp.where(t > 0, beams.tokens_TBK[t - 1], BOS)
        logits_RV, cache = step(last_BK.reshape(-1), beams.cache)
        ending_BK, going_BK, parents_BK, tokens_BK = _extend(live_BK, logits_RV)
        before_limit_B1 = t + 1 < limits_B1
        if not open_end:
            going_BK = jnp.where(before_limit_B1, going_BK, -jnp.inf)

        totals_BK, places_BK = jax.lax.top_k(jnp.concatenate([ending_BK, going_BK], axis=1), beam)
        goes_on_BK = (places_BK >= beam) & before_limit_B1
        scores_BK = jnp.where(goes_on_BK, -jnp.inf, totals_BK) / length_penalty(t + 1, alpha)
        beams_BC = jnp.concatenate([each_BK, parents_BK], axis=1)
        last_BC = jnp.concatenate([jnp.full_like(tokens_BK, EOS), tokens_BK], axis=1)
        finished = _merge(
            finished,
            _Finished(
                scores_BK,
                jnp.full_like(places_BK, t + 1),
                jnp.take_along_axis(beams_BC, places_BK, axis=1),
                jnp.take_along_axis(last_BC, places_BK, axis=1),
            ),
        )

        going_BK = jnp.where(before_limit_B1, going_BK, -jnp.inf)
        bound_B1 = going_BK[:, :1] / length_penalty(limits_B1, alpha)
        going_BK = jnp.where(bound_B1 > finished.scores_BK[:, -1:], going_BK, -jnp.inf)
        return _Beams(
            t + 1,
            reorder(cache, parents_BK),
            going_BK,
            beams.parents_TBK.at[t].set(parents_BK),
            beams.tokens_TBK.at[t].set(tokens_BK),
            finished,
        )

    none_BK = jnp.zeros((batch, beam), jnp.int32)
    each_BK = jnp.broadcast_to(jnp.arange(beam)[None], (batch, beam))
    none_TBK = jnp.zeros((max_len, batch, beam), jnp.int32)
    finished = _Finished(jnp.full((batch, beam), -jnp.inf), none_BK, none_BK, none_BK)
    live_BK = jnp.where((limits_B1 > 0) & (each_BK == 0), 0.0, -jnp.inf)
    beams = _Beams(jnp.int32(0), reorder(cache, none_BK), live_BK, none_TBK, none_TBK, finished)
    return _trace_back(
        jax.lax.while_loop(
            lambda beams: (beams.t < max_len) & jnp.any(beams.live_BK > -jnp.inf), advance, beams
        )
    )


def _extend(
    live_BK: jax.Array, logits_RV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Compute the continuations of live hypotheses.

    Returns:
        log P of each hypothesis with EOS appended; then log P, parent and token of the K best
        other continuations, best first. All are [B, K].
    """
    batch, beam = live_BK.shape
    totals_RC, words_RC = top_words(logits_RV, beam)
    normalizer_R1 = jax.nn.logsumexp(logits_RV, axis=1, keepdims=True)
    ending_BK = live_BK + (logits_RV[:, EOS, None] - normalizer_R1).reshape(batch, beam)
    totals_RC = live_BK.reshape(-1, 1) + (totals_RC - normalizer_R1)
    going_BK, places_BK = jax.lax.top_k(totals_RC.reshape(batch, -1), beam)
    tokens_BK = jnp.take_along_axis(words_RC.reshape(batch, -1), places_BK, axis=1)
    return ending_BK, going_BK, places_BK // words_RC.shape[1], tokens_BK


def _merge(old: _Finished, new: _Finished) -> _Finished:
    """Keep the K best of two sets; at ties the older ones come first."""
    scores_BC = jnp.concatenate([old.scores_BK, new.scores_BK], axis=1)
    scores_BK, places_BK = jax.lax.top_k(scores_BC, old.scores_BK.shape[1])

    def pick(old_BK, new_BK):
        return jnp.take_along_axis(jnp.concatenate([old_BK, new_BK], axis=1), places_BK, axis=1)

    return _Finished(scores_BK, *map(pick, old[1:], new[1:]))


def _trace_back(beams: _Beams) -> Decoded:
    """Follow the back-pointers of the finished hypotheses from the last step to the first."""
    scores_BK, lengths_BK, beams_BK, last_BK = beams.finished
    lengths_BK = jnp.where(scores_BK == -jnp.inf, 0, lengths_BK)

    def back(beams_BK, step):
        t, parents_BK, tokens_BK = step
        inside_BK = t < lengths_BK - 1
        tokens_BK = jnp.take_along_axis(tokens_BK, beams_BK, axis=1)
        tokens_BK = jnp.where(inside_BK, tokens_BK, jnp.where(t == lengths_BK - 1, last_BK, PAD))
        parents_BK = jnp.take_along_axis(parents_BK, beams_BK, axis=1)
        return jnp.where(inside_BK, parents_BK, beams_BK), tokens_BK

    steps_T = jnp.arange(beams.tokens_TBK.shape[0])
    _, tokens_TBK = jax.lax.scan(
        back, beams_BK, (steps_T, beams.parents_TBK, beams.tokens_TBK), reverse=True
    )
    return Decoded(jnp.moveaxis(tokens_TBK, 0, 2), scores_BK, lengths_BK)

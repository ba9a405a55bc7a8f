"""Linear attention: the past is summed in a state of fixed size, whatever the length.

With features φ of queries and keys, and a decay a_t, the state and the output are

    S_t = diag(a_t) S_{t-1} + φ(k_t) v_tᵀ        o_t = S_tᵀ φ(q_t)

Rows are processed in chunks: all pairs of tokens within a chunk, and the state from chunk to chunk.
Letters of this file: R features of a head, C queries and S keys of a chunk, M chunks.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_jax import spec
from transformer_jax.attention import projections
from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.engines.pieces import Pieces, attend_in_pieces
from transformer_jax.attention.kinds.linear_decays import DECAYS, Decay, NoDecay, sum_between
from transformer_jax.attention.kinds.linear_features import FEATURES, Elu, FeatureMap
from transformer_jax.attention.kinds.linear_rows import (
    CausalInputs,
    KeysValues,
    State,
    append_axes,
    append_queries_to_keys,
    last_segment,
    reverse_time,
    split_chunks,
    state_before,
    turn_around,
    zero_padding,
)
from transformer_jax.attention.masks import Causal, Mask, Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.functional import rms_norm
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import number

PAST = Segments() & Causal()


@dataclasses.dataclass(frozen=True)
class Linear(Attention):
    """o_t = φ(q_t)ᵀ Σ_s φ(k_s) v_sᵀ / (φ(q_t)·Σ_s φ(k_s)), in time and memory linear in the length.

    Katharopoulos et al. 2020, sections 3.2 and 3.3. With a decay there is no division: each head
    gets an RMS norm instead, as in RetNet and GLA (which also have `feature=none` and
    `gate='element'`), and the kind is causal only. Position encodings that rotate act before φ.

    Options:
        feature: φ: none, elu, relu, taylor or favor.
        decay: none, fixed or gated.
        chunk: how many tokens a chunk has; 0: 64, or 16 with a gated decay. The result does not
            depend on it.
    """

    feature: FeatureMap = spec.nested(FEATURES, Elu())
    decay: Decay = spec.nested(DECAYS, NoDecay())
    chunk: int = number(0, low=0, high=10_000_000)
    supports_dropout: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self._divides() and not self.feature.positive:
            able = ', '.join(name for name, cls in FEATURES.items() if cls.positive)
            raise ValueError(
                f'feature=none has weights of either sign, which no sum can divide: it takes '
                f'decay=fixed or decay=gated; without decay use {able}'
            )

    @property
    def has_signed_weights(self) -> bool:
        return not self.feature.positive

    def supports(self) -> frozenset[str]:
        both_ways = {'encoder', 'cross'} if self._divides() else set()
        return frozenset({'causal', 'padding', 'segments', 'decode', 'context'} | both_ways)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
        return projections.queries(scope, x_BTD, tokens)

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        k_BSKH, v_BSKH = projections.keys_values(scope, x_BSD, tokens)
        features = self.feature.size(scope.heads.head_dim)
        return KeysValues(k_BSKH, v_BSKH, self.decay.log(scope, x_BSD, features))

    def attention_params(self, scope: ParamScope) -> dict[str, jax.Array]:
        if self._divides():
            return {}
        shape, ones = (scope.heads.value_dim,), jax.nn.initializers.ones
        return {'norm_H': scope.parameter('head_norm', shape, ('head_dim',), ones)}

    def attend(self, queries: jax.Array, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        # Of cross-attention no piece of the keys is the past or the future of a piece of queries.
        own = inputs.query_tokens is inputs.key_tokens
        attend_piece = functools.partial(self._attend_piece, own)
        return attend_in_pieces(attend_piece, queries, keys, inputs)

    def _attend_piece(
        self,
        own: bool,
        pieces: Pieces,
        queries: jax.Array,
        keys: KeysValues,
        inputs: AttentionInputs,
    ) -> jax.Array:
        """Return o_BTNH of this device's piece; `own`: of self-attention.

        Self-attention passes states between devices; cross-attention gathers the keys.
        """
        q_BTNH = zero_padding(queries, inputs.query_tokens)
        prepared = self._prepare_keys(keys, inputs.key_tokens)
        causal = CausalInputs(q_BTNH, prepared, inputs.query_tokens)
        empty = self.init_cache(keys, 0, inputs.mask)
        _, ahead = inputs.mask.reach()
        if ahead == 0:
            o_BTNH = self._attend_past(pieces, causal, empty)
        elif own and pieces.count > 1:
            o_BTNH = self._attend_past_and_future(pieces, causal, empty)
        else:
            prepared, key_tokens = pieces.gather_time((prepared, inputs.key_tokens))
            inputs = dataclasses.replace(inputs, key_tokens=key_tokens)
            o_BTNH = self._attend_all(q_BTNH, prepared, inputs, empty)
        return self._divide(o_BTNH).astype(keys.v_BSKH.dtype)

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        return o_BTNH if self._divides() else rms_norm(o_BTNH, params['norm_H'])

    def init_cache(self, keys: KeysValues, length: int, mask: Mask) -> State:
        B, _, K, H = keys.k_BSKH.shape
        value_dim = keys.v_BSKH.shape[-1] + (1 if self._divides() else 0)  # see `_prepare_keys`
        sums_BKRH = jnp.zeros((B, K, self.feature.size(H), value_dim), jnp.float32)
        return State(sums_BKRH, jnp.zeros(B, jnp.int32))

    def step(
        self, queries: jax.Array, keys: KeysValues, inputs: AttentionInputs, cache: State
    ) -> tuple[jax.Array, State]:
        tokens = inputs.query_tokens
        q_BTNH, prepared = zero_padding(queries, tokens), self._prepare_keys(keys, tokens)
        o_BTNH, cache = self._recur(CausalInputs(q_BTNH, prepared, tokens), cache)
        return self._divide(o_BTNH).astype(keys.v_BSKH.dtype), cache

    def _divides(self) -> bool:
        return isinstance(self.decay, NoDecay)

    def _chunk(self) -> int:
        return self.chunk or self.decay.chunk

    def _prepare_keys(self, keys: KeysValues, tokens: Tokens) -> KeysValues:
        """Return float32 values with a 1 appended, and zeros in the place of padding.

        The weighted sum of the appended ones is the sum of weights, by which `_divide` divides.
        """
        k_BSKH, v_BSKH, decay_BSKR = keys
        v_BSKH = v_BSKH.astype(jnp.float32)
        if self._divides():
            v_BSKH = jnp.concatenate([v_BSKH, jnp.ones_like(v_BSKH[..., :1])], axis=-1)
        return KeysValues(*(zero_padding(x, tokens) for x in (k_BSKH, v_BSKH, decay_BSKR)))

    def _divide(self, o_BTNH: jax.Array) -> jax.Array:
        """Divide the weighted values by the sum of weights, their last element; 0 / 0 is 0 here."""
        if not self._divides():
            return o_BTNH
        total_BTN1 = o_BTNH[..., -1:]
        return o_BTNH[..., :-1] / jnp.where(total_BTN1 > 0, total_BTN1, 1)

    def _attend_past(
        self, pieces: Pieces, causal: CausalInputs, empty: State, backwards: bool = False
    ) -> jax.Array:
        """Return o_BTNH of each token over its segment up to itself, in all pieces of the row."""
        if pieces.count == 1:
            return self._recur(causal, empty)[0]
        # Once for the state that this piece adds, and again from the state of all before it: the
        # compiler removes the outputs of the first time.
        _, end = self._recur(causal, empty)
        decay_BKR = jnp.exp(causal.keys.decay_BSKR.sum(1))
        before = state_before(pieces, end, decay_BKR, backwards)
        return self._recur(causal, before)[0]

    def _attend_past_and_future(
        self, pieces: Pieces, causal: CausalInputs, empty: State
    ) -> jax.Array:
        """Return o_BTNH of each token over its whole segment, in all pieces of the row."""
        past_BTNH = self._attend_past(pieces, causal, empty)
        turned_BTNH = self._attend_past(pieces, turn_around(causal), empty, backwards=True)
        # Both hold the token itself.
        return past_BTNH + reverse_time(turned_BTNH) - jax.checkpoint(self._attend_itself)(causal)

    def _attend_itself(self, causal: CausalInputs) -> jax.Array:
        """Return o_BTNH of each token over itself alone."""
        q_BTKGR, k_BTKR = self._features(causal.q_BTNH, causal.keys.k_BSKH)
        weights_BTKG = jnp.einsum('BTKGR,BTKR->BTKG', q_BTKGR, k_BTKR)
        o_BTKGH = weights_BTKG[..., None] * causal.keys.v_BSKH[:, :, :, None]
        return o_BTKGH.reshape(*causal.q_BTNH.shape[:3], -1)

    def _attend_all(
        self, q_BTNH: jax.Array, keys: KeysValues, inputs: AttentionInputs, empty: State
    ) -> jax.Array:
        """Return o_BTNH of each query over all keys of its segment, whichever row they are of."""
        if q_BTNH.shape[1] <= self._chunk():
            return self._attend_all_pairs(q_BTNH, keys, inputs.allowed_BTS())
        causal, indices_BT = append_queries_to_keys(q_BTNH, keys, inputs)
        o_BLNH, _ = self._recur(causal, empty)
        return jnp.take_along_axis(o_BLNH, indices_BT[..., None, None], axis=1)

    def _recur(self, causal: CausalInputs, state: State) -> tuple[jax.Array, State]:
        """Run the recurrence over a row.

        Returns:
            (o_BTNH of each token over its segment up to itself, the state after the row).
        """
        B, T, N, _ = causal.q_BTNH.shape
        C = min(self._chunk(), T)
        chunks = jax.tree.map(lambda x_BT: split_chunks(x_BT, C), causal)
        # The backward pass computes each chunk again, from the state before it: only states are
        # stored.
        state, o_MBCNH = jax.lax.scan(jax.checkpoint(self._process_chunk), state, chunks)
        return jnp.moveaxis(o_MBCNH, 0, 1).reshape(B, -1, N, o_MBCNH.shape[-1])[:, :T], state

    def _process_chunk(self, state: State, chunk: CausalInputs) -> tuple[State, jax.Array]:
        """Return the state after a chunk, and o_BCNH of its tokens.

        Every exponent is 0 or less, because no decay is ever divided out again: nothing overflows.
        """
        sums_BKRH, segment_B = state
        segments_BC, (_, v_BSKH, decay_BCKR) = chunk.tokens.segments_BT, chunk.keys
        q_BCKGR, k_BSKR = self._features(chunk.q_BTNH, chunk.keys.k_BSKH)
        log_BCSKR = sum_between(decay_BCKR)
        since_BCKR = jnp.exp(jnp.cumsum(decay_BCKR, axis=1))
        # Tokens of the chunk.
        weights_BKGCS = weigh(
            q_BCKGR, k_BSKR, jnp.exp(log_BCSKR), PAST.allowed(chunk.tokens, chunk.tokens)
        )
        o_BCKGH = jnp.einsum('BKGCS,BSKH->BCKGH', weights_BKGCS, v_BSKH)
        # Tokens before the chunk, for the queries of the segment that the state has summed.
        same_BC = segments_BC == segment_B[:, None]
        q_BCKGR = jnp.where(append_axes(same_BC, 5), q_BCKGR * since_BCKR[:, :, :, None], 0)
        o_BCKGH += jnp.einsum('BCKGR,BKRH->BCKGH', q_BCKGR, sums_BKRH)

        # The state after the chunk is that of its last segment.
        last_B = last_segment(segment_B, segments_BC)
        in_last_BC = segments_BC == last_B[:, None]
        k_BSKR = jnp.where(append_axes(in_last_BC, 4), k_BSKR * jnp.exp(log_BCSKR[:, -1]), 0)
        sums_BKRH = jnp.where(
            append_axes(segment_B == last_B, 4), sums_BKRH * since_BCKR[:, -1, :, :, None], 0
        )
        sums_BKRH += jnp.einsum('BSKR,BSKH->BKRH', k_BSKR, v_BSKH)
        B, C, K, G, H = o_BCKGH.shape
        return State(sums_BKRH, last_B), o_BCKGH.reshape(B, C, K * G, H)

    def _attend_all_pairs(
        self, q_BTNH: jax.Array, keys: KeysValues, allowed_BTS: jax.Array
    ) -> jax.Array:
        """Return o_BTNH from the weights of all pairs, without a state and without decay.

        For at most a chunk of queries: time and memory are linear in S.
        """
        weights_BKGTS = weigh(
            *self._features(q_BTNH, keys.k_BSKH), jnp.ones((1, 1, 1, 1, 1)), allowed_BTS
        )
        o_BTKGH = jnp.einsum('BKGTS,BSKH->BTKGH', weights_BKGTS, keys.v_BSKH)
        return o_BTKGH.reshape(*q_BTNH.shape[:3], -1)

    def _features(self, q_BTNH: jax.Array, k_BSKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return φ of queries and keys as (q_BTKGR, k_BSKR).

        Query head n = (k, g) reads key-value head k; keys are not repeated in memory.
        """
        (B, T, N, _), K = q_BTNH.shape, k_BSKH.shape[2]
        q_BTNR, k_BSKR = self.feature.map_queries(q_BTNH), self.feature.map_keys(k_BSKH)
        return q_BTNR.reshape(B, T, K, N // K, -1), k_BSKR


def weigh(
    q_BCKGR: jax.Array, k_BSKR: jax.Array, decay_BCSKR: jax.Array, allowed_BCS: jax.Array
) -> jax.Array:
    """Return weights_BKGCS = Σ_r q_r k_r decay_r where allowed, else 0.

    K and R of the decay may be 1.
    """
    if decay_BCSKR.shape[-1] == 1:
        weights_BKGCS = jnp.einsum('BCKGR,BSKR->BKGCS', q_BCKGR, k_BSKR)
        weights_BKGCS *= jnp.transpose(decay_BCSKR, (0, 3, 4, 1, 2))
    else:
        k_BCSKR = k_BSKR[:, None] * decay_BCSKR
        weights_BKGCS = jnp.einsum('BCKGR,BCSKR->BKGCS', q_BCKGR, k_BCSKR)
    return jnp.where(allowed_BCS[:, None, None], weights_BKGCS, 0)

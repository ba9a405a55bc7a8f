"""Linear attention: the sum over the past is a state of fixed size, whatever the length.

With features φ, S_t = diag(a_t) S_{t-1} + φ(k_t) v_tᵀ and o_t = S_tᵀ φ(q_t); a_t, the decay, is 1,
fixed or read off the token. Rows go through in chunks: within one, all pairs; between them, the
state. Letters of this file: R features of a head, C queries and S keys of a chunk.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import spec
from transformer_jax.attention import projections
from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.decays import DECAYS, Decay, NoDecay
from transformer_jax.attention.features import FEATURES, Elu, FeatureMap
from transformer_jax.attention.masks import Causal, Mask, Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.functional import rms_norm
from transformer_jax.layers.param_scope import ParamScope

PAST = Segments() & Causal()


class KeysValues(NamedTuple):
    """What is asked; `decay_BSKR` is the log of the state's decay at each token."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    decay_BSKR: jax.Array


class Row(NamedTuple):
    """Tokens that ask and are asked in the same places; those that are padding hold zeros and
    decay nothing.
    """

    q_BTNH: jax.Array
    keys: KeysValues
    tokens: Tokens


class State(NamedTuple):
    """Σ φ(k) vᵀ over the past of one segment, with its decay: the cache of a step."""

    sums_BKRH: jax.Array
    segment_B: jax.Array  # whose sums they are; 0: nobody's, and the sums are 0


@dataclasses.dataclass(frozen=True)
class Linear(Attention):
    """φ(q)ᵀ Σ φ(k) vᵀ in time and memory linear in the length (Katharopoulos et al. 2020).

    `feature`: φ, see `features`. `decay`: none, fixed or gated. Without decay the output is divided
    by φ(q)·Σ φ(k); with it, it gets an RMS norm in each head instead, as in RetNet and GLA (there:
    `feature=none`, `gate='element'`), and the kind is causal only. `chunk`: tokens that meet in
    pairs; 0: 64, or 16 with gated decay. A position encoding that rotates does so before φ.
    """

    feature: FeatureMap = spec.nested(FEATURES, Elu())
    decay: Decay = spec.nested(DECAYS, NoDecay())
    chunk: int = 0
    supports_dropout: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.chunk < 0:
            raise ValueError(
                f'chunk={self.chunk}, it takes a positive number, or 0 for the default'
            )
        if self._divides() and not self.feature.positive:
            able = ', '.join(name for name, cls in FEATURES.items() if cls.positive)
            raise ValueError(
                f'feature=none has weights of either sign, which no sum can divide: it takes decay=fixed '
                f'or decay=gated; without decay use {able}'
            )

    def supports(self) -> frozenset[str]:
        both_ways = {'encoder', 'cross'} if self._divides() else set()
        return frozenset({'causal', 'padding', 'segments', 'decode'} | both_ways)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
        return projections.queries(scope, x_BTD, tokens)

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        return KeysValues(
            *projections.keys_values(scope, x_BSD, tokens),
            self.decay.log(scope, x_BSD, self.feature.size(scope.heads.head_dim)),
        )

    def attention_params(self, scope: ParamScope) -> dict[str, jax.Array]:
        shape = (scope.heads.value_dim,)
        return (
            {}
            if self._divides()
            else {
                'norm_H': scope.parameter(
                    'head_norm', shape, ('head_dim',), jax.nn.initializers.ones
                )
            }
        )

    def attend(self, queries: jax.Array, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        q_BTNH, counted = _blank(queries, inputs.query_tokens), self._count(keys, inputs.key_tokens)
        _, ahead = inputs.mask.reach()
        if ahead == 0:
            o_BTNH, _ = self._recur(
                Row(q_BTNH, counted, inputs.query_tokens), self.init_cache(keys, 0, inputs.mask)
            )
        elif q_BTNH.shape[1] <= self._chunk():
            o_BTNH = self._all_pairs(q_BTNH, counted, inputs.allowed_BTS())
        else:
            row, places_BT = _in_line(q_BTNH, counted, inputs)
            o_BLNH, _ = self._recur(row, self.init_cache(keys, 0, inputs.mask))
            o_BTNH = jnp.take_along_axis(o_BLNH, places_BT[..., None, None], axis=1)
        return self._divide(o_BTNH).astype(keys.v_BSKH.dtype)

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        return o_BTNH if self._divides() else rms_norm(o_BTNH, params['norm_H'])

    def init_cache(self, keys: KeysValues, length: int, mask: Mask) -> State:
        B, _, K, H = keys.k_BSKH.shape
        value_dim = keys.v_BSKH.shape[-1] + self._divides()
        return State(
            jnp.zeros((B, K, self.feature.size(H), value_dim), jnp.float32), jnp.zeros(B, jnp.int32)
        )

    def step(
        self, queries: jax.Array, keys: KeysValues, inputs: AttentionInputs, cache: State
    ) -> tuple[jax.Array, State]:
        row = Row(
            _blank(queries, inputs.query_tokens),
            self._count(keys, inputs.query_tokens),
            inputs.query_tokens,
        )
        o_BTNH, cache = self._recur(row, cache)
        return self._divide(o_BTNH).astype(keys.v_BSKH.dtype), cache

    def _divides(self) -> bool:
        return isinstance(self.decay, NoDecay)

    def _chunk(self) -> int:
        return self.chunk or self.decay.chunk

    def _count(self, keys: KeysValues, tokens: Tokens) -> KeysValues:
        """The keys with a 1 after each value, whose weighted sum is the sum of weights; zeros
        for padding.
        """
        k_BSKH, v_BSKH, decay_BSKR = keys
        v_BSKH = v_BSKH.astype(jnp.float32)
        if self._divides():
            v_BSKH = jnp.concatenate([v_BSKH, jnp.ones_like(v_BSKH[..., :1])], axis=-1)
        return KeysValues(*(_blank(x, tokens) for x in (k_BSKH, v_BSKH, decay_BSKR)))

    def _divide(self, o_BTNH: jax.Array) -> jax.Array:
        """The weighted values divided by the sum of weights; 0 where nothing was seen."""
        if not self._divides():
            return o_BTNH
        total_BTN1 = o_BTNH[..., -1:]
        return o_BTNH[..., :-1] / jnp.where(total_BTN1 > 0, total_BTN1, 1)

    def _recur(self, row: Row, state: State) -> tuple[jax.Array, State]:
        """o_BTNH of all that each token of a row may see, itself and its past, and the state after
        the row.
        """
        B, T, N, _ = row.q_BTNH.shape
        C = min(self._chunk(), T)
        chunks = jax.tree.map(lambda x_BT: _split(x_BT, C), row)
        # Backward, a chunk is gone through again: what is kept of it is the state before it.
        state, o_MBCNH = jax.lax.scan(jax.checkpoint(self._advance), state, chunks)
        return jnp.moveaxis(o_MBCNH, 0, 1).reshape(B, -1, N, o_MBCNH.shape[-1])[:, :T], state

    def _advance(self, state: State, chunk: Row) -> tuple[State, jax.Array]:
        """The state after a chunk, and o_BCNH of it. No exponent is positive: no decay is
        ever undone.
        """
        sums_BKRH, segment_B = state
        segments_BC, (_, v_BSKH, decay_BCKR) = chunk.tokens.segments_BT, chunk.keys
        q_BCKGR, k_BSKR = self._features(chunk.q_BTNH, chunk.keys.k_BSKH)
        log_BCSKR = between(decay_BCKR)
        since_BCKR = jnp.exp(jnp.cumsum(decay_BCKR, axis=1))
        weights_BKGCS = weigh(
            q_BCKGR, k_BSKR, jnp.exp(log_BCSKR), PAST.allowed(chunk.tokens, chunk.tokens)
        )
        o_BCKGH = jnp.einsum('BKGCS,BSKH->BCKGH', weights_BKGCS, v_BSKH)
        q_BCKGR = jnp.where(
            _wide(segments_BC == segment_B[:, None], 5), q_BCKGR * since_BCKR[:, :, :, None], 0
        )
        o_BCKGH += jnp.einsum('BCKGR,BKRH->BCKGH', q_BCKGR, sums_BKRH)

        last_B = _last_segment(segment_B, segments_BC)
        k_BSKR = jnp.where(
            _wide(segments_BC == last_B[:, None], 4), k_BSKR * jnp.exp(log_BCSKR[:, -1]), 0
        )
        sums_BKRH = jnp.where(
            _wide(segment_B == last_B, 4), sums_BKRH * since_BCKR[:, -1, :, :, None], 0
        )
        sums_BKRH += jnp.einsum('BSKR,BSKH->BKRH', k_BSKR, v_BSKH)
        B, C, K, G, H = o_BCKGH.shape
        return State(sums_BKRH, last_B), o_BCKGH.reshape(B, C, K * G, H)

    def _all_pairs(self, q_BTNH: jax.Array, keys: KeysValues, allowed_BTS: jax.Array) -> jax.Array:
        """o_BTNH without a state or decay, of at most a chunk of queries: time and memory linear
        in S.
        """
        weights_BKGTS = weigh(
            *self._features(q_BTNH, keys.k_BSKH), jnp.ones((1, 1, 1, 1, 1)), allowed_BTS
        )
        o_BTKGH = jnp.einsum('BKGTS,BSKH->BTKGH', weights_BKGTS, keys.v_BSKH)
        return o_BTKGH.reshape(*q_BTNH.shape[:3], -1)

    def _features(self, q_BTNH: jax.Array, k_BSKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """φ as (q_BTKGR, k_BSKR): query head n = (k, g) reads key-value head k, and no key
        is repeated.
        """
        (B, T, N, _), K = q_BTNH.shape, k_BSKH.shape[2]
        return self.feature.map_queries(q_BTNH).reshape(B, T, K, N // K, -1), self.feature.map_keys(
            k_BSKH
        )


def between(decay_BCKR: jax.Array) -> jax.Array:
    """log_BCSKR: Σ decay over the tokens after key s up to query c, 0 where there are none.

    Summed for each pair: a difference of two sums from the chunk's start would lose a weak decay
    after a strong one.
    """
    C = decay_BCKR.shape[1]
    after_CS = jnp.arange(C)[:, None] > jnp.arange(C)[None]
    return jnp.cumsum(
        jnp.where(after_CS[None, :, :, None, None], decay_BCKR[:, :, None], 0), axis=1
    )


def weigh(
    q_BCKGR: jax.Array, k_BSKR: jax.Array, decay_BCSKR: jax.Array, allowed_BCS: jax.Array
) -> jax.Array:
    """weights_BKGCS = Σ_r q_r k_r decay_r where allowed, else 0; K and R of the decay may be 1."""
    if decay_BCSKR.shape[-1] == 1:
        weights_BKGCS = jnp.einsum('BCKGR,BSKR->BKGCS', q_BCKGR, k_BSKR)
        weights_BKGCS *= jnp.transpose(decay_BCSKR, (0, 3, 4, 1, 2))
    else:
        k_BCSKR = k_BSKR[:, None] * decay_BCSKR
        weights_BKGCS = jnp.einsum('BCKGR,BCSKR->BKGCS', q_BCKGR, k_BCSKR)
    return jnp.where(allowed_BCS[:, None, None], weights_BKGCS, 0)


def _in_line(q_BTNH: jax.Array, keys: KeysValues, inputs: AttentionInputs) -> tuple[Row, jax.Array]:
    """A row of L = S + T tokens where each segment's keys are followed by its queries, and
    places_BT of the queries.

    To the past of this row is to all keys of the segment: self-attention both ways and attention to
    another sequence cost what causal attention does, packed or not.
    """
    T, S = q_BTNH.shape[1], keys.k_BSKH.shape[1]
    segments_BL = jnp.concatenate(
        [inputs.key_tokens.segments_BT, inputs.query_tokens.segments_BT], axis=1
    )
    order_BL = jnp.argsort(segments_BL, axis=1, stable=True)

    def place(x, before=0, after=0):
        x_BL = jnp.pad(x, ((0, 0), (before, after), *(x.ndim - 2) * ((0, 0),)))
        return jnp.take_along_axis(
            x_BL, order_BL.reshape(*order_BL.shape, *(x.ndim - 2) * (1,)), axis=1
        )

    positions_BL = jnp.broadcast_to(jnp.arange(S + T)[None], segments_BL.shape)
    row = Row(
        place(q_BTNH, before=S),
        jax.tree.map(lambda x: place(x, after=T), keys),
        Tokens(positions_BL, place(segments_BL)),
    )
    return row, jnp.argsort(order_BL, axis=1)[:, S:]


def _last_segment(segment_B: jax.Array, segments_BC: jax.Array) -> jax.Array:
    """The segment of the last token that is no padding, `segment_B` where all are."""
    segments_BC = jnp.concatenate([segment_B[:, None], segments_BC], axis=1)
    places_BC = jnp.where(segments_BC != 0, jnp.arange(segments_BC.shape[1])[None], 0)
    return jnp.take_along_axis(segments_BC, places_BC.max(1, keepdims=True), axis=1)[:, 0]


def _blank(x: jax.Array, tokens: Tokens) -> jax.Array:
    """Zeros in place of padding, whatever that holds."""
    return jnp.where(_wide(tokens.segments_BT != 0, x.ndim), x, 0)


def _split(x_BT: jax.Array, C: int) -> jax.Array:
    """Chunks x_MBC of x_BT, the last filled up with padding."""
    B, T, *rest = x_BT.shape
    x_BT = jnp.pad(x_BT, ((0, 0), (0, -T % C), *len(rest) * ((0, 0),)))
    return jnp.moveaxis(x_BT.reshape(B, -1, C, *rest), 1, 0)


def _wide(x: jax.Array, ndim: int) -> jax.Array:
    """The same with axes of size 1 behind."""
    return x.reshape(*x.shape, *(ndim - x.ndim) * (1,))

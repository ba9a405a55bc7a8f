"""Reformer: attention within buckets of a locality-sensitive hash (Kitaev et al. 2020).

Letters of this file: R rounds of hashing; L time, padded to a multiple of M; C chunks of M sorted
tokens; W = 2M keys, those of a chunk and of the one before it; E random directions.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.mask_base import neg_inf
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import number

SELF_PENALTY = 1e5  # appendix A: a token attends to itself only where it sees nothing else


class Queries(NamedTuple):
    """Queries, which divided by their norm are the keys.

    They are float32, so that rounding moves no token to another bucket.
    """

    qk_BTNH: jax.Array


class Values(NamedTuple):
    """Projected values of one call."""

    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Reformer(Attention):
    """softmax(q_i·k_j / √d_k) over the tokens j that share a hash bucket with i in any round.

    Memory is O(T·chunk·rounds). Queries and keys are one projection q of N heads, with
    k_j = q_j / |q_j|; only values have K ≤ N heads. In each round, the bucket of a token is
    argmax([q A; −q A]) with a random matrix A, which is sampled from `seed` for each layer, round
    and head. Tokens are sorted by (bucket, time), with padding last, and cut into chunks. Token i
    sees the tokens of its bucket that are in its own chunk or in the one before.

    This is section 2 of the paper as it stands: a token at the end of a chunk does not see the rest
    of its bucket in the next chunk, although an encoder could. `buckets` and `chunk` do not grow
    with T, so that more padding changes nothing.

    The rounds are combined by appendix A: the result is the softmax over the union of what i sees
    in all rounds, without i itself unless nothing else is left.

    Options:
        buckets: 1 or an even number, because each direction has its opposite.
        chunk: M.
        rounds: R.
        seed: of the random directions, which are not learned.
    """

    buckets: int = number(16, low=1, high=1_000_000)
    chunk: int = number(32, low=1, high=10_000_000)
    rounds: int = number(4, low=1, high=1_000)
    seed: int = number(0, low=0, high=2**32 - 1)

    def __post_init__(self):
        super().__post_init__()
        if self.buckets != 1 and self.buckets % 2:
            raise ValueError(
                f'buckets={self.buckets}, it takes 1 or an even number: a direction and its '
                'opposite'
            )

    @property
    def reads_layer(self) -> bool:
        """Whether the random directions follow from the number of the layer: always."""
        return True

    def supports(self) -> frozenset[str]:
        return frozenset({'encoder', 'padding'})

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = scope.heads
        qk_BTNH = scope.project_to_heads(
            'query', x_BTD.astype(jnp.float32), heads.num_heads, heads.head_dim, 'heads'
        )
        return Queries(scope.position.rotate(qk_BTNH, tokens.positions_BT))

    def project_keys_values(self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> Values:
        heads = scope.heads
        return Values(
            scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads')
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        """Sample the random directions a_RNHE with E = buckets / 2; they are not learned."""
        heads = scope.heads
        rng = np.random.default_rng((self.seed, scope.layer))
        shape = self.rounds, heads.num_heads, heads.head_dim, self.buckets // 2
        return {'directions': jnp.asarray(rng.normal(size=shape), jnp.float32)}

    def attend(self, queries: Queries, keys: Values, inputs: AttentionInputs) -> jax.Array:
        real_BT, dtype = inputs.key_tokens.segments_BT != 0, keys.v_BSKH.dtype
        T = real_BT.shape[1]
        real_BL = jnp.pad(real_BT, ((0, 0), (0, -T % self.chunk)))
        qk_BLNH, v_BLKH = (pad_and_zero(x, real_BL) for x in (queries.qk_BTNH, keys.v_BSKH))
        k_BLNH = qk_BLNH * jax.lax.rsqrt(jnp.square(qk_BLNH).sum(-1, keepdims=True) + 1e-12)

        order_BNRL, inverse_BNRL, places_BNRL = self.sort(
            qk_BLNH, real_BL, inputs.params['directions']
        )
        q_BNRCMH, k_BNRCMH, v_BNRCMH = (
            cut_chunks(gather_sorted(x.astype(dtype), order_BNRL), self.chunk)
            for x in (qk_BLNH, k_BLNH, v_BLKH)
        )
        k_BNRCWH, v_BNRCWH = prepend_previous(k_BNRCMH, 0), prepend_previous(v_BNRCMH, 0)
        scores_BNRCMW = jnp.einsum(
            'BNRCMH,BNRCWH->BNRCMW', q_BNRCMH, k_BNRCWH, preferred_element_type=jnp.float32
        )
        scores_BNRCMW = correct_scores(
            scores_BNRCMW * q_BNRCMH.shape[-1] ** -0.5, order_BNRL, places_BNRL
        )
        z_BNRCM = jax.nn.logsumexp(scores_BNRCMW, axis=-1)
        weights_BNRCMW = inputs.apply_dropout(jnp.exp(scores_BNRCMW - z_BNRCM[..., None]))
        o_BNRCMH = jnp.einsum('BNRCMW,BNRCWH->BNRCMH', weights_BNRCMW.astype(dtype), v_BNRCWH)

        o_BNRLH = jnp.take_along_axis(
            o_BNRCMH.reshape(*order_BNRL.shape, -1), inverse_BNRL[..., None], axis=3
        )
        z_BNRL = jnp.take_along_axis(z_BNRCM.reshape(order_BNRL.shape), inverse_BNRL, axis=3)
        shares_BNRL = jax.nn.softmax(z_BNRL, axis=2).astype(dtype)
        o_BLNH = jnp.einsum('BNRL,BNRLH->BLNH', shares_BNRL, o_BNRLH)
        return jnp.where((inputs.query_tokens.segments_BT != 0)[..., None, None], o_BLNH[:, :T], 0)

    def sort(
        self, qk_BLNH: jax.Array, real_BL: jax.Array, a_RNHE: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Sort the tokens of each round by (bucket, time).

        Args:
            qk_BLNH: queries, float32.
            real_BL: False for padding.
            a_RNHE: random directions.

        Returns:
            (order_BNRL, the token at each sorted index; inverse_BNRL, the sorted index of each
            token; places_BNRL of each token). A place is a number made of bucket and chunk, such
            that token i sees token j where 0 ≤ place_i − place_j ≤ 1.
        """
        buckets_BNRL = jnp.where(
            real_BL[:, None, None], hash_buckets(qk_BLNH, a_RNHE), self.buckets
        )
        order_BNRL = jnp.argsort(buckets_BNRL, stable=True)
        inverse_BNRL = jnp.argsort(order_BNRL)
        # One more than the number of chunks, so that the last place of a bucket and the first place
        # of the next bucket differ by more than 1.
        stride = real_BL.shape[1] // self.chunk + 1
        return order_BNRL, inverse_BNRL, buckets_BNRL * stride + inverse_BNRL // self.chunk


def hash_buckets(x_BLNH: jax.Array, a_RNHE: jax.Array) -> jax.Array:
    """Return buckets_BNRL = argmax([x A; −x A]), the angular hash of Andoni et al. (2015).

    In float32, without a gradient; 0 where there are no directions.
    """
    B, L, N, _ = x_BLNH.shape
    R, _, _, E = a_RNHE.shape
    if not E:
        return jnp.zeros((B, N, R, L), jnp.int32)
    x_BLNH = jax.lax.stop_gradient(x_BLNH)
    y_BNRLE = jnp.einsum('BLNH,RNHE->BNRLE', x_BLNH, a_RNHE, precision='highest')
    return jnp.concatenate([y_BNRLE, -y_BNRLE], axis=-1).argmax(-1)


def correct_scores(
    scores_BNRCMW: jax.Array, order_BNRL: jax.Array, places_BNRL: jax.Array
) -> jax.Array:
    """Return the scores minus the m of appendix A, and −∞ for keys that are not seen.

    m is the logarithm of the number of rounds in which a pair meets, so that it counts once in the
    sum over rounds, and 1e5 for a token and itself.
    """
    *_, R, _, M, _ = scores_BNRCMW.shape

    def seen(places_BNRL: jax.Array) -> jax.Array:
        places_BNRCM = cut_chunks(jnp.take_along_axis(places_BNRL, order_BNRL, axis=3), M)
        back_BNRCMW = places_BNRCM[..., :, None] - prepend_previous(places_BNRCM, -2)[..., None, :]
        return (back_BNRCMW >= 0) & (back_BNRCMW <= 1)

    times_BNRCMW = sum(
        seen(jnp.broadcast_to(places_BNRL[:, :, r : r + 1], order_BNRL.shape)).astype(jnp.int32)
        for r in range(R)
    )
    tokens_BNRCM = cut_chunks(order_BNRL, M)
    itself_BNRCMW = tokens_BNRCM[..., :, None] == prepend_previous(tokens_BNRCM, -1)[..., None, :]
    log_times_BNRCMW = jnp.log(jnp.maximum(times_BNRCMW, 1).astype(jnp.float32))
    m_BNRCMW = jnp.where(itself_BNRCMW, SELF_PENALTY, log_times_BNRCMW)
    return jnp.where(seen(places_BNRL), scores_BNRCMW - m_BNRCMW, neg_inf(scores_BNRCMW.dtype))


def pad_and_zero(x_BTNH: jax.Array, real_BL: jax.Array) -> jax.Array:
    """Pad the time of an array to L, and set it to 0 where the token is padding."""
    x_BLNH = jnp.pad(x_BTNH, ((0, 0), (0, real_BL.shape[1] - x_BTNH.shape[1]), (0, 0), (0, 0)))
    return jnp.where(real_BL[..., None, None], x_BLNH, 0)


def gather_sorted(x_BLKH: jax.Array, order_BNRL: jax.Array) -> jax.Array:
    """Return x_BNRLH in the order of each head and round; head n reads head n // G of x."""
    B, N, *_ = order_BNRL.shape
    rows_B = jnp.arange(B)
    heads_N = jnp.arange(N) // (N // x_BLKH.shape[2])
    return x_BLKH[rows_B[:, None, None, None], order_BNRL, heads_N[None, :, None, None]]


def cut_chunks(x_BNRL: jax.Array, chunk: int) -> jax.Array:
    """Reshape x_BNRL to x_BNRCM, or x_BNRLH to x_BNRCMH."""
    return x_BNRL.reshape(*x_BNRL.shape[:3], -1, chunk, *x_BNRL.shape[4:])


def prepend_previous(x_BNRCM: jax.Array, fill: int) -> jax.Array:
    """Return x_BNRCW, or x_BNRCWH: the chunk before each chunk, then the chunk itself.

    `fill` is what the first chunk has before it.
    """
    before_BNRCM = jnp.concatenate(
        [jnp.full_like(x_BNRCM[:, :, :, :1], fill), x_BNRCM[:, :, :, :-1]], axis=3
    )
    return jnp.concatenate([before_BNRCM, x_BNRCM], axis=4)

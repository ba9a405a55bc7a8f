"""Reformer: attention within buckets of a locality-sensitive hash (Kitaev et al. 2020)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.masks import neg_inf
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope

SELF_PENALTY = 1e5  # appendix A: a token attends to itself only where it sees nothing else


class Queries(NamedTuple):
    """Queries, and keys when divided by their norm; float32, so that rounding moves no token to
    another bucket.
    """

    qk_BTNH: jax.Array


class Values(NamedTuple):
    """What is mixed."""

    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Reformer(Attention):
    """Tokens attend to those that a hash puts near them, in each of `rounds` rounds; memory in
    T·chunk·rounds.

    Letters: R rounds; L time, a multiple of M; C chunks of M tokens; W = 2M places of a chunk and
    the one before it.

    Queries and keys are one projection q of N heads, k_j = q_j / |q_j|; only values come in K ≤ N
    heads. In a round the bucket of a token is argmax([q A; −q A]), A random, drawn from `seed` for
    each layer, round and head. Tokens are sorted by (bucket, time), padding last, and cut into
    chunks. Token i sees those of its bucket in its own chunk and in the one before: section 2 as it
    stands, so that one at the end of a chunk does not see its bucket's rest in the next, although
    an encoder could. `buckets` and `chunk` do not grow with T: more padding changes nothing.

    The rounds are summed by appendix A: the result is softmax(q_i·k_j / √d_k) over the union of
    what i sees in any round, without i itself unless that leaves nothing.
    """

    buckets: int = 16
    chunk: int = 32
    rounds: int = 4
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.buckets != 1 and (self.buckets < 1 or self.buckets % 2):
            raise ValueError(
                f'buckets={self.buckets}, it takes 1 or an even number: a direction and its opposite'
            )
        for name in ('chunk', 'rounds'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be positive')
        if self.seed < 0:
            raise ValueError(f'seed={self.seed} must be 0 or more')

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
        """The directions, which are not learned: a_RNHE, E = buckets / 2."""
        heads = scope.heads
        rng = np.random.default_rng((self.seed, scope.layer))
        shape = self.rounds, heads.num_heads, heads.head_dim, self.buckets // 2
        return {'directions': jnp.asarray(rng.normal(size=shape), jnp.float32)}

    def attend(self, queries: Queries, keys: Values, inputs: AttentionInputs) -> jax.Array:
        real_BT, dtype = inputs.key_tokens.segments_BT != 0, keys.v_BSKH.dtype
        T = real_BT.shape[1]
        real_BL = jnp.pad(real_BT, ((0, 0), (0, -T % self.chunk)))
        qk_BLNH, v_BLKH = (clear(x, real_BL) for x in (queries.qk_BTNH, keys.v_BSKH))
        k_BLNH = qk_BLNH * jax.lax.rsqrt(jnp.square(qk_BLNH).sum(-1, keepdims=True) + 1e-12)

        order_BNRL, back_BNRL, places_BNRL = self.sort(
            qk_BLNH, real_BL, inputs.params['directions']
        )
        q_BNRCMH, k_BNRCMH, v_BNRCMH = (
            cut(take(x.astype(dtype), order_BNRL), self.chunk) for x in (qk_BLNH, k_BLNH, v_BLKH)
        )
        k_BNRCWH, v_BNRCWH = with_previous(k_BNRCMH, 0), with_previous(v_BNRCMH, 0)
        scores_BNRCMW = jnp.einsum(
            'BNRCMH,BNRCWH->BNRCMW', q_BNRCMH, k_BNRCWH, preferred_element_type=jnp.float32
        )
        scores_BNRCMW = corrected(
            scores_BNRCMW * q_BNRCMH.shape[-1] ** -0.5, order_BNRL, places_BNRL
        )
        z_BNRCM = jax.nn.logsumexp(scores_BNRCMW, axis=-1)
        weights_BNRCMW = inputs.apply_dropout(jnp.exp(scores_BNRCMW - z_BNRCM[..., None])).astype(
            dtype
        )
        o_BNRCMH = jnp.einsum('BNRCMW,BNRCWH->BNRCMH', weights_BNRCMW, v_BNRCWH)

        o_BNRLH = jnp.take_along_axis(
            o_BNRCMH.reshape(*order_BNRL.shape, -1), back_BNRL[..., None], axis=3
        )
        z_BNRL = jnp.take_along_axis(z_BNRCM.reshape(order_BNRL.shape), back_BNRL, axis=3)
        shares_BNRL = jax.nn.softmax(z_BNRL, axis=2).astype(dtype)
        o_BLNH = jnp.einsum('BNRL,BNRLH->BLNH', shares_BNRL, o_BNRLH)
        return jnp.where((inputs.query_tokens.segments_BT != 0)[..., None, None], o_BLNH[:, :T], 0)

    def sort(
        self, qk_BLNH: jax.Array, real_BL: jax.Array, a_RNHE: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Which token comes where in each round, order_BNRL; its inverse, back_BNRL; each token's
        place, places_BNRL.

        A place is one number for bucket and chunk, such that i sees j where
        0 ≤ place_i − place_j ≤ 1.
        """
        buckets_BNRL = jnp.where(real_BL[:, None, None], hashed(qk_BLNH, a_RNHE), self.buckets)
        order_BNRL = jnp.argsort(buckets_BNRL, stable=True)
        back_BNRL = jnp.argsort(order_BNRL)
        # One more than there are chunks: the last of a bucket is not the one before the first of
        # the next bucket.
        stride = real_BL.shape[1] // self.chunk + 1
        return order_BNRL, back_BNRL, buckets_BNRL * stride + back_BNRL // self.chunk


def hashed(x_BLNH: jax.Array, a_RNHE: jax.Array) -> jax.Array:
    """buckets_BNRL: argmax([x A; −x A]), the angular hash of Andoni et al. (2015), in float32; 0
    without directions.
    """
    B, L, N, _ = x_BLNH.shape
    R, _, _, E = a_RNHE.shape
    if not E:
        return jnp.zeros((B, N, R, L), jnp.int32)
    x_BLNH = jax.lax.stop_gradient(x_BLNH)
    y_BNRLE = jnp.einsum('BLNH,RNHE->BNRLE', x_BLNH, a_RNHE, precision='highest')
    return jnp.concatenate([y_BNRLE, -y_BNRLE], axis=-1).argmax(-1)


def corrected(scores_BNRCMW: jax.Array, order_BNRL: jax.Array, places_BNRL: jax.Array) -> jax.Array:
    """Scores less the m of appendix A: log of the rounds that count a pair, 1e5 for i = j; −∞ for
    what is not seen.
    """
    *_, R, _, M, _ = scores_BNRCMW.shape

    def seen(places_BNRL: jax.Array) -> jax.Array:
        places_BNRCM = cut(jnp.take_along_axis(places_BNRL, order_BNRL, axis=3), M)
        back_BNRCMW = places_BNRCM[..., :, None] - with_previous(places_BNRCM, -2)[..., None, :]
        return (back_BNRCMW >= 0) & (back_BNRCMW <= 1)

    times_BNRCMW = sum(
        seen(jnp.broadcast_to(places_BNRL[:, :, r : r + 1], order_BNRL.shape)).astype(jnp.int32)
        for r in range(R)
    )
    tokens_BNRCM = cut(order_BNRL, M)
    itself_BNRCMW = tokens_BNRCM[..., :, None] == with_previous(tokens_BNRCM, -1)[..., None, :]
    m_BNRCMW = jnp.where(
        itself_BNRCMW, SELF_PENALTY, jnp.log(jnp.maximum(times_BNRCMW, 1).astype(jnp.float32))
    )
    return jnp.where(seen(places_BNRL), scores_BNRCMW - m_BNRCMW, neg_inf(scores_BNRCMW.dtype))


def clear(x_BTNH: jax.Array, real_BL: jax.Array) -> jax.Array:
    """x_BLNH: longer by zeros, and zero where padded."""
    x_BLNH = jnp.pad(x_BTNH, ((0, 0), (0, real_BL.shape[1] - x_BTNH.shape[1]), (0, 0), (0, 0)))
    return jnp.where(real_BL[..., None, None], x_BLNH, 0)


def take(x_BLKH: jax.Array, order_BNRL: jax.Array) -> jax.Array:
    """x_BNRLH: in the order of each head and round; head n reads head n // G."""
    B, N, *_ = order_BNRL.shape
    rows_B = jnp.arange(B)
    heads_N = jnp.arange(N) // (N // x_BLKH.shape[2])
    return x_BLKH[rows_B[:, None, None, None], order_BNRL, heads_N[None, :, None, None]]


def cut(x_BNRL: jax.Array, chunk: int) -> jax.Array:
    """x_BNRCM, or x_BNRCMH of x_BNRLH."""
    return x_BNRL.reshape(*x_BNRL.shape[:3], -1, chunk, *x_BNRL.shape[4:])


def with_previous(x_BNRCM: jax.Array, fill: int) -> jax.Array:
    """x_BNRCW, or x_BNRCWH: each chunk behind the one before it; before the first stands `fill`."""
    before_BNRCM = jnp.concatenate(
        [jnp.full_like(x_BNRCM[:, :, :, :1], fill), x_BNRCM[:, :, :, :-1]], axis=3
    )
    return jnp.concatenate([before_BNRCM, x_BNRCM], axis=4)

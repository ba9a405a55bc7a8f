"""Sparse Sinkhorn attention: blocks sorted by a learned, soft permutation (Tay et al. 2020).

Letters of this file: C blocks of queries and E blocks of keys, of M tokens each; W = 2M keys, those
of a sorted block and of the query's own block.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention import projections
from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.mask_base import neg_inf
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import number

# A sorted place that has less than this share of real tokens counts as padding: a division by less
# would overflow in the backward pass.
LEAST_SHARE = 1e-6


class Queries(NamedTuple):
    """Queries, and the projection by which their block chooses another block."""

    q_BTNH: jax.Array
    sort_BTKH: jax.Array


class KeysValues(NamedTuple):
    """Keys and values, and the projection by which their block is chosen."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    sort_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Attention):
    """Softmax attention to the query's own block, and to a block that a learned sorting brings.

    Tay et al. 2020, section 3. Memory is O(T·block + (T/block)²).

    Each key-value head sorts the blocks. The logit of block j for block i is
    R_ij = a_i·b_j / (M √d_k τ), where a_i and b_j are sums of learned projections of the blocks'
    tokens. The paper maps block i to one logit for each of a fixed number of blocks; a product
    needs no such number, and more padding changes nothing. `iterations` times, the columns and then
    the rows of exp(R) are divided by their sums, which gives S (section 3.1.1, on logarithms). The
    paper begins with the rows; here they are last, so that a sorted block is a mean of blocks after
    any number of iterations. There is no Gumbel noise.

    Place m of the sorted block i is the mean of the places m of all blocks j with the weights S_ij.
    Blocks without a real token take no part in the sorting, and padded places no part in the mean.
    Where the mean has the share s < 1 of real tokens, log s is added to its score: for a
    permutation this masks the padded places and leaves the others unchanged.

    A position encoding rotates keys before they are sorted.

    Options:
        block: M.
        iterations: of the division by sums.
        temperature: τ.
    """

    block: int = number(32, low=1, high=10_000_000)
    iterations: int = number(8, low=1, high=1_000)
    temperature: float = number(1.0, low=1e-6, high=1e6)

    def supports(self) -> frozenset[str]:
        return frozenset({'encoder', 'padding'})

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = scope.heads
        return Queries(
            projections.queries(scope, x_BTD, tokens),
            scope.project_to_heads('sort_query', x_BTD, heads.kv_heads, heads.head_dim, 'kv_heads'),
        )

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        heads = scope.heads
        return KeysValues(
            *projections.keys_values(scope, x_BSD, tokens),
            scope.project_to_heads('sort_key', x_BSD, heads.kv_heads, heads.head_dim, 'kv_heads'),
        )

    def attend(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        B, T, N, H = queries.q_BTNH.shape
        K = keys.v_BSKH.shape[2]
        real_BT = inputs.key_tokens.segments_BT != 0
        real_BCM = jnp.pad(real_BT, ((0, 0), (0, -T % self.block))).reshape(B, -1, self.block)
        q_BCMNH, k_BCMKH, v_BCMKH = (
            cut_blocks(x, real_BCM) for x in (queries.q_BTNH, keys.k_BSKH, keys.v_BSKH)
        )
        shares_BKCE = self.sort(
            cut_blocks(queries.sort_BTKH, real_BCM), cut_blocks(keys.sort_BSKH, real_BCM), real_BCM
        )

        real_BEM = real_BCM.astype(jnp.float32)
        share_BKCM = jnp.einsum('BKCE,BEM->BKCM', shares_BKCE, real_BEM)
        seen_BKCM = share_BKCM > LEAST_SHARE
        share_BKCM = jnp.where(seen_BKCM, share_BKCM, 1)
        k_BCWKH, v_BCWKH = (prepend_sorted(x, shares_BKCE, share_BKCM) for x in (k_BCMKH, v_BCMKH))
        own_BKCM = jnp.broadcast_to(real_BCM[:, None], seen_BKCM.shape)
        seen_BKCW = jnp.concatenate([seen_BKCM, own_BKCM], axis=-1)
        bias_BKCW = jnp.concatenate([jnp.log(share_BKCM), jnp.zeros_like(share_BKCM)], axis=-1)

        q_BCMKGH = q_BCMNH.reshape(*q_BCMNH.shape[:3], K, N // K, H)
        scores_BKGCMW = jnp.einsum(
            'BCMKGH,BCWKH->BKGCMW', q_BCMKGH, k_BCWKH, preferred_element_type=jnp.float32
        )
        scores_BKGCMW = scores_BKGCMW * H**-0.5 + bias_BKCW[:, :, None, :, None]
        scores_BKGCMW = jnp.where(
            seen_BKCW[:, :, None, :, None], scores_BKGCMW, neg_inf(scores_BKGCMW.dtype)
        )
        weights_BKGCMW = inputs.apply_dropout(jax.nn.softmax(scores_BKGCMW)).astype(v_BCWKH.dtype)
        o_BCMKGH = jnp.einsum('BKGCMW,BCWKH->BCMKGH', weights_BKGCMW, v_BCWKH)
        o_BTNH = o_BCMKGH.reshape(B, -1, N, o_BCMKGH.shape[-1])[:, :T]
        return jnp.where((inputs.query_tokens.segments_BT != 0)[..., None, None], o_BTNH, 0)

    def sort(self, a_BCMKH: jax.Array, b_BEMKH: jax.Array, real_BCM: jax.Array) -> jax.Array:
        """Return float32 shares_BKCE: the share of key block E in what block C of queries gets."""
        *_, M, _, H = a_BCMKH.shape
        a_BCKH, b_BEKH = (x.astype(jnp.float32).sum(2) for x in (a_BCMKH, b_BEMKH))
        logits_BKCE = jnp.einsum('BCKH,BEKH->BKCE', a_BCKH, b_BEKH) / (
            M * H**0.5 * self.temperature
        )
        real_BC = real_BCM.any(-1)
        allowed_BCE = real_BC[:, :, None] & real_BC[:, None]
        return doubly_stochastic(logits_BKCE, allowed_BCE, self.iterations)


def doubly_stochastic(logits_BKCE: jax.Array, allowed_BCE: jax.Array, iterations: int) -> jax.Array:
    """Divide the columns, then the rows, of exp(logits) by their sums, `iterations` times.

    Sinkhorn (1964), on logarithms. Rows sum to 1 after every iteration, columns in the limit.

    Args:
        logits_BKCE: float32.
        allowed_BCE: where the result may be other than 0.
        iterations: how often.
    """
    allowed_BKCE = jnp.broadcast_to(allowed_BCE[:, None], logits_BKCE.shape)
    low = neg_inf(logits_BKCE.dtype)

    def iterate(x_BKCE: jax.Array, _: None) -> tuple[jax.Array, None]:
        for axis in (-2, -1):
            x_BKCE = jnp.where(
                allowed_BKCE, x_BKCE - jax.nn.logsumexp(x_BKCE, axis, keepdims=True), low
            )
        return x_BKCE, None

    x_BKCE, _ = jax.lax.scan(iterate, jnp.where(allowed_BKCE, logits_BKCE, low), length=iterations)
    return jnp.where(allowed_BKCE, jnp.exp(x_BKCE), 0)


def cut_blocks(x_BTNH: jax.Array, real_BCM: jax.Array) -> jax.Array:
    """Return x_BCMNH, cut into blocks and 0 where the token is padding."""
    B, C, M = real_BCM.shape
    x_BTNH = jnp.pad(x_BTNH, ((0, 0), (0, C * M - x_BTNH.shape[1]), (0, 0), (0, 0)))
    return jnp.where(real_BCM[..., None, None], x_BTNH.reshape(B, C, M, *x_BTNH.shape[2:]), 0)


def prepend_sorted(x_BEMKH: jax.Array, shares_BKCE: jax.Array, share_BKCM: jax.Array) -> jax.Array:
    """Return x_BCWKH: the sorted block of each block, then the block itself.

    Args:
        x_BEMKH: keys or values in blocks.
        shares_BKCE: from `Sinkhorn.sort`.
        share_BKCM: the share of real tokens in each place of a sorted block; it divides the place.
    """
    shares_BKCE = shares_BKCE.astype(x_BEMKH.dtype)
    sorted_BCMKH = jnp.einsum(
        'BKCE,BEMKH->BCMKH', shares_BKCE, x_BEMKH, preferred_element_type=jnp.float32
    )
    sorted_BCMKH /= jnp.moveaxis(share_BKCM, 1, 3)[..., None]
    return jnp.concatenate([sorted_BCMKH.astype(x_BEMKH.dtype), x_BEMKH], axis=2)

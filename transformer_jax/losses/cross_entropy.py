"""Cross-entropy as sums over tokens.

The caller adds the sums of all devices and microbatches and then divides once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.layers import functional
from transformer_jax.losses.chunks import counted_first, join_chunks, reorder, time_chunks


class TokenSums(NamedTuple):
    """Sums over target tokens; float32 scalars."""

    loss: jax.Array  # nats, with label smoothing: what training minimizes
    nll: jax.Array  # nats, without label smoothing: perplexity is exp(nll / weight)
    correct: jax.Array  # weight of the tokens whose most likely prediction is the target
    weight: jax.Array  # of all tokens

    def __add__(self, other: 'TokenSums') -> 'TokenSums':
        return TokenSums(*(a + b for a, b in zip(self, other, strict=True)))


def cross_entropy(
    x_BTD: jax.Array,
    w_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    smoothing: jax.Array | float,
    softcap: float = 0.0,
) -> TokenSums:
    """Compute the label-smoothed cross-entropy of the logits x Wᵀ, one chunk of tokens at a time.

    The target distribution is 1 − ε at the target plus ε/V everywhere (Szegedy et al. 2016, section
    7). The logits of at most one chunk are in memory, and a chunk whose tokens all have weight 0
    costs nothing. The gradient of a chunk is computed in the forward pass, together with its
    logits; the backward pass only multiplies it by the cotangent. So a chunk takes three matrix
    products instead of four. Only `loss` has a gradient, with respect to `x_BTD` and `w_VD`.

    Args:
        x_BTD: features.
        w_VD: the output table.
        targets_BT: token ids.
        weights_BT: the weight of each token, 0 for those that do not count.
        smoothing: ε; may be traced.
        softcap: c of the logits c · tanh(x Wᵀ / c); 0: the logits are x Wᵀ.
    """
    return _cross_entropy(
        softcap, x_BTD, w_VD.astype(x_BTD.dtype), targets_BT, weights_BT, smoothing
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(softcap, x_BTD, w_VD, targets_BT, weights_BT, smoothing):
    """Compute the sums where no gradient is needed."""

    def body(sums, chunk):
        x_CD, targets_C, weights_C = chunk
        new = jax.lax.cond(
            (weights_C != 0).any(),
            lambda: _chunk(x_CD, targets_C, weights_C, w_VD, smoothing, softcap)[0],
            _nothing,
        )
        return sums + new, None

    order_BT = counted_first(weights_BT)
    sides = x_BTD, targets_BT, weights_BT
    chunks = tuple(time_chunks(reorder(a_BT, order_BT)) for a_BT in sides)
    return jax.lax.scan(body, _nothing(), chunks)[0]


def _forward(softcap, x_BTD, w_VD, targets_BT, weights_BT, smoothing):
    """Compute the sums, and the gradient of `loss` for the backward pass."""

    def compute(chunk, dw_VD):
        x_CD, targets_C, weights_C = chunk
        sums, dlogits_CV = _chunk(x_CD, targets_C, weights_C, w_VD, smoothing, softcap)
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)
        dx_CD = jnp.einsum('CV,VD->CD', dlogits_CV, w_VD)
        dw_VD += jnp.einsum('CV,CD->VD', dlogits_CV, x_CD, preferred_element_type=jnp.float32)
        return sums, dw_VD, dx_CD

    def body(carry, chunk):
        sums, dw_VD = carry
        new, dw_VD, dx_CD = jax.lax.cond(
            (chunk[-1] != 0).any(),
            compute,
            lambda chunk, dw_VD: (_nothing(), dw_VD, jnp.zeros_like(chunk[0])),
            chunk,
            dw_VD,
        )
        return (sums + new, dw_VD), dx_CD

    order_BT = counted_first(weights_BT)
    sides = x_BTD, targets_BT, weights_BT
    chunks = tuple(time_chunks(reorder(a_BT, order_BT)) for a_BT in sides)
    (sums, dw_VD), dx_LCD = jax.lax.scan(
        body, (_nothing(), jnp.zeros(w_VD.shape, jnp.float32)), chunks
    )
    dx_BTD = reorder(join_chunks(dx_LCD, len(x_BTD)), jnp.argsort(order_BT, axis=1))
    return sums, (dx_BTD, dw_VD.astype(w_VD.dtype))


def _backward(softcap, gradients, cotangent):
    """Multiply the gradient by the cotangent of `loss`."""
    dx_BTD, dw_VD = gradients
    scale = cotangent.loss
    return dx_BTD * scale.astype(dx_BTD.dtype), dw_VD * scale.astype(dw_VD.dtype), None, None, None


def _nothing() -> TokenSums:
    """Return the sums of no tokens."""
    return TokenSums(*4 * [jnp.zeros((), jnp.float32)])


_cross_entropy.defvjp(_forward, _backward)


def _chunk(x_CD, targets_C, weights_C, w_VD, smoothing, softcap):
    """Compute (sums, gradient of the loss with respect to x Wᵀ) of one chunk of C tokens.

    Where the caller drops the gradient, the compiler removes its computation.
    """
    V = w_VD.shape[0]
    logits_CV = jnp.einsum('CD,VD->CV', x_CD, w_VD, preferred_element_type=jnp.float32)
    logits_CV = functional.softcap(logits_CV, softcap)
    top_C1 = logits_CV.max(-1, keepdims=True)
    exp_CV = jnp.exp(logits_CV - top_C1)
    total_C1 = exp_CV.sum(-1, keepdims=True)
    norm_C = (jnp.log(total_C1) + top_C1)[:, 0]
    target_C = jnp.take_along_axis(logits_CV, targets_C[:, None], -1)[:, 0]
    nll_C = norm_C - target_C
    smooth_C = norm_C - logits_CV.mean(-1)
    loss_C = (1 - smoothing) * nll_C + smoothing * smooth_C
    sums = TokenSums(
        *(
            (a_C * weights_C).sum()
            for a_C in (loss_C, nll_C, target_C >= top_C1[:, 0], jnp.ones_like(nll_C))
        )
    )
    target_CV = jnp.arange(V)[None] == targets_C[:, None]
    dlogits_CV = exp_CV / total_C1 - (1 - smoothing) * target_CV - smoothing / V
    if softcap:
        dlogits_CV *= 1 - jnp.square(logits_CV / softcap)
    return sums, dlogits_CV * weights_C[:, None]

"""Losses: sums over tokens, to be divided once by whoever has summed over all devices and microbatches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Tokens whose logits are held at once. On a CPU 512 × 10,000 float32 logits still fit a 32 MB cache; accelerators lose
# nothing to a loop of matrix products of this size.
CHUNK_TOKENS = 512


class Sums(NamedTuple):
    """Sums over target tokens, float32."""

    loss: jax.Array  # nats, label smoothing included: what is minimised
    nll: jax.Array  # nats, without it: what perplexity is made of
    correct: jax.Array  # tokens whose most likely prediction is the target
    weight: jax.Array  # tokens that count

    def __add__(self, other: 'Sums') -> 'Sums':
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def cross_entropy(x_BTD: jax.Array, w_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array,
                  smoothing: jax.Array) -> Sums:
    """Label-smoothed cross-entropy of the logits x Wᵀ, without ever holding all of them.

    The target distribution is (1−ε) at the target plus ε/V everywhere (Szegedy et al. 2016, section 7). Time is cut
    into chunks. Because the loss is linear in its own cotangent, the gradient of a chunk is made while its logits are at
    hand, so that the backward pass has no logits to recompute: three matrix products a chunk instead of four.

    Args:
        x_BTD: features.
        w_VD: the output table; gradients flow to it and to `x_BTD`.
        targets_BT: token ids.
        weights_BT: how much each token counts.
        smoothing: ε, may be traced.
    """
    B, T = targets_BT.shape
    steps = next(c for c in range(1, T + 1) if T % c == 0 and (c == T or B * c >= CHUNK_TOKENS))

    def chunks(a_BT):
        return jnp.moveaxis(a_BT.reshape(B, T // steps, steps, *a_BT.shape[2:]), 1, 0)
    return _cross_entropy(chunks(x_BTD), w_VD.astype(x_BTD.dtype), chunks(targets_BT), chunks(weights_BT), smoothing)


@jax.custom_vjp
def _cross_entropy(x_LBTD, w_VD, targets_LBT, weights_LBT, smoothing):
    def body(sums, chunk):
        return sums + _chunk(*chunk, w_VD, smoothing)[0], None
    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(body, Sums(zero, zero, zero, zero), (x_LBTD, targets_LBT, weights_LBT))[0]


def _forward(x_LBTD, w_VD, targets_LBT, weights_LBT, smoothing):
    def body(carry, chunk):
        sums, dw_VD = carry
        x_BTD = chunk[0]
        new, dlogits_BTV = _chunk(*chunk, w_VD, smoothing)
        dlogits_BTV = dlogits_BTV.astype(x_BTD.dtype)
        dx_BTD = jnp.einsum('BTV,VD->BTD', dlogits_BTV, w_VD)
        dw_VD += jnp.einsum('BTV,BTD->VD', dlogits_BTV, x_BTD, preferred_element_type=jnp.float32)
        return (sums + new, dw_VD), dx_BTD
    zero = jnp.zeros((), jnp.float32)
    start = Sums(zero, zero, zero, zero), jnp.zeros(w_VD.shape, jnp.float32)
    (sums, dw_VD), dx_LBTD = jax.lax.scan(body, start, (x_LBTD, targets_LBT, weights_LBT))
    return sums, (dx_LBTD, dw_VD.astype(w_VD.dtype))


def _backward(gradients, cotangent):
    dx_LBTD, dw_VD = gradients
    scale = cotangent.loss
    return dx_LBTD * scale.astype(dx_LBTD.dtype), dw_VD * scale.astype(dw_VD.dtype), None, None, None


_cross_entropy.defvjp(_forward, _backward)


def _chunk(x_BTD, targets_BT, weights_BT, w_VD, smoothing):
    """(sums, gradient of the loss with respect to the logits) of one chunk; what nobody uses is never computed."""
    V = w_VD.shape[0]
    logits_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, w_VD, preferred_element_type=jnp.float32)
    top_BT1 = logits_BTV.max(-1, keepdims=True)
    exp_BTV = jnp.exp(logits_BTV - top_BT1)
    total_BT1 = exp_BTV.sum(-1, keepdims=True)
    norm_BT = (jnp.log(total_BT1) + top_BT1)[..., 0]
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    nll_BT = norm_BT - target_BT
    smooth_BT = norm_BT - logits_BTV.mean(-1)
    loss_BT = (1 - smoothing) * nll_BT + smoothing * smooth_BT
    sums = Sums(*((a_BT * weights_BT).sum() for a_BT in (loss_BT, nll_BT, target_BT >= top_BT1[..., 0],
                                                         jnp.ones_like(nll_BT))))
    target_BTV = jnp.arange(V)[None, None] == targets_BT[..., None]
    dlogits_BTV = exp_BTV / total_BT1 - (1 - smoothing) * target_BTV - smoothing / V
    return sums, dlogits_BTV * weights_BT[..., None]

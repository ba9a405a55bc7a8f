"""Norms and the softcap as pure functions, for attention, layers, models and losses."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, eps: float) -> jax.Array:
    """Normalize the last axis: (x − mean) / √(variance + ε) · scale + bias.

    Ba et al. (2016), equation 4. Computed in float32; the result has the type of `x`.
    """
    x32 = x.astype(jnp.float32)
    centered = x32 - x32.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps)
    y = centered * factor * _last(scale_D, x.ndim)
    return (y if bias_D is None else y + _last(bias_D, x.ndim)).astype(x.dtype)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Divide the last axis by its root mean square: x / √(mean x² + ε) · scale.

    Zhang & Sennrich (2019), equation 4. Computed in float32; the result has the type of `x`.
    """
    x32 = x.astype(jnp.float32)
    mean = jnp.square(x32).mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps) * _last(scale_D, x.ndim)).astype(x.dtype)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Limit x to ±cap smoothly: cap · tanh(x / cap) (Gemma Team 2024); cap 0 returns x."""
    return cap * jnp.tanh(x / cap) if cap else x


def _last(a_D: jax.Array, ndim: int) -> jax.Array:
    """Give a_D `ndim` dimensions, of which D is the last."""
    return jnp.expand_dims(a_D, tuple(range(ndim - 1)))

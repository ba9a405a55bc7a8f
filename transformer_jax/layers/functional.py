"""Small functions that attention, layers, models and losses share."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None, eps: float) -> jax.Array:
    """(x − mean) / √(variance + ε) · scale + bias over the last axis, in float32 (Ba et al. 2016,
    equation 4).
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    y = (
        centred
        * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
        * _last(scale_D, x.ndim)
    )
    return (y if bias_D is None else y + _last(bias_D, x.ndim)).astype(x.dtype)


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float = 1e-6) -> jax.Array:
    """X / √(mean x² + ε) · scale over the last axis, in float32 (Zhang & Sennrich 2019,
    equation 4).
    """
    x32 = x.astype(jnp.float32)
    mean = jnp.square(x32).mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + eps) * _last(scale_D, x.ndim)).astype(x.dtype)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Cap · tanh(x / cap), which stays within ±cap (Gemma Team 2024); 0: x as it is."""
    return cap * jnp.tanh(x / cap) if cap else x


def _last(a_D: jax.Array, ndim: int) -> jax.Array:
    return jnp.expand_dims(a_D, tuple(range(ndim - 1)))

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


def drop(rng: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest; a rate that is not traced but
    0.0 draws nothing.

    The decision takes 16 random bits, two of them to a drawn word: the rate is met to within 2⁻¹⁷.
    """
    if isinstance(rate, float) and rate == 0:
        return x
    *leading, last = x.shape
    words = jax.random.bits(rng, (*leading, -(-last // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)[..., :last]
    keep = bits >= jnp.minimum(jnp.round(rate * 65536), 65535).astype(jnp.uint16)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def _last(a_D: jax.Array, ndim: int) -> jax.Array:
    return jnp.expand_dims(a_D, tuple(range(ndim - 1)))

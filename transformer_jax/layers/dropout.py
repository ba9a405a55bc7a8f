"""Dropout of activations and of attention weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(module: nn.Module, x_BTD: jax.Array, rate: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest; `rate` may be traced, None is
    no dropout.
    """
    return x_BTD if rate is None else apply_dropout(module.make_rng('dropout'), x_BTD, rate)


def apply_dropout(rng: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
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

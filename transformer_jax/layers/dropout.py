"""Dropout of activations and of attention weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def dropout(module: nn.Module, x_BTD: jax.Array, rate: jax.Array | None) -> jax.Array:
    """Apply dropout to activations with a key of the `module`'s own.

    Args:
        module: whose stream of random numbers 'dropout' is used.
        x_BTD: activations, of any shape.
        rate: the probability of dropping an element; may be traced. None: no dropout.
    """
    return x_BTD if rate is None else apply_dropout(module.make_rng('dropout'), x_BTD, rate)


def apply_dropout(rng: jax.Array, x: jax.Array, rate: jax.Array | float) -> jax.Array:
    """Set elements to 0 with probability `rate` and divide the others by 1 − `rate`.

    Each decision takes 16 random bits, two decisions to a 32-bit random word: the probability
    differs from `rate` by at most 2⁻¹⁷.

    Args:
        rng: a key.
        x: an array of any shape.
        rate: may be traced. A Python float 0.0 returns `x` without drawing random numbers.
    """
    if isinstance(rate, float) and rate == 0:
        return x
    *leading, last = x.shape
    words = jax.random.bits(rng, (*leading, -(-last // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*leading, -1)[..., :last]
    keep = bits >= jnp.minimum(jnp.round(rate * 65536), 65535).astype(jnp.uint16)
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)

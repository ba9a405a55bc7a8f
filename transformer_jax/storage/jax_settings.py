"""The options of JAX on which the numbers of a training depend, and their comparison.

Each is set by an environment variable of its name in capitals, or by `jax.config.update`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from transformer_jax.errors import ConfigError
from transformer_jax.storage.json_text import to_json

# Another value gives other random numbers, or numbers of another type.
BINDING = (
    'jax_threefry_partitionable',
    'jax_random_seed_offset',
    'jax_default_prng_impl',
    'jax_enable_x64',
    'jax_numpy_dtype_promotion',
)
# Another value rounds otherwise, as other devices do.
ROUNDING = ('jax_default_matmul_precision', 'jax_disable_most_optimizations')


def jax_settings() -> dict[str, Any]:
    """Return the value of each option, by its name."""
    return {name: jax.config.values[name] for name in (*BINDING, *ROUNDING)}


def require_same_settings(before: Mapping[str, Any], path: Any) -> None:
    """Compare the options with those of the start before; warn where only rounding differs.

    Args:
        before: what `jax_settings` returned then; what it does not say is not compared.
        path: of the workdir, for the message.

    Raises:
        ConfigError: an option of BINDING differs; the message names it with both values.
    """
    now = jax_settings()
    lines = {
        name: f'{name.upper()}: {to_json(before[name])} -> {to_json(now[name])}'
        for name in now
        if name in before and before[name] != now[name]
    }
    refused = [line for name, line in lines.items() if name in BINDING]
    if refused:
        raise ConfigError(
            f'{path} was trained with other settings of JAX ({"; ".join(refused)}): give these '
            'environment variables the old values, or choose another --workdir'
        )
    for line in lines.values():
        logging.warning('changed since the last run, so that numbers round otherwise: %s', line)

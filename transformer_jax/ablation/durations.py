"""Durations as people write them: '2h', '45min', '90s'."""

import re

from transformer_jax.errors import ConfigError

_UNITS = {'h': 3600.0, 'min': 60.0, 's': 1.0}


def duration(seconds: float) -> str:
    """Write a duration in the largest unit of which there is one: '1.5 h', '12 min', '3 s'."""
    for unit, size, places in (('h', 3600, 1), ('min', 60, 0)):
        if seconds >= size:
            return f'{seconds / size:,.{places}f} {unit}'
    return f'{seconds:.0f} s'


def parse_duration(text: str, name: str) -> float:
    """Read a duration: a positive number and h, min or s, such as '1.5h'; return seconds.

    Args:
        text: what was given.
        name: of the flag, for the message.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r'(\d+(?:\.\d*)?)\s*(h|min|s)', text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f'{name}={text}: it takes a time such as 2h, 45min or 90s')
    return seconds

"""The keys of `decode` that a command or a call gives, in place of the run's own."""

from collections.abc import Mapping
from typing import Any, TypedDict

from transformer_jax.errors import ConfigError


class Decoding(TypedDict, total=False):
    """The keys of `decode` that a call may replace, see `schema.DecodeConfig`."""

    method: str
    beam: int
    length_penalty: float
    max_extra_tokens: int
    temperature: float
    top_k: int
    top_p: float


# The keys that only one method reads, and that method.
METHOD_OF = {
    'beam': 'beam',
    'length_penalty': 'beam',
    'temperature': 'sample',
    'top_k': 'sample',
    'top_p': 'sample',
}


def with_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the method that reads the given keys of `decode`, where none is given.

    Raises:
        ConfigError: a key that the given method, or that of another given key, does not read.
    """
    needed = {METHOD_OF[key]: key for key in given if key in METHOD_OF}
    method = given.get('method', next(iter(needed), None))
    for other, key in needed.items():
        if other != method:
            raise ConfigError(
                f'decode.{key}={given[key]!r} has no effect with decode.method={method!r}: it is a '
                f'key of the method {other!r}'
            )
    return dict(given) if method is None else {'method': method, **given}

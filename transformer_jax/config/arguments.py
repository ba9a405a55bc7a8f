"""Arguments of public functions, held to what their signature says."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from transformer_jax import spec
from transformer_jax.errors import ConfigError
from transformer_jax.ranges import Range, shorten

P = ParamSpec('P')
R = TypeVar('R')

# The ranges of the arguments that are numbers, by their names.
RANGES = {
    'seed': Range(low=0, high=2**32 - 1),
    'max_tokens': Range(low=1, high=100_000),
    'batches': Range(low=1),
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that refuses arguments of another type than annotated, or out of range.

    Strings, numbers, and instances of the package's own classes are checked; a NumPy number becomes
    one of Python.

    Raises:
        ConfigError: names the argument, its value, and what it takes.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = _converted(name, value, hints.get(name))
        return function(*bound.args, **bound.kwargs)

    return call


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return the value of an argument as its type; one of another kind of hint as it is."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return value
    if isinstance(value, str) and str in kinds:
        return value
    plain = [kind for kind in kinds if kind in (bool, int, float, str)]
    own = isinstance(hint, type) and hint.__module__.startswith('transformer_jax.')
    if not plain and not own:
        return value
    found: Any = next((c for c in (spec.convert(value, k) for k in plain) if c is not None), None)
    if own and isinstance(value, hint):
        found = value
    if found is None:
        takes = ' or '.join(map(spec.type_name, plain or kinds))
        raise ConfigError(
            f'{name}={shorten(value)} is of type {type(value).__name__}, it takes {takes}'
        )
    if name in RANGES and (why := RANGES[name].reject(name, found)):
        raise ConfigError(why)
    return found

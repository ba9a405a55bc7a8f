"""The check of what an experiment file gives: every field by its own annotation.

A wrong value would only be noticed by the report, after hours of training.
"""

import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from transformer_jax.errors import ConfigError
from transformer_jax.ranges import shorten

_NAMES = {
    str: 'text',
    float: 'a finite number',
    int: 'a whole number',
    bool: 'True or False',
    type(None): 'None',
    Any: 'any value',
}


def check_fields(instance: Any) -> None:
    """Raise ConfigError for the first field of a dataclass that is not of its type."""
    for name, hint in typing.get_type_hints(type(instance)).items():
        if why := find_wrong(getattr(instance, name), hint, name):
            raise ConfigError(f'{type(instance).__name__}: {why}')


def is_finite(value: Any) -> bool:
    """Tell finite numbers from all else, such as booleans and whole numbers beyond any float."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def find_wrong(value: Any, hint: Any, place: str) -> str:
    """Say which part of a value is not of a type; '' where all of it is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping and isinstance(value, Mapping):
        parts = [(key, arguments[0], f'the key {key!r} of {place}') for key in value]
        parts += [(item, arguments[1], f'{place}[{key!r}]') for key, item in value.items()]
    elif origin is tuple and isinstance(value, tuple | list) and arguments[1:] == (...,):
        parts = [(item, arguments[0], f'{place}[{n}]') for n, item in enumerate(value)]
    elif origin is tuple and isinstance(value, tuple | list) and len(value) == len(arguments):
        items = zip(value, arguments, strict=True)
        parts = [(item, inner, f'{place}[{n}]') for n, (item, inner) in enumerate(items)]
    elif _is_plain(value, hint):
        parts = []
    else:
        return f'{place}={shorten(value)}: it takes {_name(hint)}'
    return next(filter(None, (find_wrong(*part) for part in parts)), '')


def _is_plain(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type that has no parts to check."""
    if isinstance(hint, types.UnionType):
        return any(not find_wrong(value, each, '') for each in typing.get_args(hint))
    if hint in (float, int):
        return is_finite(value) and (hint is float or isinstance(value, int))
    return hint is Any or (isinstance(hint, type) and isinstance(value, hint))


def _name(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return ' or '.join(map(_name, arguments))
    if typing.get_origin(hint) is Mapping:
        return f'a mapping of {_name(arguments[0])} to {_name(arguments[1])}'
    if typing.get_origin(hint) is tuple:
        if arguments[1:] == (...,):
            return f'a tuple of {_name(arguments[0])}'
        return f'({", ".join(map(_name, arguments))})'
    return _NAMES.get(hint) or hint.__name__

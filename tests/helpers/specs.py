"""Every class that a spec string can name, nested ones too."""

import dataclasses
import typing

from transformer_jax.attention import KINDS
from transformer_jax.config.resolve import SPECS


def rows():
    """List (table, name, class) of all specs, each class once."""
    found, tables = {}, [KINDS, *SPECS.values()]
    for table in tables:  # grows while it is read
        for name, cls in table.items():
            found.setdefault(cls, (table, name, cls))
            for field in dataclasses.fields(cls):
                nested = field.metadata.get('table')
                if nested is not None and nested not in tables:
                    tables.append(nested)
    return list(found.values())


def numeric_fields(cls):
    """List the fields of a class whose type has an int or a float in it."""
    hints = typing.get_type_hints(cls)
    return [f for f in dataclasses.fields(cls) if f.init and _types(hints[f.name]) & {int, float}]


def _types(hint):
    """Collect the types that a hint is made of: {int} of `tuple[int, ...]`."""
    return {hint}.union(*map(_types, typing.get_args(hint)))

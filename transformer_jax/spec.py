"""Spec strings: `window(64)`, `rope(theta=1e4)` to frozen dataclasses and back.

A spec is a name from a table, with literal arguments (numbers, strings, booleans, tuples, or nested
specs where the field names a table of its own). Some tables' specs combine with & and |. Python's
grammar is borrowed, nothing is evaluated.
"""

import ast
import dataclasses
import difflib
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

from transformer_jax.errors import ConfigError

Table = Mapping[str, type]
# Instances of some tables combine: the result has `symbol`, `left` and `right`, so that it can
# be printed.
OPERATORS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}


def nested(table: Table, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field whose value is itself a spec from `table`."""
    return dataclasses.field(default=default, metadata={'table': table})


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """' (did you mean …?)' when one of `names` is close to `name`, else all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f'did you mean {close[0]!r}?' if close else f'valid: {", ".join(names)}'


def parse(text: str, table: Table, key: str) -> Any:
    """The dataclass instance that `text` describes.

    Args:
        text: for example `'window(64)'`.
        table: name to frozen dataclass.
        key: the configuration key, for messages.

    Raises:
        ConfigError: not a spec, an unknown name or argument, or a value of the wrong type; the
            position is marked.
    """
    return _build(_tree(text, key), table, text.strip(), key)


def parse_pattern(text: str, table: Table, key: str) -> tuple[Any, ...]:
    """The instances that a comma list describes, `3*name` counting three times:
    `'5*window(64), full'`.
    """
    tree = _tree(text, key)
    pattern = []
    for item in tree.elts if isinstance(tree, ast.Tuple) else [tree]:
        times = 1
        if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Mult):
            times = item.left.value if isinstance(item.left, ast.Constant) else None
            if type(times) is not int or times < 1:
                raise _error(
                    text.strip(),
                    item.col_offset,
                    key,
                    'is no pattern: write 3*name for three layers of it',
                )
            item = item.right
        pattern += times * [_build(item, table, text.strip(), key)]
    if not pattern:
        raise _error(text.strip(), 0, key, 'is no pattern: it names no layer')
    return tuple(pattern)


def text(value: Any, table: Table) -> str:
    """The shortest spec string that `parse` reads back as `value`."""
    symbol = getattr(value, 'symbol', '')
    if symbol:
        # | binds less than &, and both to the left.
        sides = [
            (text(side, table), getattr(side, 'symbol', '')) for side in (value.left, value.right)
        ]
        return f' {symbol} '.join(
            f'({side})' if (inner == symbol and place) or (symbol, inner) == ('&', '|') else side
            for place, (side, inner) in enumerate(sides)
        )
    name = next(name for name, kind in table.items() if kind is type(value))
    arguments = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.init and item != field.default:
            item_table = field.metadata.get('table')
            arguments.append(f'{field.name}={text(item, item_table) if item_table else repr(item)}')
    return f'{name}({", ".join(arguments)})' if arguments else name


def _tree(text: str, key: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError) as error:
        column = (getattr(error, 'offset', None) or 1) - 1
        raise _error(
            text.strip(), column, key, f'is no spec ({getattr(error, "msg", error)})'
        ) from None


def _error(source: str, column: int, key: str, message: str) -> ConfigError:
    return ConfigError(f'{key}={source!r} {message}\n  {source}\n  {" " * column}^')


def _build(tree: ast.expr, table: Table, source: str, key: str) -> Any:
    if isinstance(tree, ast.BinOp) and type(tree.op) in OPERATORS:
        left, right = (_build(side, table, source, key) for side in (tree.left, tree.right))
        try:
            return OPERATORS[type(tree.op)](left, right)
        except TypeError:
            raise _error(source, tree.col_offset, key, 'combines what cannot be combined') from None
    call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise _error(
            source, tree.col_offset, key, 'is no spec: write name or name(argument=value, …)'
        )
    name = call.func.id
    if name not in table:
        raise _error(
            source, tree.col_offset, key, f'names the unknown {name!r}: {nearest(name, table)}'
        )
    fields = {field.name: field for field in dataclasses.fields(table[name]) if field.init}
    hints = typing.get_type_hints(table[name])
    ordered = [name for name, field in fields.items() if not field.kw_only]
    given = dict(zip(ordered, call.args, strict=False))
    if len(call.args) > len(ordered):
        raise _error(
            source,
            tree.col_offset,
            key,
            f'gives {name} {len(call.args)} arguments, it takes {len(ordered)}',
        )
    for keyword in call.keywords:
        if keyword.arg not in fields:
            hint = nearest(str(keyword.arg), fields) if fields else f'{name} takes none'
            raise _error(
                source,
                keyword.col_offset,
                key,
                f'gives {name} an unknown argument {keyword.arg!r}: {hint}',
            )
        if keyword.arg in given:
            raise _error(
                source, keyword.col_offset, key, f'gives {name} its argument {keyword.arg!r} twice'
            )
        given[keyword.arg] = keyword.value
    values = {}
    for argument, node in given.items():
        inner = fields[argument].metadata.get('table')
        values[argument] = (
            _build(node, inner, source, key)
            if inner
            else _literal(node, hints[argument], f'{name}.{argument}', source, key)
        )
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise _error(
            source, tree.col_offset, key, f'lacks the argument {", ".join(missing)} of {name}'
        )
    try:
        return table[name](**values)
    except ValueError as error:
        raise _error(source, tree.col_offset, key, f'is invalid: {error}') from None


def _literal(node: ast.expr, hint: Any, label: str, source: str, key: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):  # TypeError: {[]: 1} is a literal, but not a value
        raise _error(source, node.col_offset, key, f'gives {label} no literal value') from None
    converted = convert(value, hint)
    if converted is None:
        raise _error(
            source,
            node.col_offset,
            key,
            f'gives {label} the value {value!r}, it takes {type_name(hint)}',
        )
    return converted


def type_name(hint: Any) -> str:
    """How a field's type is called in a message: `int`, `tuple of int`."""
    if typing.get_origin(hint) is tuple:
        return f'tuple of {type_name(typing.get_args(hint)[0])}'
    if isinstance(hint, types.UnionType):
        return ' or '.join(map(type_name, typing.get_args(hint)))
    return getattr(hint, '__name__', str(hint))


def convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` when that loses nothing, else None: int to float yes, bool to
    int no.
    """
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            return None
        items = tuple(convert(item, typing.get_args(hint)[0]) for item in value)
        return None if None in items else items
    if isinstance(hint, types.UnionType):
        return next(
            (c for c in (convert(value, one) for one in typing.get_args(hint)) if c is not None),
            None,
        )
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else None

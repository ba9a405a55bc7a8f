"""Spec strings: `window(64)`, `rope(theta=1e4)` to frozen dataclasses and back.

A spec is a name from a table, with arguments in parentheses: numbers, booleans, strings, tuples of
these, or nested specs where the field names a table of its own. A string that is an identifier
needs no quotes: `softmax(talking=both)`. Specs of some tables combine with & and |. A name with
dots is a class of another package, see `outside`. The grammar is Python's; no code is evaluated.
"""

import ast
import dataclasses
import difflib
import keyword
import math
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_jax.errors import ConfigError
from transformer_jax.outside import class_name, import_class
from transformer_jax.ranges import RangeError, default_value, shorten
from transformer_jax.renames import new_name

Table = Mapping[str, type]
# Instances of some tables combine: the result has `symbol`, `left` and `right`, to print it.
OPERATORS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}
# Bounds of a text, so that whatever it says is built or refused within milliseconds.
MOST_CHARACTERS, MOST_LAYERS, DEEPEST = 10_000, 1_000, 100
TOO_DEEP = f'is nested more than {DEEPEST} levels deep'


def nested(table: Table, default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field whose value is itself a spec from `table`."""
    return dataclasses.field(default=default, metadata={'table': table})


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Suggest the one of `names` that is close to `name`; if none is, list all of them.

    Of an old name (see `renames`) it tells the new one.
    """
    names = sorted(names)
    if new_name(name) in names:
        return f'it is called {new_name(name)!r} now'
    close = difflib.get_close_matches(name, names, n=1)
    return f'did you mean {close[0]!r}?' if close else f'valid: {", ".join(names)}'


def parse(text: str, table: Table, key: str) -> Any:
    """Build the dataclass instance that `text` describes.

    Args:
        text: for example `'window(64)'`.
        table: name to frozen dataclass.
        key: the configuration key, for messages.

    Raises:
        ConfigError: not a spec, an unknown name or argument, or a value of the wrong type; the
            message marks the position.
    """
    return _Parser(text.strip(), key).build(_tree(text, key), table)


def parse_pattern(text: str, table: Table, key: str) -> tuple[Any, ...]:
    """Build the instances that a comma list describes: `'5*window(64), full'` is six of them.

    Raises:
        ConfigError: as `parse`, or a pattern without a layer.
    """
    tree, parser = _tree(text, key), _Parser(text.strip(), key)
    pattern: list[Any] = []
    for item in tree.elts if isinstance(tree, ast.Tuple) else [tree]:
        times = 1
        if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Mult):
            count = item.left.value if isinstance(item.left, ast.Constant) else None
            if type(count) is not int or count < 1:
                raise parser.error(item, 'is no pattern: write 3*name for three layers of it')
            times, item = count, item.right
        if len(pattern) + times > MOST_LAYERS:
            raise parser.error(item, f'is a pattern of more than {MOST_LAYERS:,} layers')
        pattern += times * [parser.build(item, table)]
    if not pattern:
        raise parser.error(tree, 'is no pattern: it names no layer')
    return tuple(pattern)


def text(value: Any, table: Table) -> str:
    """Print the shortest spec string that `parse` reads back as `value`.

    Arguments that have their default value are left out.
    """
    symbol = getattr(value, 'symbol', '')
    if symbol:
        # & binds more tightly than |, and both associate to the left.
        sides = [
            (text(side, table), getattr(side, 'symbol', '')) for side in (value.left, value.right)
        ]
        return f' {symbol} '.join(
            f'({side})' if (inner == symbol and index) or (symbol, inner) == ('&', '|') else side
            for index, (side, inner) in enumerate(sides)
        )
    cls = type(value)
    name = next((name for name, row in table.items() if row is cls), class_name(cls))
    arguments = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.init and item != default_value(field):
            inner = field.metadata.get('table')
            arguments.append(f'{field.name}={text(item, inner) if inner else _literal(item)}')
    return f'{name}({", ".join(arguments)})' if arguments else name


def _literal(value: Any) -> str:
    """Print an argument: a string without quotes where it is an identifier."""
    if isinstance(value, tuple):
        items = ', '.join(map(_literal, value))
        return f'({items},)' if len(value) == 1 else f'({items})'
    # Python normalizes identifiers outside ASCII, so that another string would be read back.
    bare = isinstance(value, str) and value.isascii() and value.isidentifier()
    return value if bare and not keyword.iskeyword(value) else repr(value)


def _tree(text: str, key: str) -> ast.expr:
    """Parse a text into the syntax tree of one expression."""
    source = text.strip()
    if len(source) > MOST_CHARACTERS:
        message = f'has {len(source):,} characters, a spec has at most {MOST_CHARACTERS:,}'
        raise _error(source, key, MOST_CHARACTERS, message)
    try:
        tree = ast.parse(source, mode='eval').body
    except (RecursionError, MemoryError):  # how Python's parser refuses what is nested too deeply
        raise _error(source, key, 0, TOO_DEEP) from None
    except (SyntaxError, ValueError) as error:
        column = (getattr(error, 'offset', None) or 1) - 1
        message = f'is no spec ({getattr(error, "msg", error)})'
        raise _error(source, key, column, message) from None
    level = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise _error(source, key, getattr(level[0], 'col_offset', 0), TOO_DEEP)
    return tree


def _error(source: str, key: str, column: int, message: str) -> ConfigError:
    """Make the error whose message marks a column; of a long text it shows the part around it."""
    start = max(0, column - 60) if len(source) > 120 else 0
    part = source[start : start + 120]
    message = message if len(message) <= 500 else f'{message[:300]} … {message[-150:]}'
    return ConfigError(
        f'{key}={shorten(source, 120)} {message}\n  {part}\n  {" " * (column - start)}^'
    )


@dataclasses.dataclass(frozen=True)
class _Parser:
    """Turns the syntax tree of a spec string into instances."""

    source: str
    key: str  # of the configuration, for messages

    def error(self, node: ast.expr | ast.keyword, message: str) -> ConfigError:
        """Make the error whose message marks where `node` begins."""
        return _error(self.source, self.key, node.col_offset, message)

    def build(self, tree: ast.expr, table: Table) -> Any:
        """Build the instance that a tree describes."""
        if isinstance(tree, ast.BinOp) and type(tree.op) in OPERATORS:
            left, right = (self.build(side, table) for side in (tree.left, tree.right))
            try:
                return OPERATORS[type(tree.op)](left, right)
            except TypeError:
                raise self.error(tree, 'combines what cannot be combined') from None
        call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
        name, cls = ast.unparse(call.func), self.named(call.func, table)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        hints = typing.get_type_hints(cls)
        values, given = {}, self.arguments(call, fields)
        for argument, node in given.items():
            inner = fields[argument].metadata.get('table')
            label = f'{name}.{argument}'
            values[argument] = (
                self.build(node, inner) if inner else self.value(node, hints[argument], label)
            )
        lacking = {n: default_value(f) for n, f in fields.items() if n not in values}
        missing = [n for n, default in lacking.items() if default is dataclasses.MISSING]
        if missing:
            raise self.error(tree, f'lacks the argument {", ".join(missing)} of {name}')
        try:
            return cls(**values)
        except RangeError as error:
            raise self.error(given.get(error.field, tree), f'is invalid: {name}.{error}') from None
        except ValueError as error:
            raise self.error(tree, f'is invalid: {error}') from None
        except Exception as error:
            if cls in table.values():  # else it is of another package
                raise
            kind = type(error).__name__
            raise self.error(tree, f'fails to make {name}: {kind}: {error}') from error

    def named(self, node: ast.expr, table: Table) -> type:
        """Return the class that a name stands for: a row of the table, or one to import."""
        name = ast.unparse(node)
        if isinstance(node, ast.Name):
            if name not in table:
                raise self.error(node, f'names the unknown {name!r}: {nearest(name, table)}')
            return table[name]
        if all(part.isidentifier() for part in name.split('.')):
            try:
                return import_class(name, table)
            except ValueError as error:
                raise self.error(node, str(error)) from error
        raise self.error(node, 'is no spec: write name or name(argument=value, …)')

    def arguments(
        self, call: ast.Call, fields: dict[str, dataclasses.Field]
    ) -> dict[str, ast.expr]:
        """Map each field that a call gives, by position or by name, to the tree of its value."""
        name = ast.unparse(call.func)
        ordered = [name for name, field in fields.items() if not field.kw_only]
        given = dict(zip(ordered, call.args, strict=False))
        if len(call.args) > len(ordered):
            raise self.error(
                call, f'gives {name} {len(call.args)} arguments, it takes {len(ordered)}'
            )
        for argument in call.keywords:
            if argument.arg not in fields:
                hint = nearest(str(argument.arg), fields) if fields else f'{name} takes none'
                raise self.error(
                    argument, f'gives {name} an unknown argument {argument.arg!r}: {hint}'
                )
            if argument.arg in given:
                raise self.error(argument, f'gives {name} its argument {argument.arg!r} twice')
            given[argument.arg] = argument.value
        return given

    def value(self, node: ast.expr, hint: Any, label: str) -> Any:
        """Evaluate the argument `label`, whose field has the type `hint`."""
        try:
            value = _evaluate(node, hint)
        except (ValueError, TypeError):  # TypeError: {[]: 1} is a literal, but not a value
            raise self.error(node, f'gives {label} no literal value') from None
        converted = convert(value, hint)
        if converted is None:
            message = f'gives {label} the value {shorten(value)}, it takes {type_name(hint)}'
            raise self.error(node, message)
        return converted


def _evaluate(node: ast.expr, hint: Any) -> Any:
    """Evaluate a literal; where `hint` takes a string, a bare name is one.

    Raises:
        ValueError, TypeError: no literal.
    """
    types_ = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(node, ast.Name) and str in types_:
        return node.id
    item_types = [typing.get_args(one)[0] for one in types_ if typing.get_origin(one) is tuple]
    if isinstance(node, ast.Tuple | ast.List) and item_types:
        items = [_evaluate(item, item_types[0]) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    return ast.literal_eval(node)


def type_name(hint: Any) -> str:
    """Name a field's type as messages do: `int`, `tuple of int`."""
    if typing.get_origin(hint) is tuple:
        return f'tuple of {type_name(typing.get_args(hint)[0])}'
    if isinstance(hint, types.UnionType):
        return ' or '.join(map(type_name, typing.get_args(hint)))
    return getattr(hint, '__name__', str(hint))


def convert(value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint` where that loses nothing, else return None.

    An int becomes a float, a NumPy scalar one of Python; a bool does not become an int.
    """
    if isinstance(value, np.generic):
        value = value.item()
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
        try:
            return float(value)
        except OverflowError:  # No range has such a number.
            return math.inf if value > 0 else -math.inf
    return value if type(value) is hint else None

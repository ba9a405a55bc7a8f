"""The one reader of the JSON files that this program wrote.

A file may have been cut, edited, copied from elsewhere or made unreadable since. Whatever is wrong
with it becomes one error that names the file, what is wrong, and what to do. So nothing else in the
package parses JSON from a file; a test holds that.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from transformer_jax.errors import UserError, WorkdirError

NUMBER = (int, float)
_NAMES = {
    dict: 'an object',
    list: 'a list',
    str: 'a text',
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
    None: 'null',
}


class Optional(NamedTuple):
    """The shape of a value that an object may lack."""

    shape: Any


def read_json(
    path: epath.Path, shape: Any, remedy: str, error: type[UserError] = WorkdirError
) -> Any:
    """Read a JSON file that must be there and have a shape.

    Args:
        path: of the file.
        shape: a class such as `dict`; `[shape]` for a list of such; `{'key': shape, …}` for an
            object with at least these keys, but for those of an `Optional(shape)`; `{str: shape}`
            for one with any keys; a tuple of shapes, of which one must fit; None for null;
            `object` for any value.
        remedy: what a user should do about a damaged file, in the imperative.
        error: the class of the error.

    Raises:
        UserError: an `error`: the file is missing, unreadable, not JSON, or has another shape; the
            message is one line with path, problem and remedy.
    """
    content = _read_bytes(path, remedy, error)
    if content is None:
        raise error(f'{path} is missing: {remedy}')
    return parse_json(content, str(path), shape, remedy, error)


def read_json_if_there(
    path: epath.Path, shape: Any, remedy: str, error: type[UserError] = WorkdirError
) -> Any:
    """Read a JSON file as `read_json`; None where there is none."""
    content = _read_bytes(path, remedy, error)
    return None if content is None else parse_json(content, str(path), shape, remedy, error)


def read_json_lines(
    path: epath.Path, shape: Any, strict: bool = True
) -> Iterator[tuple[bytes, Any]]:
    """Yield the complete lines of a file of JSON lines as (line, value); none without a file.

    What follows the last line feed is left out: it is being written, or a crash has cut it. Unless
    `strict`, so are lines that are damaged.

    Raises:
        WorkdirError: the file cannot be read, or a line is not JSON of the shape; the message
            names the line.
    """
    content = _read_bytes(path, 'make it readable', WorkdirError) or b''
    for number, line in enumerate(content.split(b'\n')[:-1], 1):
        try:
            value = parse_json(line, f'{path}:{number}', shape, 'delete that line')
        except WorkdirError:
            if strict:
                raise
        else:
            yield line, value


def parse_json(
    content: bytes | str,
    name: str,
    shape: Any,
    remedy: str,
    error: type[UserError] = WorkdirError,
) -> Any:
    """Parse JSON that has been read; arguments and errors as `read_json`, `name` is its origin."""
    try:
        text = content if isinstance(content, str) else content.decode()
        value = json.loads(text)
    except (ValueError, RecursionError) as failure:
        why = 'it is nested too deeply' if isinstance(failure, RecursionError) else failure
        raise error(f'{name} is damaged (not JSON: {why}): {remedy}') from failure
    if problem := find_misfit(value, shape):
        raise error(f'{name} is damaged ({problem}): {remedy}')
    return value


def find_misfit(value: Any, shape: Any, place: str = 'it') -> str:
    """Return the first difference between a JSON value and a shape, '' where it fits."""
    if isinstance(shape, Optional):
        return find_misfit(value, shape.shape, place)
    if isinstance(shape, tuple):
        problems = [find_misfit(value, each, place) for each in shape]
        return '' if '' in problems else problems[0]
    kind = shape if isinstance(shape, type) or shape is None else type(shape)
    if kind is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return '' if value is kind is None else f'{place} is not {_NAMES[kind]}'
    if isinstance(shape, list):
        items = [(f'item {index} of {place}', item, shape[0]) for index, item in enumerate(value)]
    elif isinstance(shape, dict):
        any_key = shape.get(str)
        needed = [key for key, each in shape.items() if not isinstance(each, Optional)]
        if any_key is None and (lacking := [key for key in needed if key not in value]):
            return f'{place} lacks {lacking[0]!r}'
        keys = value if any_key is not None else [key for key in shape if key in value]
        items = [(f'{key!r}', value[key], any_key or shape[key]) for key in keys]
    else:
        return ''
    return next(filter(None, (find_misfit(item, each, at) for at, item, each in items)), '')


def read_text_if_there(path: epath.Path, remedy: str) -> str | None:
    """Read a small text file of this program; None where there is none.

    Bytes that are no UTF-8 are replaced.

    Raises:
        WorkdirError: it cannot be read.
    """
    content = _read_bytes(path, remedy, WorkdirError)
    return None if content is None else content.decode(errors='replace')


def _read_bytes(path: epath.Path, remedy: str, error: type[UserError]) -> bytes | None:
    """Return the content of a file; None where there is none, even no folder of it."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as failure:
        why = failure.strerror or failure
        raise error(f'{path} cannot be read ({why}): make it readable, or {remedy}') from failure

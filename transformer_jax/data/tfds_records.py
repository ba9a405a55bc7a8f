"""The records of a prepared set, whose damage is told by name."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from transformer_jax.errors import DataError

CHUNK = 10_000  # records per read
Builder = Any  # tfds.core.DatasetBuilder, whose annotations are wider than what it returns


class Records(Sequence[dict[str, Any]]):
    """The records of a split; one that cannot be read is a DataError that names the set."""

    def __init__(self, builder: Builder, split: str, remedy: str = '', decoders: Any = None):
        self._name = f'{builder.data_path}, {split}'
        self._remedy = remedy or (
            f'delete {builder.data_path}, and prepare the set again with '
            f'tfds build {builder.name} --file_format=array_record'
        )
        with named_damage(self._name, self._remedy):
            self._source = builder.as_data_source(split, decoders=decoders)
            self._count = len(self._source)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        with named_damage(f'{self._name}:{index + 1}', self._remedy):
            return _whole(self._source[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, self._count, CHUNK):
            with named_damage(self._name, self._remedy):
                chunk = self._source.__getitems__(range(start, min(start + CHUNK, self._count)))
                chunk = [_whole(record) for record in chunk]
            yield from chunk


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record; the readers make one without values where a file was cut."""
    if all(value is None for value in record.values()):
        raise ValueError('a record is missing')
    return record


@contextlib.contextmanager
def named_damage(name: str, remedy: str) -> Iterator[None]:
    """Raise whatever a damaged set raises in a block as a DataError that names the set.

    The readers of ArrayRecord and of the set's description raise errors of many classes.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise DataError(f'{name}: the prepared set is damaged ({reason}); {remedy}') from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return next(iter(str(error).splitlines()), '').rstrip('.')

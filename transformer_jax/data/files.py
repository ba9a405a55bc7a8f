"""Reading of aligned text files, and the place of the cache."""

import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.paths import expand_home, is_local, user_cache

CACHE = 'data.cache_dir'  # the key that says where prepared data are, for messages


@dataclasses.dataclass(frozen=True)
class Texts:
    """Aligned texts, or documents that stand alone; messages give their origin as `name:line`.

    `target` holds what is to be predicted: translations, documents, or the names of classes.
    """

    source: list[str] | None  # None: the targets stand alone
    target: list[str]
    source_name: str
    target_name: str
    lines: Sequence[int] | np.ndarray | None = (
        None  # where each text begins, from 1; None: one text a line
    )

    def __len__(self) -> int:
        return len(self.target)

    def head(self, count: int) -> 'Texts':
        """Return the first `count` texts; the origins of all stay known."""
        source = None if self.source is None else self.source[:count]
        return dataclasses.replace(self, source=source, target=self.target[:count])

    def everything(self) -> list[str]:
        """Return all texts of both sides: a vocabulary is learned from them."""
        return [*(self.source or ()), *self.target]

    def origin(self, index: int, side: str) -> str:
        """Return 'name:line' of one text; `side` is 'source' or 'target'."""
        line = index + 1 if self.lines is None else self.lines[index]
        return f'{getattr(self, side + "_name")}:{line}'


def find(path: epath.Path, key: str) -> epath.Path:
    """Return `path`, or `path.gz` where only that exists.

    Raises:
        DataError: neither exists; the message names the configuration `key` to check.
    """
    try:
        for candidate in (path, path.parent / f'{path.name}.gz'):
            if candidate.exists():
                require_file(candidate, key)
                return candidate
    except (OSError, ValueError) as error:  # no permission, a name too long, the character 0
        reason = getattr(error, 'strerror', None) or error
        raise DataError(f'{path}: cannot be read ({reason}); check {key}') from None
    raise DataError(f'{path}: no such file, plain or .gz; check {key}')


def require_file(path: epath.Path, key: str) -> None:
    """Raise DataError where `path` is no file; epath's own `is_file` is true of a pipe."""
    if path.is_dir():
        raise DataError(f'{path}: a folder, not a file; check {key}')
    if is_local(path) and not os.path.isfile(path):
        raise DataError(
            f'{path}: a pipe or a device, which cannot be read twice, not a file; check {key}'
        )


def read_lines(path: epath.Path) -> list[str]:
    """Read the lines of a plain or gzipped UTF-8 file.

    Only a line feed ends a line: Unicode's other separators occur inside sentences, and splitting
    there would shift one side against the other.

    Raises:
        DataError: no permission, damaged gzip data, or no UTF-8 text (with the line).
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from None
    if raw.startswith(b'\x1f\x8b'):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f'{path}: damaged gzip data ({error}); get the file again') from None
    if b'\0' in raw:
        line = raw.count(b'\n', 0, raw.index(b'\0')) + 1
        raise DataError(
            f'{path}:{line}: a binary file or UTF-16, it holds the character 0; convert it to UTF-8'
        )
    return decode_lines(raw, str(path))


def decode_lines(raw: bytes, name: str) -> list[str]:
    """Split UTF-8 text into lines; messages call it `name`.

    Only a line feed ends a line: Unicode's other separators occur inside sentences, and splitting
    there would shift one side against the other.

    Raises:
        DataError: invalid UTF-8 (with the line).
    """
    lines = decode_text(raw, name).split('\n')
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix('\r') for line in lines]


def decode_text(raw: bytes, name: str, first_line: int = 1) -> str:
    """Decode UTF-8 text; a byte order mark in line 1 is left out.

    Raises:
        DataError: invalid UTF-8 (with the line).
    """
    try:
        text = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        line = raw.count(b'\n', 0, error.start) + first_line
        raise DataError(
            f'{name}:{line}: invalid UTF-8 (byte 0x{raw[error.start]:02x}); convert it to UTF-8'
        ) from None
    return text.removeprefix('\ufeff') if first_line == 1 else text


def read_pairs(source: epath.Path, target: epath.Path) -> Texts:
    """Read two files that are aligned line by line.

    Raises:
        DataError: as `read_lines`, or the files differ in length.
    """
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise DataError(
            f'{source} has {len(sources)} lines but {target} has {len(targets)}: '
            'line n of one must translate line n of the other'
        )
    return Texts(sources, targets, str(source), str(target))


def content_hash(*paths: epath.Path) -> str:
    """Return the SHA-256 of the names and the bytes of files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f'{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0'.encode())
    return digest.hexdigest()


def cache_dir(data: DataConfig) -> epath.Path:
    """Return the folder of prepared data: `data.cache_dir`, by default ~/.cache/transformer_jax."""
    return expand_home(data.cache_dir) if data.cache_dir else user_cache()

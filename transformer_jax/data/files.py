"""Reading aligned text files, and writing to the cache so that no reader ever sees half of it."""

import contextlib
import dataclasses
import gzip
import hashlib
import uuid
import zlib
from collections.abc import Iterator

from etils import epath

from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig


@dataclasses.dataclass(frozen=True)
class Texts:
    """Aligned sentences, or documents that stand alone; the names say where they come from, as
    `name:line` in messages.

    `target` holds what is to be predicted: translations, documents, or the names of classes.
    """

    source: list[str] | None  # None: the targets stand alone
    target: list[str]
    source_name: str
    target_name: str

    def __len__(self) -> int:
        return len(self.target)

    def head(self, count: int) -> 'Texts':
        """The first `count` of them."""
        source = None if self.source is None else self.source[:count]
        return dataclasses.replace(self, source=source, target=self.target[:count])

    def everything(self) -> list[str]:
        """All texts of both sides: what a vocabulary is learned from."""
        return [*(self.source or ()), *self.target]

    def origin(self, index: int, side: str) -> str:
        """'file:line' of one sentence; `side` is 'source' or 'target'."""
        return f'{getattr(self, side + "_name")}:{index + 1}'


def find(path: epath.Path, key: str) -> epath.Path:
    """`path`, or `path.gz` where only that exists.

    Raises:
        DataError: neither exists; the message names the configuration `key` to mend.
    """
    zipped = path.parent / f'{path.name}.gz'
    for candidate in (path, zipped):
        if candidate.is_file():
            return candidate
    raise DataError(f'{path}: no such file, plain or .gz; check {key}')


def read_lines(path: epath.Path) -> list[str]:
    """The lines of a plain or gzipped UTF-8 file.

    Only a line feed ends a line: Unicode's other separators occur inside sentences, and splitting
    there would shift one side against the other.

    Raises:
        DataError: no permission, damaged gzip data, or invalid UTF-8 (with the line).
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
    return decode_lines(raw, str(path))


def decode_lines(raw: bytes, name: str) -> list[str]:
    """The lines of UTF-8 text; `name` is what messages call it.

    Only a line feed ends a line: Unicode's other separators occur inside sentences, and splitting
    there would shift one side against the other.

    Raises:
        DataError: invalid UTF-8 (with the line).
    """
    try:
        text = raw.decode('utf-8')
    except UnicodeDecodeError as error:
        line = raw.count(b'\n', 0, error.start) + 1
        raise DataError(
            f'{name}:{line}: invalid UTF-8 (byte 0x{raw[error.start]:02x}); convert it to UTF-8'
        ) from None
    lines = text.removeprefix('\ufeff').split('\n')
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix('\r') for line in lines]


def read_pairs(source: epath.Path, target: epath.Path) -> Texts:
    """Two files aligned line by line.

    Raises:
        DataError: as `read_lines`, or the files differ in length.
    """
    pairs = Texts(read_lines(source), read_lines(target), str(source), str(target))
    if len(pairs.source) != len(pairs.target):
        raise DataError(
            f'{source} has {len(pairs.source)} lines but {target} has {len(pairs.target)}: '
            'line n of one must translate line n of the other'
        )
    return pairs


def content_hash(*paths: epath.Path) -> str:
    """SHA-256 over the names and the bytes of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f'{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0'.encode())
    return digest.hexdigest()


def cache_dir(data: DataConfig) -> epath.Path:
    """Where prepared data is kept between runs: `data.cache_dir`, by default
    ~/.cache/transformer_jax.
    """
    return epath.Path(data.cache_dir or '~/.cache/transformer_jax').expanduser()


def write_atomically(path: epath.Path, content: bytes) -> None:
    """Writes a file so that other processes see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
    partial.write_bytes(content)
    partial.replace(path)


@contextlib.contextmanager
def new_directory(path: epath.Path) -> Iterator[epath.Path]:
    """A directory to fill, which becomes `path` when the block ends well and vanishes when
    it fails.

    Several processes may fill the same one at once: the first to finish wins, and the others drop
    their equal copies.
    """
    partial = path.parent / f'{path.name}.{uuid.uuid4().hex}.partial'
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError:
            if not path.exists():
                raise
    finally:
        if partial.exists():
            partial.rmtree()

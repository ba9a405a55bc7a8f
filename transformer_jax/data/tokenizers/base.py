"""The base class of all tokenizers, and the checks of what they are given."""

import abc
import contextlib
import hashlib
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath

from transformer_jax.errors import DataError
from transformer_jax.storage.files import write_bytes
from transformer_jax.storage.json_text import to_json

SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')  # by their ids PAD, BOS, EOS, UNK


class Tokenizer(abc.ABC):
    """A map between text and token ids, identified by the SHA-256 of its stored form.

    Attributes:
        sha256: of `model` and of what `record` adds to it, in hexadecimal.
    """

    kind: ClassVar[str]
    # True where the symbols are those of a task: a text with another one has no meaning.
    is_fixed: ClassVar[bool] = False
    # True where a line of spaces alone counts as an empty line.
    blank_is_empty: ClassVar[bool] = False

    def __init__(self, model: bytes):
        self._model = model
        self.sha256 = self.identity(model, {})

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, the four special ones included."""

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int, *, keep_spaces: bool = True) -> Self:
        """Learn a vocabulary of exactly `vocab_size` ids from text.

        Args:
            texts: that the vocabulary is learned from.
            vocab_size: the number of ids, the four special ones included.
            keep_spaces: False: byte pairs read several spaces as one, and drop those at the ends.

        Raises:
            DataError: that size does not fit the text; the message names one that does.
        """
        require_texts(texts)
        return cls._train(texts, vocab_size, keep_spaces)

    @classmethod
    @abc.abstractmethod
    def _train(cls, texts: Sequence[str], vocab_size: int, keep_spaces: bool) -> Self: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, without BOS and EOS; an empty text gives an empty list.

        Raises:
            DataError: one string in place of a list, or no text of Unicode characters.
        """
        require_texts(texts)
        for number, text in enumerate(texts):
            require_unicode(text, f'texts[{number}]')
        return self._encode(texts)

    @abc.abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def as_read(self, text: str) -> str:
        """Return a text of a data set as it is read: '' for a blank one where that is empty."""
        return '' if self.blank_is_empty and not text.strip(' ') else text

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids; special tokens (PAD, BOS, EOS) are left out.

        Raises:
            DataError: one row of ids in place of a list of rows, or what is no id.
        """
        rows: Any = ids if hasattr(ids, '__len__') and not isinstance(ids, str | bytes) else [ids]
        if any(isinstance(row, str | bytes) or not hasattr(row, '__len__') for row in rows):
            raise DataError(f'ids={_short(ids)}: give a list of rows, each a list of token ids')
        return self._decode([self._require_ids(row) for row in rows])

    @abc.abstractmethod
    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, for plots; '▁' marks the start of a word.

        Raises:
            DataError: what is no id.
        """
        return self._pieces(self._require_ids(ids))

    @abc.abstractmethod
    def _pieces(self, ids: Sequence[int]) -> list[str]: ...

    def _require_ids(self, ids: Any) -> list[int]:
        """Return a row of token ids as a list; raises DataError where one is no id."""
        ids_T: Any = np.zeros((0, 0))
        with contextlib.suppress(ValueError):  # rows of unequal length
            ids_T = np.asarray(ids)
        whole = ids_T.dtype.kind in 'iu' and (ids_T >= 0).all() and (ids_T < self.vocab_size).all()
        if ids_T.ndim != 1 or (len(ids_T) and not whole):
            raise DataError(
                f'ids={_short(ids)}: token ids are whole numbers from 0 to {self.vocab_size - 1}, '
                'in one list'
            )
        return ids_T.tolist()

    @abc.abstractmethod
    def unknown(self, text: str) -> list[str]:
        """Return the symbols of a text that the vocabulary does not have, each once, in order."""

    def explain_unknown(self, text: str) -> str:
        """Say which symbols of a text are unknown, and what becomes of them."""
        names = [repr(symbol) for symbol in self.unknown(text)]
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        return f'{", ".join(names[:5])}{more} not in the vocabulary, read as unknown'

    def record(self) -> dict[str, Any]:
        """Return what decides, beside `model`, how texts are read; stored in tokenizer.json."""
        return {}

    @classmethod
    def restore(cls, model: bytes, record: Mapping[str, Any]) -> Self:
        """Make the tokenizer of a stored `model` and the contents of its tokenizer.json."""
        del record
        return cls(model)

    @classmethod
    def identity(cls, model: bytes, record: Mapping[str, Any]) -> str:
        """Return the SHA-256 that identifies the tokenizer which `restore` makes."""
        del record
        return hashlib.sha256(model).hexdigest()

    def save(self, directory: epath.Path) -> None:
        """Write tokenizer.model, then tokenizer.json (kind, size, SHA-256, `record`).

        Where the second exists, both are complete.
        """
        record = {'kind': self.kind, 'vocab_size': self.vocab_size, **self.record()}
        record['sha256'] = self.sha256
        write_bytes(directory / 'tokenizer.model', self._model)
        write_bytes(directory / 'tokenizer.json', to_json(record, indent=2).encode())

    def require(self, sha256: str, directory: epath.Path) -> None:
        """Raise DataError unless this is the tokenizer whose SHA-256 a checkpoint recorded."""
        if self.sha256 != sha256:
            raise DataError(
                f'{directory} holds the tokenizer {self.sha256[:12]}…, but the checkpoint was '
                f'trained with {sha256[:12]}…; restore that one, or start anew'
            )


def require_texts(texts: Sequence[str], name: str = 'texts') -> None:
    """Refuse a single string, whose letters would be taken for texts, and what is no text.

    Raises:
        DataError: names the argument, `name`, and its item.
    """
    if isinstance(texts, str | bytes):
        raise DataError(f'{name}={_short(texts)} is one string: give a list of texts')
    # An iterator would be empty after this check, and a set has no order.
    if not hasattr(texts, '__len__') or isinstance(texts, Mapping | Set):
        raise DataError(f'{name} is a {type(texts).__name__}: give a list of texts')
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f'{name}[{number}]={_short(text)} is a {type(text).__name__}, no text')


def require_unicode(text: str, name: str) -> None:
    """Refuse a text with half characters: Python's sign for bytes that were not UTF-8.

    Raises:
        DataError: names the text, `name`, and the byte.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # An argument's invalid byte B is read as U+DC00 + B.
        what = f'byte 0x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else f'U+{code:04X}'
        raise DataError(f'{name}: invalid UTF-8 ({what}); convert it to UTF-8') from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}…'

"""Tokenizers without merges: the symbols of a task, characters, and bytes."""

from collections.abc import Sequence
from typing import Self

from transformer_jax import spec
from transformer_jax.batch import UNK
from transformer_jax.data.tokenizers.base import SPECIAL, Tokenizer
from transformer_jax.errors import DataError
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.json_text import to_json


class Symbols(Tokenizer):
    """A fixed list of symbols, separated by spaces: the vocabulary of a synthetic task."""

    kind, between, is_fixed = 'symbols', ' ', True

    def __init__(self, model: bytes):
        super().__init__(model)
        self._names = (
            *SPECIAL,
            *parse_json(model, 'tokenizer.model', [str], 'start anew', DataError),
        )
        # Without the special tokens: a text that spells '<pad>' is not padding.
        self._ids = {n: i for i, n in enumerate(self._names) if i > UNK}

    @classmethod
    def of(cls, symbols: Sequence[str]) -> Self:
        """Make the tokenizer of these symbols, whose ids count from 4."""
        return cls(to_json(list(symbols), ensure_ascii=False).encode())

    @property
    def vocab_size(self) -> int:
        """See Tokenizer."""
        return len(self._names)

    @classmethod
    def _train(cls, texts: Sequence[str], vocab_size: int, keep_spaces: bool) -> Self:
        del keep_spaces
        found = cls.of(sorted(set().union(*map(cls._split, texts))))
        if found.vocab_size != vocab_size:
            raise DataError(
                f'data.vocab_size={vocab_size}, but the training text has {found.vocab_size - 4} '
                f'different {cls.kind}; set data.vocab_size={found.vocab_size}, special tokens '
                'included'
            )
        return found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = [[self._ids.get(name, UNK) for name in self._split(text)] for text in texts]
        if self.is_fixed:
            for number, ids in enumerate(encoded):
                if UNK in ids:
                    raise DataError(f'texts[{number}]: {self.explain_unknown(texts[number])}')
        return encoded

    def explain_unknown(self, text: str) -> str:
        """Say which symbol of a text is unknown, and which ones there are."""
        first = next(iter(self.unknown(text)), '')
        return f'{first!r} is no symbol of the vocabulary; {spec.nearest(first, self._names[4:])}'

    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [
            self.between.join(self._names[token] for token in row if token >= UNK) for row in ids
        ]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._names[token] for token in ids]

    def unknown(self, text: str) -> list[str]:
        """See Tokenizer."""
        names = dict.fromkeys(self._split(text))
        return [name for name in names if name not in self._ids]

    @classmethod
    def _split(cls, text: str) -> Sequence[str]:
        return text.split()


class Characters(Symbols):
    """The characters of the training text; others are UNK."""

    kind, between, is_fixed = 'characters', '', False

    @classmethod
    def _split(cls, text: str) -> Sequence[str]:
        return text


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8 text."""

    kind = 'bytes'

    @property
    def vocab_size(self) -> int:
        """See Tokenizer."""
        return len(SPECIAL) + 256

    @classmethod
    def _train(cls, texts: Sequence[str], vocab_size: int, keep_spaces: bool) -> 'Bytes':
        del texts, keep_spaces
        found = cls(b'')
        if found.vocab_size != vocab_size:
            raise DataError(
                f'data.vocab_size={vocab_size}, but there are 256 bytes and {len(SPECIAL)} special '
                f'tokens; set data.vocab_size={found.vocab_size}'
            )
        return found

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + len(SPECIAL) for byte in text.encode()] for text in texts]

    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """See Tokenizer; invalid UTF-8 becomes �."""
        return [
            bytes(token - len(SPECIAL) for token in row if token >= len(SPECIAL)).decode(
                errors='replace'
            )
            for row in ids
        ]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [
            SPECIAL[token] if token < len(SPECIAL) else chr(token - len(SPECIAL)) for token in ids
        ]

    def unknown(self, text: str) -> list[str]:
        """See Tokenizer: bytes spell everything."""
        del text
        return []

"""Tokenizers: byte pairs, characters, bytes, and the symbols of a synthetic task."""

import abc
import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import ClassVar

import sentencepiece
from etils import epath

from transformer_jax.batch import BOS, EOS, PAD, UNK
from transformer_jax.data.files import write_atomically
from transformer_jax.errors import DataError

# Byte fallback spells characters that training never saw, at the cost of 256 pieces. A vocabulary
# under this size (number words need about 100 pieces) has no room for them and maps such characters
# to UNK instead.
BYTE_FALLBACK_FROM = 1024
# Merges are learned from at most so many texts, spread evenly: more change nothing.
TRAINING_TEXTS = 2_000_000
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')  # by their ids PAD, BOS, EOS, UNK


class Tokenizer(abc.ABC):
    """A map between text and token ids, identified by the SHA-256 of its stored form, `model`."""

    kind: ClassVar[str]

    def __init__(self, model: bytes):
        self._model = model
        self.sha256 = hashlib.sha256(model).hexdigest()

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids, the four special ones included."""

    @classmethod
    @abc.abstractmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> 'Tokenizer':
        """Learn a vocabulary of exactly `vocab_size` ids from text.

        Raises:
            DataError: that size does not fit the text; the message names one that does.
        """

    @abc.abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, without BOS and EOS; an empty text gives an empty list."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids; special tokens (PAD, BOS, EOS) are left out."""

    @abc.abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id, for plots; '▁' marks the start of a word."""

    def save(self, directory: epath.Path) -> None:
        """Write tokenizer.model, then tokenizer.json (kind, size, SHA-256).

        Where the second exists, both are complete.
        """
        record = {'kind': self.kind, 'vocab_size': self.vocab_size, 'sha256': self.sha256}
        write_atomically(directory / 'tokenizer.model', self._model)
        write_atomically(directory / 'tokenizer.json', json.dumps(record, indent=2).encode())

    def require(self, sha256: str, directory: epath.Path) -> None:
        """Raise DataError unless this is the tokenizer whose SHA-256 a checkpoint recorded."""
        if self.sha256 != sha256:
            raise DataError(
                f'{directory} holds the tokenizer {self.sha256[:12]}…, but the checkpoint was '
                f'trained with {sha256[:12]}…; restore that one, or start anew'
            )


class BytePairs(Tokenizer):
    """Joint byte-pair encoding (Sennrich et al. 2016) of source and target, by sentencepiece.

    Equal text gives an equal `model`.
    """

    kind = 'bpe'

    def __init__(self, model: bytes):
        super().__init__(model)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def vocab_size(self) -> int:
        """See Tokenizer."""
        return self._processor.vocab_size()

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> 'BytePairs':
        """See Tokenizer. The text is not normalized, so that decoding reproduces it."""
        texts = texts[:: -(-len(texts) // TRAINING_TEXTS) or 1]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type='bpe',
                vocab_size=vocab_size,
                byte_fallback=vocab_size >= BYTE_FALLBACK_FROM,
                character_coverage=1.0,
                normalization_rule_name='identity',
                num_threads=1,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                max_sentence_length=1 << 20,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise DataError(_explain(str(error), vocab_size)) from None
        return cls(model.getvalue())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Tokenizer."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """See Tokenizer."""
        return self._processor.decode([[int(token) for token in row] for row in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Tokenizer."""
        return [self._processor.id_to_piece(int(token)) for token in ids]


class Symbols(Tokenizer):
    """A fixed list of symbols, separated by spaces: the vocabulary of a synthetic task."""

    kind, between = 'symbols', ' '

    def __init__(self, model: bytes):
        super().__init__(model)
        self._names = (*SPECIAL, *json.loads(model))
        self._ids = {name: index for index, name in enumerate(self._names)}

    @classmethod
    def of(cls, symbols: Sequence[str]) -> 'Symbols':
        """Make the tokenizer of these symbols, whose ids count from 4."""
        return cls(json.dumps(list(symbols), ensure_ascii=False).encode())

    @property
    def vocab_size(self) -> int:
        """See Tokenizer."""
        return len(self._names)

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> 'Symbols':
        """See Tokenizer."""
        found = cls.of(sorted(set().union(*map(cls._split, texts))))
        if found.vocab_size != vocab_size:
            raise DataError(
                f'data.vocab_size={vocab_size}, but the training text has {found.vocab_size - 4} '
                f'different {cls.kind}; set data.vocab_size={found.vocab_size}, special tokens '
                'included'
            )
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Tokenizer; an unknown symbol is UNK."""
        return [[self._ids.get(symbol, UNK) for symbol in self._split(text)] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """See Tokenizer."""
        return [
            self.between.join(self._names[token] for token in row if token >= UNK) for row in ids
        ]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Tokenizer."""
        return [self._names[token] for token in ids]

    @classmethod
    def _split(cls, text: str) -> Sequence[str]:
        return text.split()


class Characters(Symbols):
    """The characters of the training text."""

    kind, between = 'characters', ''

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
    def train(cls, texts: Sequence[str], vocab_size: int) -> 'Bytes':
        """See Tokenizer."""
        found = cls(b'')
        if found.vocab_size != vocab_size:
            raise DataError(
                f'data.vocab_size={vocab_size}, but there are 256 bytes and {len(SPECIAL)} special '
                f'tokens; set data.vocab_size={found.vocab_size}'
            )
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Tokenizer."""
        return [[byte + len(SPECIAL) for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """See Tokenizer; invalid UTF-8 becomes �."""
        return [
            bytes(token - len(SPECIAL) for token in row if token >= len(SPECIAL)).decode(
                errors='replace'
            )
            for row in ids
        ]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See Tokenizer."""
        return [
            SPECIAL[token] if token < len(SPECIAL) else chr(token - len(SPECIAL)) for token in ids
        ]


TOKENIZERS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (BytePairs, Characters, Bytes, Symbols)
}


def load_tokenizer(directory: epath.Path) -> Tokenizer:
    """Read the tokenizer that `Tokenizer.save` wrote.

    Raises:
        DataError: a file is missing, or the model is not the one whose hash was recorded.
    """
    try:
        record = json.loads((directory / 'tokenizer.json').read_text())
        model = (directory / 'tokenizer.model').read_bytes()
    except FileNotFoundError as error:
        raise DataError(f'{directory}: the tokenizer is incomplete ({error})') from None
    sha256 = hashlib.sha256(model).hexdigest()
    if sha256 != record['sha256']:
        raise DataError(
            f'{directory}/tokenizer.model has SHA-256 {sha256[:12]}…, but tokenizer.json records '
            f'{record["sha256"][:12]}…: the file was changed or damaged; restore it, or start anew'
        )
    return TOKENIZERS[record.get('kind', 'bpe')](model)  # The first records had no kind.


def _explain(error: str, vocab_size: int) -> str:
    """Explain sentencepiece's error about a vocabulary that does not fit the text, in one line."""
    fallback = vocab_size >= BYTE_FALLBACK_FROM
    if found := re.search(r'vocab_size.*too high.*<= (\d+)', error, re.IGNORECASE | re.DOTALL):
        largest = int(found[1])
        # The largest size was computed with byte fallback; a smaller one may lose that, and its
        # 256 pieces.
        if fallback and largest < BYTE_FALLBACK_FROM:
            largest -= 256
        return (
            f'data.vocab_size={vocab_size} is more than the training text allows; '
            f'the largest that works is {largest}'
        )
    if found := re.search(r'required_chars\. \d+ vs (\d+)', error):
        return (
            f'data.vocab_size={vocab_size} is too small for the characters of the training text; '
            f'the smallest that works is {found[1]}'
        )
    return f'data.vocab_size={vocab_size}: no tokenizer can be trained: {" ".join(error.split())}'

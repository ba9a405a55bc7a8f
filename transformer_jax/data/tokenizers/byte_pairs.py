"""Byte-pair encoding by sentencepiece, such that text comes back exactly as it was."""

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sentencepiece

from transformer_jax.batch import BOS, EOS, PAD, UNK
from transformer_jax.data.tokenizers.base import Tokenizer
from transformer_jax.errors import DataError

# Byte fallback spells characters that training never saw, at the cost of 256 pieces. A vocabulary
# under this size (number words need about 100 pieces) has no room for them and maps such characters
# to UNK instead.
BYTE_FALLBACK_FROM = 1024
# Merges are learned from at most so many texts, spread evenly: more change nothing.
TRAINING_TEXTS = 2_000_000
# Sentencepiece leaves out a longer text (in bytes), and any text that holds its reserved character.
LONGEST_TEXT = 1 << 20
RESERVED = '\N{LOWER FIVE EIGHTHS BLOCK}'
# Sentencepiece's sign for a space: it reads the character itself as a space, too.
SPACE = '\N{LOWER ONE EIGHTH BLOCK}'
# Characters that stand in for SPACE while a text is read: Unicode will never assign the first 32.
STAND_INS = (0xFDD0, 0xFDF0), (0xF0000, 0xFFFFE)
# Appended to a stored model, this sets its `normalizer_spec.remove_extra_whitespaces` (field 4 of
# field 3) to False: in a protocol buffer the last value counts.
KEEP_SPACES = b'\x1a\x02\x20\x00'


class BytePairs(Tokenizer):
    """Joint byte-pair encoding (Sennrich et al. 2016) of source and target, by sentencepiece.

    Equal text gives an equal `model`. Text of known characters comes back exactly as it was.
    Where `keeps_spaces` is False, as in the first workdirs, several spaces are read as one, those
    at the ends are lost, and U+2581 is read as a space.
    """

    kind = 'bpe'
    blank_is_empty = True

    def __init__(self, model: bytes, keeps_spaces: bool = True):
        super().__init__(model)
        self.keeps_spaces = keeps_spaces
        self.sha256 = self.identity(model, self.record())
        self._processor = sentencepiece.SentencePieceProcessor(
            model_proto=model + KEEP_SPACES * keeps_spaces
        )
        byte_ids = [self._processor.piece_to_id(f'<0x{byte:02X}>') for byte in range(256)]
        self._byte_ids = None if UNK in byte_ids else byte_ids

    @property
    def vocab_size(self) -> int:
        """See Tokenizer."""
        return self._processor.vocab_size()

    @classmethod
    def _train(cls, texts: Sequence[str], vocab_size: int, keep_spaces: bool) -> 'BytePairs':
        """See Tokenizer. The text is not normalized, so that decoding reproduces it."""
        texts = texts[:: -(-len(texts) // TRAINING_TEXTS) or 1]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.chain.from_iterable(map(_readable, texts)),
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
                max_sentence_length=LONGEST_TEXT,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise DataError(_explain(str(error), vocab_size)) from None
        return cls(model.getvalue(), keep_spaces)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._processor.encode(list(texts))
        if self.keeps_spaces:
            for index, text in enumerate(texts):
                if SPACE in text:
                    encoded[index] = self._encode_space_signs(text)
        return encoded

    def _encode_space_signs(self, text: str) -> list[int]:
        """Encode a text that holds SPACE itself, which is spelled in bytes, or is UNK."""
        codes = itertools.chain.from_iterable(itertools.starmap(range, STAND_INS))
        stand_in = next(
            character
            for character in map(chr, codes)
            if character not in text and self._processor.piece_to_id(character) == UNK
        )
        ids = self._processor.encode(text.replace(SPACE, stand_in))
        if self._byte_ids is None:
            return ids
        spelled, sign = ([self._byte_ids[b] for b in c.encode()] for c in (stand_in, SPACE))
        found, start = [], 0
        while start < len(ids):
            matches = ids[start : start + len(spelled)] == spelled
            found += sign if matches else ids[start : start + 1]
            start += len(spelled) if matches else 1
        return found

    def _decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return self._processor.decode(ids) if ids else []  # of [] sentencepiece makes ''

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(token) for token in ids]

    def unknown(self, text: str) -> list[str]:
        """See Tokenizer."""
        if self._byte_ids is not None:
            return []
        return [
            character
            for character in dict.fromkeys(text)
            if (character == SPACE and self.keeps_spaces)
            or (character != ' ' and self._processor.piece_to_id(character) == UNK)
        ]

    def record(self) -> dict[str, Any]:
        """See Tokenizer."""
        return {'spaces': 'kept'} if self.keeps_spaces else {}

    @classmethod
    def restore(cls, model: bytes, record: Mapping[str, Any]) -> 'BytePairs':
        """See Tokenizer. The first records did not say what happens to spaces."""
        return cls(model, record.get('spaces') == 'kept')

    @classmethod
    def identity(cls, model: bytes, record: Mapping[str, Any]) -> str:
        """See Tokenizer."""
        kept = record.get('spaces') == 'kept'
        return hashlib.sha256(model + KEEP_SPACES * kept).hexdigest()


def _readable(text: str) -> Iterator[str]:
    """Cut a text into parts that sentencepiece does not leave out.

    Merges do not cross spaces, so that a cut at a space changes no count.
    """
    for part in text.split(RESERVED):
        while len(part) * 4 > LONGEST_TEXT and len(part.encode()) > LONGEST_TEXT:
            at = part.rfind(' ', 0, LONGEST_TEXT // 4)
            at = at if at > 0 else LONGEST_TEXT // 4  # a character has at most 4 bytes
            yield part[:at]
            part = part[at:]
        yield part


def _explain(error: str, vocab_size: int) -> str:
    """Explain sentencepiece's error about a vocabulary that does not fit the text, in one line."""
    if re.search(r'sentences_\.empty|all_chars_count', error):
        return (
            'the training text is empty: it has no character but spaces, line ends and the two '
            f'{SPACE} and {RESERVED} that sentencepiece reserves'
        )
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

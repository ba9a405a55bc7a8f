"""One joint byte-pair encoding for source and target, by sentencepiece."""

import hashlib
import io
import json
import re
from collections.abc import Sequence

import sentencepiece
from etils import epath

from transformer_jax.batch import BOS, EOS, PAD, UNK
from transformer_jax.data.files import write_atomically
from transformer_jax.errors import DataError

# Byte fallback spells characters that training never saw, at the price of 256 pieces. A vocabulary under this size
# (number words need about 100 pieces) has no room for them and maps such characters to UNK instead.
BYTE_FALLBACK_FROM = 1024
TRAINING_TEXTS = 2_000_000  # merges are learned from at most so many sentences, spread evenly: more change nothing


class Tokenizer:
    """Text to token ids and back. Models are byte-identical for the same text and size, so the hash identifies one."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = self._processor.vocab_size()

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> 'Tokenizer':
        """Learns a vocabulary of exactly `vocab_size` pieces, the four special ones included.

        The text is taken as it is (no Unicode normalisation), so that decoding can reproduce the references.

        Raises:
            DataError: the text has too few different words, or too many characters, for `vocab_size`.
        """
        texts = texts[::-(-len(texts) // TRAINING_TEXTS) or 1]
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=model, model_type='bpe', vocab_size=vocab_size,
                byte_fallback=vocab_size >= BYTE_FALLBACK_FROM, character_coverage=1.0,
                normalization_rule_name='identity', num_threads=1, pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK,
                max_sentence_length=1 << 20, minloglevel=3)
        except RuntimeError as error:
            raise DataError(_explain(str(error), vocab_size)) from None
        return cls(model.getvalue())

    @classmethod
    def load(cls, directory: epath.Path) -> 'Tokenizer':
        """Reads what `save` wrote.

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
            raise DataError(f'{directory}/tokenizer.model has SHA-256 {sha256[:12]}…, but tokenizer.json records '
                            f'{record["sha256"][:12]}…: the file was changed or damaged; restore it, or start anew')
        return cls(model)

    def save(self, directory: epath.Path) -> None:
        """Writes tokenizer.model, then tokenizer.json (size and SHA-256): whoever sees the second can read both."""
        record = {'vocab_size': self.vocab_size, 'sha256': self.sha256}
        write_atomically(directory / 'tokenizer.model', self._model)
        write_atomically(directory / 'tokenizer.json', json.dumps(record, indent=2).encode())

    def require(self, sha256: str, directory: epath.Path) -> None:
        """Raises DataError unless this is the tokenizer whose hash a checkpoint recorded."""
        if self.sha256 != sha256:
            raise DataError(f'{directory} holds the tokenizer {self.sha256[:12]}…, but the checkpoint was trained with '
                            f'{sha256[:12]}…; restore that one, or start anew')

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, without BOS and EOS; an empty text gives an empty list."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts; special tokens (PAD, BOS, EOS) vanish."""
        return self._processor.decode([[int(token) for token in row] for row in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, for plots; '▁' marks the start of a word."""
        return [self._processor.id_to_piece(int(token)) for token in ids]


def _explain(error: str, vocab_size: int) -> str:
    """One line for what sentencepiece says when the vocabulary does not fit the text."""
    fallback = vocab_size >= BYTE_FALLBACK_FROM
    if found := re.search(r'vocab_size.*too high.*<= (\d+)', error, re.IGNORECASE | re.DOTALL):
        largest = int(found[1])
        # The largest size was computed with byte fallback; a smaller one may lose that, and its 256 pieces.
        if fallback and largest < BYTE_FALLBACK_FROM:
            largest -= 256
        return (f'data.vocab_size={vocab_size} is more than the training text allows; '
                f'the largest that works is {largest}')
    if found := re.search(r'required_chars\. \d+ vs (\d+)', error):
        return (f'data.vocab_size={vocab_size} is too small for the characters of the training text; '
                f'the smallest that works is {found[1]}')
    return f'data.vocab_size={vocab_size}: no tokenizer can be trained: {" ".join(error.split())}'

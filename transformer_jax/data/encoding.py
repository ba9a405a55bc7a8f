"""Sentences as token ids in two flat arrays, on disk where a set is large."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from transformer_jax.batch import EOS
from transformer_jax.data.files import Pairs, new_directory
from transformer_jax.data.tokenizer import Tokenizer

CHUNK = 100_000  # sentences per call of the tokenizer: bounds the Python integers alive at once


class Ragged(NamedTuple):
    """Sequences of unequal length: sequence i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The length of every sequence."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of `index` end to end, and their lengths."""
        start = self.offsets[index]
        lengths = self.offsets[index + 1] - start
        begin = np.cumsum(lengths) - lengths
        return self.values[np.arange(lengths.sum()) + np.repeat(start - begin, lengths)], lengths


class Encoded(NamedTuple):
    """Token ids of pairs, each sentence with its EOS."""

    source: Ragged
    target: Ragged

    @property
    def lengths(self) -> np.ndarray:
        """[examples, 2]: source and target lengths, EOS included."""
        return np.stack([self.source.lengths, self.target.lengths], axis=1)


def ragged(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Token ids of texts, each with its EOS."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    values, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), CHUNK):
        ids = [[*sentence, EOS] for sentence in tokenizer.encode(texts[start:start + CHUNK])]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        values.append(np.fromiter(itertools.chain.from_iterable(ids), dtype, lengths[-1].sum()))
    return Ragged(np.concatenate(values), np.cumsum(np.concatenate(lengths)))


def cut(sentences: Ragged, longest: int) -> Ragged:
    """Sentences of at most `longest` tokens, the last of which is still EOS."""
    positions = np.arange(len(sentences.values)) - np.repeat(sentences.offsets[:-1], sentences.lengths)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sentences.lengths, longest))])
    values = sentences.values[positions < longest]
    values[offsets[1:] - 1] = EOS
    return Ragged(values, offsets)


def encode(tokenizer: Tokenizer, pairs: Pairs) -> Encoded:
    """Token ids of both sides."""
    return Encoded(ragged(tokenizer, pairs.source), ragged(tokenizer, pairs.target))


def cache_path(cache: epath.Path, tokenizer: Tokenizer, fingerprint: str, limit: int) -> epath.Path:
    """Where the encoding of a text with this fingerprint by this tokenizer is kept."""
    key = hashlib.sha256(f'{fingerprint}\0{tokenizer.sha256}\0{limit}'.encode()).hexdigest()
    return cache / 'encoded' / key


def store(path: epath.Path, encoded: Encoded, pairs: Pairs) -> None:
    """Writes what `restore` memory-maps."""
    with new_directory(path) as partial:
        for side in Encoded._fields:
            for part, array in getattr(encoded, side)._asdict().items():
                with (partial / f'{side}.{part}.npy').open('wb') as file:
                    np.save(file, array)
        (partial / 'names.json').write_text(json.dumps([pairs.source_name, pairs.target_name]))


def restore(path: epath.Path) -> tuple[Encoded, Pairs]:
    """The stored encoding, memory-mapped, and pairs without text that only know their origin."""
    arrays = {side: Ragged(*(np.load(path / f'{side}.{part}.npy', mmap_mode='r') for part in Ragged._fields))
              for side in Encoded._fields}
    return Encoded(**arrays), Pairs([], [], *json.loads((path / 'names.json').read_text()))

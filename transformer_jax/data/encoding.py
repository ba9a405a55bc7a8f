"""Sentences as token ids in two flat arrays, on disk where a set is large."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from etils import epath

from transformer_jax.batch import BOS, EOS
from transformer_jax.data.files import Texts, new_directory
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import DataError

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


class Taken(NamedTuple):
    """Some examples, laid end to end: (flat tokens, lengths) of each side, and what goes with
    each target.
    """

    source: tuple[np.ndarray, np.ndarray] | None
    target: tuple[np.ndarray, np.ndarray]
    weights: np.ndarray | None = None  # of each target token; None: all 1
    starts: np.ndarray | None = None  # the token before each example's first target; None: BOS


class Examples(Protocol):
    """What the batch plan draws from."""

    @property
    def lengths(self) -> np.ndarray:
        """[examples, 2]: source and target lengths, or bounds of them; 0 where there is
        no source.
        """

    def take(self, index: np.ndarray) -> Taken:
        """The examples of `index`, in that order."""


class Encoded(NamedTuple):
    """Token ids of all examples of a set, each sentence with its EOS."""

    source: Ragged | None
    target: Ragged
    weights: Ragged | None = None  # 0 where a target is given rather than asked for; None: all 1
    starts: np.ndarray | None = None  # the token before each target; None: BOS

    @property
    def lengths(self) -> np.ndarray:
        """[examples, 2]: source and target lengths, EOS included."""
        target = self.target.lengths
        return np.stack(
            [np.zeros_like(target) if self.source is None else self.source.lengths, target], axis=1
        )

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        return Taken(
            None if self.source is None else self.source.take(index),
            self.target.take(index),
            None if self.weights is None else self.weights.take(index)[0],
            None if self.starts is None else self.starts[index],
        )


def ragged(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Token ids of texts, each with its EOS."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    values, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), CHUNK):
        ids = [[*sentence, EOS] for sentence in tokenizer.encode(texts[start : start + CHUNK])]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        values.append(np.fromiter(itertools.chain.from_iterable(ids), dtype, lengths[-1].sum()))
    return Ragged(np.concatenate(values), np.cumsum(np.concatenate(lengths)))


def cut(sentences: Ragged, longest: int) -> Ragged:
    """Sentences of at most `longest` tokens, the last of which is still EOS."""
    positions = np.arange(len(sentences.values)) - np.repeat(
        sentences.offsets[:-1], sentences.lengths
    )
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sentences.lengths, longest))])
    values = sentences.values[positions < longest]
    values[offsets[1:] - 1] = EOS
    return Ragged(values, offsets)


def encode(tokenizer: Tokenizer, texts: Texts, classes: Sequence[str] = ()) -> Encoded:
    """Token ids of both sides; with `classes` a target is the number of its class alone.

    Raises:
        DataError: a target that is none of the classes (with its line).
    """
    source = None if texts.source is None else ragged(tokenizer, texts.source)
    if not classes:
        return Encoded(source, ragged(tokenizer, texts.target))
    number = {name: index for index, name in enumerate(classes)}
    for index, name in enumerate(texts.target):
        if name not in number:
            raise DataError(
                f'{texts.origin(index, "target")}: the class {name!r} is none of {", ".join(classes)}'
            )
    ids = np.array([number[name] for name in texts.target], np.int32)
    return Encoded(source, Ragged(ids, np.arange(len(ids) + 1)))


def windows(tokenizer: Tokenizer, text: str, length: int, stride: int = 0) -> Encoded:
    """One long text as windows of `length` tokens, each begun by the token before it.

    Args:
        tokenizer: of the text.
        text: the whole.
        length: tokens of a window; the last may be shorter.
        stride: each window but the first counts its last `stride` tokens and has the rest as
            context; 0: windows stand side by side and all tokens count. Every token of the text
            counts once either way.
    """
    [ids] = tokenizer.encode([text])
    ids, stride = np.array(ids, np.int32), stride or length
    ends = np.minimum(np.arange(length, max(length + 1, len(ids) + stride), stride), len(ids))
    begins = np.arange(len(ends)) * length if stride == length else np.maximum(ends - length, 0)
    sizes = ends - begins
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - begins, sizes)
    counted = np.repeat(np.concatenate([[0], ends[:-1]]), sizes) <= places
    starts = np.where(begins > 0, ids[begins - 1], BOS)
    return Encoded(
        None, Ragged(ids[places], offsets), Ragged(counted.astype(np.float32), offsets), starts
    )


def cache_path(cache: epath.Path, tokenizer: Tokenizer, fingerprint: str, limit: int) -> epath.Path:
    """Where the encoding of a text with this fingerprint by this tokenizer is kept."""
    key = hashlib.sha256(f'{fingerprint}\0{tokenizer.sha256}\0{limit}'.encode()).hexdigest()
    return cache / 'encoded' / key


def store(path: epath.Path, encoded: Encoded, texts: Texts) -> None:
    """Writes what `restore` memory-maps."""
    with new_directory(path) as partial:
        for field, value in encoded._asdict().items():
            arrays = (
                value._asdict()
                if isinstance(value, Ragged)
                else {}
                if value is None
                else {'': value}
            )
            for part, array in arrays.items():
                with (partial / f'{field}.{part}.npy').open('wb') as file:
                    np.save(file, array)
        (partial / 'names.json').write_text(json.dumps([texts.source_name, texts.target_name]))


def restore(path: epath.Path) -> tuple[Encoded, Texts]:
    """The stored encoding, memory-mapped, and texts that only know their origin."""

    def load(name):
        file = path / f'{name}.npy'
        return np.load(file, mmap_mode='r') if file.exists() else None

    def sequences(field):
        values = load(f'{field}.values')
        return None if values is None else Ragged(values, load(f'{field}.offsets'))

    sides = map(sequences, ('source', 'target', 'weights'))
    return Encoded(*sides, load('starts.')), Texts(
        [], [], *json.loads((path / 'names.json').read_text())
    )

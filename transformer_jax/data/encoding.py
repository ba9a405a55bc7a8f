"""Texts as token ids in flat arrays, memory-mapped from disk where a set is large."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from transformer_jax.batch import BOS, EOS
from transformer_jax.data.examples import Ragged, Taken
from transformer_jax.data.files import CACHE, Texts
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import DataError
from transformer_jax.storage.files import new_directory
from transformer_jax.storage.json_files import read_json
from transformer_jax.storage.json_text import to_json

CHUNK = 100_000  # texts per call of the tokenizer: bounds the Python integers alive at once


class Encoded(NamedTuple):
    """Token ids of all examples of a set, each text with its EOS."""

    source: Ragged | None
    target: Ragged
    weights: Ragged | None = None  # 0 where a target token is context only; None: all 1
    starts: np.ndarray | None = None  # the token before each target; None: BOS

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths, [examples, 2], EOS included; 0: no source."""
        target = self.target.lengths
        source = np.zeros_like(target) if self.source is None else self.source.lengths
        return np.stack([source, target], axis=1)

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        return Taken(
            None if self.source is None else self.source.take(index),
            self.target.take(index),
            None if self.weights is None else self.weights.take(index)[0],
            None if self.starts is None else self.starts[index],
        )


def ragged(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Encode texts, each with its EOS: uint16 ids where 65,536 suffice, else int32."""
    texts = [tokenizer.as_read(text) for text in texts]
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    values, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), CHUNK):
        ids = [[*sentence, EOS] for sentence in tokenizer.encode(texts[start : start + CHUNK])]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        values.append(np.fromiter(itertools.chain.from_iterable(ids), dtype, lengths[-1].sum()))
    return Ragged(np.concatenate(values), np.cumsum(np.concatenate(lengths)))


def cut(texts: Ragged, longest: int) -> Ragged:
    """Cut texts to at most `longest` tokens, the last of which is still EOS."""
    positions = np.arange(len(texts.values)) - np.repeat(texts.offsets[:-1], texts.lengths)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(texts.lengths, longest))])
    values = texts.values[positions < longest]
    values[offsets[1:] - 1] = EOS
    return Ragged(values, offsets)


def encode(tokenizer: Tokenizer, texts: Texts, classes: Sequence[str] = ()) -> Encoded:
    """Encode both sides; with `classes` a target is the number of its class alone, without EOS.

    Raises:
        DataError: a target is none of the classes (names its line).
    """
    source = None if texts.source is None else ragged(tokenizer, texts.source)
    if not classes:
        return Encoded(source, ragged(tokenizer, texts.target))
    number = {name: index for index, name in enumerate(classes)}
    for index, name in enumerate(texts.target):
        if name not in number:
            origin = texts.origin(index, 'target')
            raise DataError(f'{origin}: the class {name!r} is none of {", ".join(classes)}')
    ids = np.array([number[name] for name in texts.target], np.int32)
    return Encoded(source, Ragged(ids, np.arange(len(ids) + 1)))


def windows(tokenizer: Tokenizer, text: str, length: int, stride: int = 0) -> Encoded:
    """Cut one long text into windows of `length` tokens, each started by the token before it.

    Args:
        tokenizer: the tokenizer of the text.
        text: the whole text.
        length: tokens of a window; the last window may be shorter.
        stride: each window but the first counts its last `stride` tokens and has the rest as
            context; 0: windows do not overlap and all their tokens count. Every token of the text
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
    """Return the folder for the encoding of a text with this fingerprint by this tokenizer."""
    key = hashlib.sha256(f'{fingerprint}\0{tokenizer.sha256}\0{limit}'.encode()).hexdigest()
    return cache / 'encoded' / key


def store(path: epath.Path, encoded: Encoded, texts: Texts) -> None:
    """Write an encoding and the names of its texts into a new folder, for `restore` to read."""
    with new_directory(path, CACHE) as partial:
        for field, value in encoded._asdict().items():
            arrays = {'': value} if isinstance(value, np.ndarray) else {}
            if isinstance(value, Ragged):
                arrays = value._asdict()
            for part, array in arrays.items():
                with (partial / f'{field}.{part}.npy').open('wb') as file:
                    np.save(file, array)
        if texts.lines is not None:
            with (partial / 'lines.npy').open('wb') as file:
                np.save(file, np.array(texts.lines))
        names = to_json([texts.source_name, texts.target_name])
        (partial / 'names.json').write_text(names)


def restore(path: epath.Path) -> tuple[Encoded, Texts]:
    """Read a stored encoding, memory-mapped, and texts that only have their names."""

    def exists(name: str) -> bool:
        return (path / f'{name}.npy').exists()

    def load(name: str) -> np.ndarray:
        return np.load(path / f'{name}.npy', mmap_mode='r')

    def sequences(field: str) -> Ragged:
        return Ragged(load(f'{field}.values'), load(f'{field}.offsets'))

    encoded = Encoded(
        sequences('source') if exists('source.values') else None,
        sequences('target'),
        sequences('weights') if exists('weights.values') else None,
        load('starts.') if exists('starts.') else None,
    )
    names = read_json(path / 'names.json', [str], f'delete {path}, it is made anew', DataError)
    return encoded, Texts([], [], *names, lines=load('lines') if exists('lines') else None)

"""The size of the text whose likelihood an evaluation measures."""

from collections.abc import Iterator

import numpy as np

from transformer_jax.batch import EOS
from transformer_jax.data import Data
from transformer_jax.evaluation.metrics import TextSize

CHUNK = 10_000  # examples whose tokens are in memory at once


def counted_text_size(data: Data, split: str, stride: int) -> TextSize:
    """Measure the text that the counted tokens of a split stand for.

    That is the text of the split as it was read, without what was cut because it is longer than a
    row, and without a prefix that every position sees. Where the prefix ends within a word or a
    character, that one belongs to the prefix. Contiguous text has no end of sentence.

    Args:
        data: holds the split.
        split: 'validation' or 'test'.
        stride: of the windows of contiguous text.
    """
    texts, size = data.text(split).target, TextSize(0, 0)
    if data.task.windowed and not data.config.shown:
        # However windows lie, each token counts once.
        return size.plus(texts[0], ends=False)
    for index, (ids, first) in enumerate(_targets(data, split, stride)):
        if data.config.shown:
            size = size.plus(*_text(data, ids)).minus(*_text(data, ids[:first]))
        elif _is_cut(data, ids[first:], texts[index]):
            size = size.plus(*_text(data, ids[first:]))
        else:
            size = size.plus(data.tokenizer.as_read(texts[index]))
    return size


def _targets(data: Data, split: str, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yield the target ids of each example, and how many of the first ones do not count."""
    _, examples = data.evaluation(split, stride)
    for start in range(0, len(examples.lengths), CHUNK):
        taken = examples.take(np.arange(start, min(start + CHUNK, len(examples.lengths))))
        ids, lengths = taken.target
        weights = np.ones(len(ids)) if taken.weights is None else taken.weights
        ends = np.cumsum(lengths)[:-1]
        for own, counts in zip(np.split(ids, ends), np.split(weights, ends), strict=True):
            yield own.tolist(), int((counts == 0).sum())


def _text(data: Data, ids: list[int]) -> tuple[str, bool]:
    """Return the text of token ids, and whether it has its end of sentence."""
    return data.tokenizer.decode([ids])[0], EOS in ids


def _is_cut(data: Data, ids: list[int], text: str) -> bool:
    """Return whether ids are fewer than a text has; only ids that fill a row can be."""
    if len(ids) < data.batching.row_lengths()[-1]:
        return False
    return len(ids) <= len(data.tokenizer.encode([text])[0])

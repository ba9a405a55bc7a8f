"""Batches of texts to translate, without targets."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from transformer_jax.data import encoding
from transformer_jax.data.tokenizers import Tokenizer

Log = Callable[[str], None]


def source_batches(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    lengths: tuple[int, ...],
    batch_tokens: int,
    log: Log,
    first: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches of texts to translate, of similar length, one shape per row length.

    A row ends with EOS; an empty text is a row of EOS alone, and one longer than the last of
    `lengths` is cut and reported. Rows beyond the texts are empty (segment 0).

    Args:
        tokenizer: of the model.
        texts: what is to be translated.
        lengths: of the rows, ascending.
        batch_tokens: tokens of a batch, padding included; small inputs make smaller batches.
        log: receives the report.
        first: the number of the first text in the input that they are a part of, from 0.

    Yields:
        (indices [n ≤ B] into `texts`, source_BS, positions_BS, segments_BS).
    """
    whole = encoding.ragged(tokenizer, texts)
    too_long = np.flatnonzero(whole.lengths > lengths[-1])
    if len(too_long):
        log(
            f'input lines longer than {lengths[-1]} tokens cut: {len(too_long)} '
            f'(first: line {first + too_long[0] + 1})'
        )
    encoded = encoding.cut(whole, lengths[-1])
    order = np.argsort(encoded.lengths, kind='stable')
    bucket = np.searchsorted(lengths, encoded.lengths[order])
    few = 1 << max(0, len(texts) - 1).bit_length()  # few texts need not fill a whole batch
    for index, length in enumerate(lengths):
        rows = min(few, max(1, batch_tokens // length))
        members = order[bucket == index]
        for start in range(0, len(members), rows):
            part = members[start : start + rows]
            yield part, *_source_rows(*encoded.take(part), (rows, length))


def _source_rows(
    values: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (source_BS, positions_BS, segments_BS) of texts that are laid end to end."""
    real = np.arange(shape[1]) < np.pad(lengths, (0, shape[0] - len(lengths)))[:, None]
    source = np.zeros(shape, np.int32)
    source[real] = values
    return source, np.where(real, np.arange(shape[1], dtype=np.int32), 0), real.astype(np.int32)

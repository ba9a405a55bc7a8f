"""Fingerprints of the splits, by which a run knows the data that it was trained on again.

They are of the token ids that the model sees, so that files may be moved, renamed or compressed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from transformer_jax.data.examples import Examples
from transformer_jax.data.pipeline import Data
from transformer_jax.data.tasks.symbols import SymbolTask
from transformer_jax.errors import DataError

# Above so many tokens, and where examples are made one by one, the fingerprint has the lengths of
# all examples and the tokens of some, evenly spaced: a hash of 10⁹ tokens would take a minute.
MAX_TOKENS = 20_000_000
SAMPLE, GENERATED_SAMPLE = 4_096, 64
BLOCK = 4_096  # examples that are hashed at once
FLAG = '--allow_changed_data'


def split_fingerprint(data: Data, split: str) -> str:
    """Return the SHA-256 of a split's examples, in hexadecimal."""
    examples = data.train if split == 'train' else data.evaluation(split)[1]
    lengths = examples.lengths
    index = np.arange(len(lengths))
    generated = isinstance(data.task, SymbolTask)
    if generated or lengths.sum() > MAX_TOKENS:
        count = min(len(index), GENERATED_SAMPLE if generated else SAMPLE)
        index = np.unique(np.linspace(0, len(lengths) - 1, count).astype(np.int64))
    digest = hashlib.sha256(np.asarray(lengths, '<i8').tobytes())
    for start in range(0, len(index), BLOCK):
        _add(digest, examples, index[start : start + BLOCK])
    return digest.hexdigest()


def require_same_splits(
    data: Data,
    stored: Mapping[str, str],
    splits: Sequence[str],
    allow_changes: bool,
    log: Callable[[str], None],
) -> None:
    """Compare splits with those that a checkpoint was trained on.

    Args:
        data: as it is read now.
        stored: the fingerprints in the checkpoint. What an earlier version did not store is not
            compared.
        splits: which to compare.
        allow_changes: only log what has changed.
        log: receives one-line messages.

    Raises:
        DataError: a split has changed.
    """
    changed = [
        split
        for split in splits
        if split in stored and split_fingerprint(data, split) != stored[split]
    ]
    if not changed:
        return
    place = data.config.data.source_dir or data.config.data.task
    what = f'{place}: not the data of this run any more: {", ".join(changed)} changed since then'
    if not allow_changes:
        raise DataError(f'{what}; restore it, or accept the change with {FLAG}')
    log(f'{what}, which {FLAG} accepts')


def _add(digest: 'hashlib._Hash', examples: Examples, index: np.ndarray) -> None:
    taken = examples.take(index)
    for side in (taken.source, taken.target):
        tokens, lengths = side if side is not None else (np.zeros(0), np.zeros(0))
        digest.update(np.asarray(lengths, '<i8').tobytes())
        digest.update(np.asarray(tokens, '<i4').tobytes())
    for part, kind in ((taken.weights, '<f4'), (taken.starts, '<i4')):
        digest.update(b'none' if part is None else np.asarray(part, kind).tobytes())

"""Tokenizers: byte pairs, characters, bytes, and the symbols of a synthetic task."""

from etils import epath

from transformer_jax.data.tokenizers.base import Tokenizer, require_texts, require_unicode
from transformer_jax.data.tokenizers.byte_pairs import BYTE_FALLBACK_FROM, BytePairs
from transformer_jax.data.tokenizers.symbols import Bytes, Characters, Symbols
from transformer_jax.errors import DataError
from transformer_jax.storage.json_files import read_json

__all__ = [
    'BYTE_FALLBACK_FROM',
    'TOKENIZERS',
    'BytePairs',
    'Bytes',
    'Characters',
    'Symbols',
    'Tokenizer',
    'load_tokenizer',
    'require_texts',
    'require_unicode',
]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (BytePairs, Characters, Bytes, Symbols)
}


def load_tokenizer(directory: epath.Path) -> Tokenizer:
    """Read the tokenizer that `Tokenizer.save` wrote.

    Raises:
        DataError: a file is missing, damaged or unreadable, or the model is not the one whose hash
            was recorded.
    """
    path, remedy = directory / 'tokenizer.json', 'restore it from a copy, or start anew'
    try:
        record = read_json(path, {'sha256': str}, remedy, DataError)
        kind = record.get('kind', 'bpe')  # The first records had no kind.
        model = (directory / 'tokenizer.model').read_bytes()
    except OSError as error:
        raise DataError(f'{directory}: the tokenizer is incomplete ({error}): {remedy}') from None
    if kind not in list(TOKENIZERS):
        raise DataError(f'{path} is damaged (there is no kind {kind!r}): {remedy}')
    cls = TOKENIZERS[kind]
    sha256 = cls.identity(model, record)
    if sha256 != record['sha256']:
        raise DataError(
            f'{directory}/tokenizer.model has SHA-256 {sha256[:12]}…, but tokenizer.json records '
            f'{record["sha256"][:12]}…: the file was changed or damaged; restore it, or start anew'
        )
    return cls.restore(model, record)

"""Tokenizers: byte pairs, characters, bytes, and the symbols of a synthetic task."""

import json

from etils import epath

from transformer_jax.data.tokenizers.base import Tokenizer, require_texts, require_unicode
from transformer_jax.data.tokenizers.byte_pairs import BYTE_FALLBACK_FROM, BytePairs
from transformer_jax.data.tokenizers.symbols import Bytes, Characters, Symbols
from transformer_jax.errors import DataError

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
        DataError: a file is missing, or the model is not the one whose hash was recorded.
    """
    try:
        record = json.loads((directory / 'tokenizer.json').read_text())
        model = (directory / 'tokenizer.model').read_bytes()
    except FileNotFoundError as error:
        raise DataError(f'{directory}: the tokenizer is incomplete ({error})') from None
    cls = TOKENIZERS[record.get('kind', 'bpe')]  # The first records had no kind.
    sha256 = cls.identity(model, record)
    if sha256 != record['sha256']:
        raise DataError(
            f'{directory}/tokenizer.model has SHA-256 {sha256[:12]}…, but tokenizer.json records '
            f'{record["sha256"][:12]}…: the file was changed or damaged; restore it, or start anew'
        )
    return cls.restore(model, record)

"""Multi30k: image captions and their translations."""

import dataclasses
import gzip
import http.client
import urllib.request
import zlib
from typing import ClassVar

from etils import epath

from transformer_jax.data.files import CACHE, Texts, cache_dir, content_hash, find
from transformer_jax.data.tasks.text import TextPairs
from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.files import write_bytes
from transformer_jax.storage.paths import expand_home

URL = 'https://raw.githubusercontent.com/multi30k/dataset/master/data/task1'


@dataclasses.dataclass(frozen=True)
class Multi30k(TextPairs):
    """Multi30k, task 1 (Elliott et al. 2016): 29,000 captions in en, de, fr and cs.

    `version` is 'raw', or 'lc.norm.tok': lower-cased, normalized and tokenized with Moses. Files as
    in the public repository (train.en.gz, val.en.gz, test_2016_flickr.en.gz; train.lc.norm.tok.en,
    …) are read from `data.source_dir`, or downloaded once when that is empty.
    """

    # Some captions have stray double spaces; published results are without them.
    keeps_spaces: ClassVar[bool] = False

    version: str = 'raw'
    test: str = 'test_2016_flickr'

    def __post_init__(self):
        super().__post_init__()
        if self.version not in ('raw', 'lc.norm.tok'):
            raise ValueError(f"version={self.version!r} must be 'raw' or 'lc.norm.tok'")

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        # Importing TensorFlow Datasets takes seconds, which other tasks need not spend.
        from transformer_jax.data import tfds_builders

        languages = data.source, data.target
        return tfds_builders.multi30k(self._files(data), languages, cache_dir(data), split)

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        return content_hash(*self._files(data)[split])

    def _files(self, data: DataConfig) -> dict[str, tuple[epath.Path, epath.Path]]:
        names = {'train': 'train', 'validation': 'val', 'test': self.test}
        suffix = '' if self.version == 'raw' else f'.{self.version}'
        return {
            split: (
                self._file(data, f'{name}{suffix}', 'source'),
                self._file(data, f'{name}{suffix}', 'target'),
            )
            for split, name in names.items()
        }

    def _file(self, data: DataConfig, stem: str, key: str) -> epath.Path:
        name = f'{stem}.{getattr(data, key)}'
        if data.source_dir:
            path = expand_home(data.source_dir) / name
            return find(path, f'data.source_dir, data.task and data.{key}')
        name = f'{name}.gz' if self.version == 'raw' else name
        path = cache_dir(data) / 'downloads' / 'multi30k' / name
        if not path.exists():
            url = f'{URL}/{"raw" if self.version == "raw" else "tok"}/{name}'
            try:
                content = _download(url)
            except _DOWNLOAD_ERRORS as error:
                raise DataError(
                    f'cannot download {url} ({error}); check data.{key}, or put the files of '
                    'github.com/multi30k/dataset into a folder and set data.source_dir'
                ) from None
            write_bytes(path, content, CACHE)
        return path


# What a connection that is refused, slow or cut, and a file that arrived damaged, raise.
_DOWNLOAD_ERRORS = (OSError, http.client.HTTPException, EOFError, zlib.error)


def _download(url: str) -> bytes:
    """Return a file, whole: one that is cut or damaged would be kept for good."""
    with urllib.request.urlopen(url, timeout=60) as response:
        content = response.read()
    if not content:
        raise EOFError('the file is empty')
    if url.endswith('.gz'):
        gzip.decompress(content)
    return content

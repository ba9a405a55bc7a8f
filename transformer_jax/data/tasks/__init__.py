"""The tasks of text: where the texts of a split come from. A new one is a class and a row
in TASKS.
"""

import dataclasses
import importlib.metadata
import urllib.error
import urllib.request

import num2words
import numpy as np
from etils import epath

from transformer_jax import spec
from transformer_jax.data.files import (
    Texts,
    cache_dir,
    content_hash,
    find,
    read_pairs,
    write_atomically,
)
from transformer_jax.data.tasks.base import SPLITS, TextTask
from transformer_jax.data.tasks.cifar10 import Cifar10
from transformer_jax.data.tasks.synthetic import GENERATED
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.data.tasks.tfds import TfdsClassification, TfdsText, TfdsTranslation
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import DataConfig

MULTI30K_URL = 'https://raw.githubusercontent.com/multi30k/dataset/master/data/task1'


@dataclasses.dataclass(frozen=True)
class NumberWords(TextTask):
    """The numbers 0 … limit−1 written in words, from one language to another
    ('twenty-four' → 'vierundzwanzig').

    Validation and test hold `held_out` numbers each that training never sees. The numbers below 20
    always train: they are the words that all others are made of.
    """

    limit: int = 10_000
    held_out: int = 500

    def __post_init__(self):
        if not 0 < 2 * self.held_out <= self.limit - 21:
            raise ValueError(
                f'held_out={self.held_out} of limit={self.limit}: twice held_out must be positive and '
                'leave more than the numbers below 20 for training'
            )

    def numbers(self, split: str) -> list[int]:
        """The numbers of a split: the same whatever the seed of training."""
        order = np.random.RandomState(0).permutation(
            np.arange(20, self.limit)
        )  # RandomState's stream is frozen
        parts = {
            'validation': order[: self.held_out],
            'test': order[self.held_out : 2 * self.held_out],
            'train': np.concatenate([np.arange(20), order[2 * self.held_out :]]),
        }
        return parts[split].tolist()

    def load(self, data: DataConfig, split: str) -> Texts:
        """See Task."""
        words = [self._words(key, getattr(data, key), split) for key in ('source', 'target')]
        return Texts(
            *words, *(f'number_words/{split}.{language}' for language in (data.source, data.target))
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See Task."""
        return (
            f'{self} {data.source} {data.target} {split} {importlib.metadata.version("num2words")}'
        )

    def _words(self, key: str, language: str, split: str) -> list[str]:
        if language not in num2words.CONVERTER_CLASSES:
            known = num2words.CONVERTER_CLASSES
            raise ConfigError(
                f'data.{key}={language!r} is no language of num2words; {spec.nearest(language, known)}'
            )
        words = []
        for number in self.numbers(split):
            try:
                words.append(num2words.num2words(number, lang=language).strip())
            except Exception as error:  # each language has its own gaps, and fails in its own way
                raise ConfigError(
                    f'data.{key}={language!r}: num2words cannot write {number} ({error}); '
                    'choose another language or a smaller limit in data.task'
                ) from error
        return words


@dataclasses.dataclass(frozen=True)
class Multi30k(TextTask):
    """Multi30k, task 1 (Elliott et al. 2016): 29,000 captions in en, de, fr and cs.

    `version` is 'raw', or 'lc.norm.tok': lower-cased, normalised and tokenised with Moses. Files as
    in the public repository (train.en.gz, val.en.gz, test_2016_flickr.en.gz; train.lc.norm.tok.en,
    …) are read from `data.source_dir`, or downloaded once when that is empty.
    """

    version: str = 'raw'
    test: str = 'test_2016_flickr'

    def __post_init__(self):
        if self.version not in ('raw', 'lc.norm.tok'):
            raise ValueError(f"version={self.version!r} must be 'raw' or 'lc.norm.tok'")

    def load(self, data: DataConfig, split: str) -> Texts:
        """See Task."""
        # importing TFDS takes seconds, which the other tasks need not spend
        from transformer_jax.data import tfds_builders as builders

        return builders.multi30k(
            self._files(data), (data.source, data.target), cache_dir(data), split
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See Task."""
        return content_hash(*self._files(data)[split])

    def _files(self, data: DataConfig) -> dict[str, tuple[epath.Path, epath.Path]]:
        names = {'train': 'train', 'validation': 'val', 'test': self.test}
        suffix = '' if self.version == 'raw' else f'.{self.version}'
        return {
            split: tuple(self._file(data, f'{name}{suffix}', key) for key in ('source', 'target'))
            for split, name in names.items()
        }

    def _file(self, data: DataConfig, stem: str, key: str) -> epath.Path:
        name = f'{stem}.{getattr(data, key)}'
        if data.source_dir:
            return find(
                epath.Path(data.source_dir).expanduser() / name,
                f'data.source_dir, data.task and data.{key}',
            )
        name = f'{name}.gz' if self.version == 'raw' else name
        path = cache_dir(data) / 'downloads' / 'multi30k' / name
        if not path.exists():
            url = f'{MULTI30K_URL}/{"raw" if self.version == "raw" else "tok"}/{name}'
            try:
                with urllib.request.urlopen(url, timeout=60) as response:
                    write_atomically(path, response.read())
            except (urllib.error.URLError, TimeoutError) as error:
                raise DataError(
                    f'cannot download {url} ({error}); check data.{key}, or put the files of '
                    'github.com/multi30k/dataset into a folder and set data.source_dir'
                ) from None
        return path


@dataclasses.dataclass(frozen=True)
class ParallelText(TextTask):
    """Any two text files aligned line by line, plain or gzipped.

    The patterns are paths relative to `data.source_dir`, or absolute; `{lang}` stands for
    `data.source` on one side and `data.target` on the other, which may be any part of a file name.
    `test=''`: there is no test split.
    """

    train: str = 'train.{lang}'
    validation: str = 'val.{lang}'
    test: str = 'test.{lang}'

    def __post_init__(self):
        for split in SPLITS:
            pattern = getattr(self, split)
            if '{lang}' not in pattern and (pattern or split != 'test'):
                raise ValueError(
                    f'{split}={pattern!r} must hold {{lang}}, for data.source and data.target'
                )

    def load(self, data: DataConfig, split: str) -> Texts:
        """See Task."""
        return read_pairs(*self._files(data, split))

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See Task."""
        return content_hash(*self._files(data, split))

    def _files(self, data: DataConfig, split: str) -> list[epath.Path]:
        pattern = getattr(self, split)
        if not pattern:
            raise DataError(f"data.task: parallel_text({split}='') has no {split} split")
        key = f'data.source_dir={data.source_dir!r} and data.task'
        return [
            find(
                epath.Path(data.source_dir).expanduser() / pattern.replace('{lang}', language), key
            )
            for language in (data.source, data.target)
        ]


TASKS = {
    'number_words': NumberWords,
    'multi30k': Multi30k,
    'parallel_text': ParallelText,
    'tfds_translation': TfdsTranslation,
    'text_file': TextFile,
    'tfds_text': TfdsText,
    'tfds_classification': TfdsClassification,
    'cifar10': Cifar10,
    **GENERATED,
}

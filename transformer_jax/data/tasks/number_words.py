"""The default task, which needs no files: numbers in words, from one language to another."""

import dataclasses
import importlib.metadata

import num2words
import numpy as np

from transformer_jax import spec
from transformer_jax.data.files import Texts
from transformer_jax.data.tasks.text import TextPairs
from transformer_jax.errors import ConfigError
from transformer_jax.ranges import number
from transformer_jax.schema import DataConfig


@dataclasses.dataclass(frozen=True)
class NumberWords(TextPairs):
    """The numbers 0 … limit−1 in words, from one language to another.

    For example 'twenty-four' → 'vierundzwanzig'.

    Validation and test hold `held_out` numbers each that training never sees. The numbers below 20
    are always in training: they are the words that all others are made of.
    """

    limit: int = number(10_000, low=23, high=10_000_000)
    held_out: int = number(500, low=1, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if 2 * self.held_out > self.limit - 21:
            raise ValueError(
                f'held_out={self.held_out} of limit={self.limit}: twice held_out must leave more '
                'than the numbers below 20 for training'
            )

    def numbers(self, split: str) -> list[int]:
        """Return the numbers of a split, the same for every seed of training."""
        # NumPy promises that RandomState's stream never changes.
        order = np.random.RandomState(0).permutation(np.arange(20, self.limit))
        parts = {
            'validation': order[: self.held_out],
            'test': order[self.held_out : 2 * self.held_out],
            'train': np.concatenate([np.arange(20), order[2 * self.held_out :]]),
        }
        return parts[split].tolist()

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        return Texts(
            self._words('source', data.source, split),
            self._words('target', data.target, split),
            f'number_words/{split}.{data.source}',
            f'number_words/{split}.{data.target}',
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        version = importlib.metadata.version('num2words')
        return f'{self} {data.source} {data.target} {split} {version}'

    def _words(self, key: str, language: str, split: str) -> list[str]:
        known = num2words.CONVERTER_CLASSES
        if language not in known:
            raise ConfigError(
                f'data.{key}={language!r} is no language of num2words; '
                f'{spec.nearest(language, known)}'
            )
        words = []
        for value in self.numbers(split):
            try:
                words.append(num2words.num2words(value, lang=language).strip())
            except Exception as error:  # each language has its own gaps, and fails in its own way
                raise ConfigError(
                    f'data.{key}={language!r}: num2words cannot write {value} ({error}); '
                    'choose another language or a smaller limit in data.task'
                ) from error
        return words

"""The base class of all tasks: what a model learns from, and by which metrics it is scored."""

import abc
from typing import ClassVar

from transformer_jax.data.files import Texts
from transformer_jax.schema import DataConfig

SPLITS = ('train', 'validation', 'test')

# Names of metrics, in the order in which they are reported.
LIKELIHOOD = ('loss', 'accuracy', 'perplexity')
NATURAL_TEXT = ('word_perplexity', 'bits_per_byte')
TRANSLATION = ('bleu', 'chrf', 'exact_match')


class Task(abc.ABC):
    """A task: where the examples of a split come from, what is predicted, and how it is scored."""

    has_source: ClassVar[bool] = True  # False: the targets stand alone, as in language modeling
    drawn: ClassVar[bool] = False  # deprecated
    contiguous: ClassVar[bool] = False  # deprecated

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, by their numbers; empty where targets are text."""
        return ()

    def symbols(self) -> tuple[str, ...]:
        """Return the fixed vocabulary, the names of the ids 4, 5, …; empty where it is learned."""
        return ()

    @property
    def form(self) -> str:
        """The entry of `learns` (a row of MODELS) that a model needs; for look-ups in it alone."""
        if self.predicts_class:
            return 'classification'
        return 'translation' if self.has_source else 'language'

    @property
    def predicts_class(self) -> bool:
        """True where the target of an example is one class, a single token."""
        return bool(self.classes())

    @property
    def translates(self) -> bool:
        """True where targets are texts that a decoder can write, given the source."""
        return self.has_source and not self.predicts_class

    @property
    def windowed(self) -> bool:
        """True where a split is one text, cut into windows whose length evaluation may choose."""
        return False

    @property
    def predicts_natural_text(self) -> bool:
        """True where the loss can be stated per word and per byte of the target text."""
        return not self.symbols() and not self.predicts_class

    @property
    def text_is_tokenized(self) -> bool:
        """True where spaces separate symbols already, so that BLEU must not tokenize again."""
        return bool(self.symbols())

    @property
    def exact_match_by_tokens(self) -> bool:
        """True where exact match is teacher-forced: all counted tokens of an example are the
        most likely ones.
        """
        return bool(self.symbols()) and not self.has_source

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the metrics of a split, in the order in which they are reported."""
        names = LIKELIHOOD
        if self.predicts_natural_text:
            names += NATURAL_TEXT
        if self.translates:
            names += TRANSLATION
        if self.exact_match_by_tokens:
            names += ('exact_match',)
        return names

    @property
    def scores_by_length(self) -> tuple[str, ...]:
        """The names of the metrics that are known for each length of text."""
        return LIKELIHOOD if self.windowed else ('accuracy', 'exact_match')


class TextTask(Task):
    """A task whose examples are texts, read whole from files or TensorFlow Datasets."""

    @abc.abstractmethod
    def load(self, data: DataConfig, split: str) -> Texts:
        """Read the texts of 'train', 'validation' or 'test', in a fixed order.

        Raises:
            DataError, ConfigError: there are no texts, or they cannot be used.
        """

    @abc.abstractmethod
    def fingerprint(self, data: DataConfig, split: str) -> str:
        """Identify the texts that `load` returns, more cheaply than by loading them."""

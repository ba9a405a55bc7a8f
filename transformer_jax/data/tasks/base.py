"""The base class of all tasks: where examples come from, what is predicted, how it is scored."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import numpy as np
from etils import epath

from transformer_jax.data.examples import Examples
from transformer_jax.data.files import Texts
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import DataError
from transformer_jax.ranges import Ranged
from transformer_jax.schema import DataConfig

Log = Callable[[str], None]
SPLITS = ('train', 'validation', 'test')

# Names of metrics, in the order in which they are reported.
LIKELIHOOD = ('loss', 'accuracy', 'perplexity')
NATURAL_TEXT = ('word_perplexity', 'bits_per_byte')
TRANSLATION = ('bleu', 'chrf', 'exact_match')


@dataclasses.dataclass(frozen=True)
class ReadContext:
    """What a task needs to turn a split into examples."""

    data: DataConfig
    tokenizer: Tokenizer
    longest: int  # tokens of the longest row, EOS included
    log: Log
    texts: Callable[[str], Texts]  # from a split to its texts, which are read once

    def report(self, flags: np.ndarray, texts: Texts, what: str) -> None:
        """Log how many examples are flagged ([examples, 2]: source, target) and the first one."""
        index = np.flatnonzero(flags.any(axis=1))
        if len(index):
            side = 'source' if flags[index[0], 0] else 'target'
            origin = texts.origin(int(index[0]), side)
            self.log(f'data: {what}: {len(index)} (first: {origin})')


class TrainingSet(NamedTuple):
    """The examples of the training split."""

    examples: Examples
    empty: np.ndarray  # [examples, 2] bool: the source or the target holds no text
    names: Texts  # where the examples come from; without their text


class Task(Ranged, abc.ABC):
    """A task: where the examples of a split come from, what is predicted, and how it is scored.

    Text pairs and documents (`text.TextTask`), contiguous text (`text.ContiguousText`) and examples
    made one by one (`symbols.SymbolTask`) are the base classes of all others, which are frozen
    dataclasses and rows of TASKS.
    """

    has_source: ClassVar[bool] = True  # False: the targets stand alone, as in language modeling
    source_texts: ClassVar[int] = 1  # the texts in a source, each ended by EOS, see `model.towers`

    # --- What is predicted ------------------------------------------------------------------------

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, by their numbers; empty where targets are text."""
        return ()

    def symbols(self) -> tuple[str, ...]:
        """Return the fixed vocabulary, the names of the ids 4, 5, …; empty where it is learned."""
        return ()

    def longest(self, split: str) -> tuple[int, int]:
        """Return upper bounds of a split's source and target tokens, EOS included.

        0: unknown before the texts are read, or there is no source.
        """
        del split
        return 0, 0

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

    # --- How it is scored -------------------------------------------------------------------------

    @property
    def windowed(self) -> bool:
        """True where a split is one text, cut into windows whose length evaluation may choose."""
        return False

    @property
    @abc.abstractmethod
    def predicts_natural_text(self) -> bool:
        """True where the loss can be stated per word and per byte of the target text."""

    @property
    @abc.abstractmethod
    def text_is_tokenized(self) -> bool:
        """True where spaces separate symbols already, so that BLEU must not tokenize again."""

    @property
    @abc.abstractmethod
    def exact_match_by_tokens(self) -> bool:
        """True where exact match is teacher-forced.

        An example matches where each of its counted tokens is the most likely one.
        """

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
        if self.windowed:
            return LIKELIHOOD
        return (
            ('accuracy', 'exact_match', 'bleu') if self.translates else ('accuracy', 'exact_match')
        )

    # --- Where examples come from -----------------------------------------------------------------

    def opened(self, data: DataConfig) -> Self:
        """Return the task with what it takes from the keys of `data`: here, nothing."""
        del data
        return self

    @abc.abstractmethod
    def make_tokenizer(
        self, data: DataConfig, directory: epath.Path, trains: bool
    ) -> tuple[Tokenizer, Texts | None]:
        """Make the tokenizer, or read the one that `directory` holds.

        Args:
            data: the keys of the data.
            directory: the folder of the stored tokenizer, which need not exist.
            trains: the training split is read, so that a tokenizer may be learned from it.

        Returns:
            (the tokenizer; the training texts that it was just learned from, else None).

        Raises:
            DataError: there is no tokenizer and none may be learned, or it has another number of
                pieces than data.vocab_size.
        """

    @abc.abstractmethod
    def read_texts(self, data: DataConfig, tokenizer: Tokenizer, split: str) -> Texts:
        """Read all texts of a split, in a fixed order.

        Raises:
            DataError, ConfigError: there are no texts, or they cannot be used.
        """

    @abc.abstractmethod
    def training_examples(self, context: ReadContext, texts: Texts | None) -> TrainingSet:
        """Make the training examples.

        Args:
            context: what is needed to read and encode.
            texts: the training texts if they were read already, else None.

        Raises:
            DataError: the training texts cannot be used.
        """

    @abc.abstractmethod
    def evaluation_examples(self, context: ReadContext, split: str, stride: int) -> Examples:
        """Make all examples of a split for evaluation; report and cut what is too long.

        Args:
            context: what is needed to read and encode.
            split: 'validation' or 'test'.
            stride: of the windows of contiguous text, see `encoding.windows`; other tasks have
                none.
        """


def check_vocab_size(tokenizer: Tokenizer, data: DataConfig, holder: str) -> None:
    """Raise DataError unless the tokenizer has data.vocab_size pieces; `holder` names its place."""
    if tokenizer.vocab_size != data.vocab_size:
        raise DataError(
            f'data.vocab_size={data.vocab_size}, but {holder} {tokenizer.vocab_size} pieces; '
            'use that size, or start anew'
        )

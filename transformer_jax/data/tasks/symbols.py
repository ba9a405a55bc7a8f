"""Tasks whose examples are made one by one, as token ids of a fixed list of symbols."""

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple

import numpy as np
from etils import epath

from transformer_jax.batch import EOS, UNK
from transformer_jax.data.examples import Taken
from transformer_jax.data.files import Texts
from transformer_jax.data.tasks.base import ReadContext, Task, TrainingSet, check_vocab_size
from transformer_jax.data.tokenizers import Symbols, Tokenizer
from transformer_jax.schema import DataConfig

FIRST = UNK + 1  # the id of a task's first symbol


class Example(NamedTuple):
    """One example as token ids, complete with EOS where there is one."""

    source: np.ndarray | None  # int32; None: language modeling
    target: np.ndarray  # int32; a class is its number
    weights: np.ndarray | None = None  # float32, which target tokens count; None: all 1


class SymbolTask(Task):
    """A task whose examples are made one by one when they are asked for.

    Any process can make any example, in any order.
    """

    seed: int  # of the random numbers of the examples
    predicts_natural_text: ClassVar[bool] = False
    text_is_tokenized: ClassVar[bool] = True

    @abc.abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """Return the vocabulary beyond the four special tokens: the names of the ids 4, 5, …"""

    @abc.abstractmethod
    def count(self, split: str) -> int:
        """Return the number of examples of 'train', 'validation' or 'test'."""

    @abc.abstractmethod
    def longest(self, split: str) -> tuple[int, int]:
        """Return upper bounds of a split's source (0: there is none) and target tokens."""

    @abc.abstractmethod
    def sizes(self, split: str, count: int) -> np.ndarray:
        """Return upper bounds of the source and target tokens of the first examples, [count, 2]."""

    @abc.abstractmethod
    def make_example(self, seed: int, split: str, index: int) -> Example:
        """Make example `index` ≥ 0 of a split, a pure function of the arguments."""

    @property
    def exact_match_by_tokens(self) -> bool:
        """See Task. Where there is a source, exact match is that of the decoded text."""
        return not self.has_source

    def make_tokenizer(
        self, data: DataConfig, directory: epath.Path, trains: bool
    ) -> tuple[Tokenizer, None]:
        """See Task. The symbols are the vocabulary: nothing is learned or stored."""
        del directory, trains
        tokenizer = Symbols.of(self.symbols())
        check_vocab_size(tokenizer, data, f'data.task={data.task!r} has')
        return tokenizer, None

    def read_texts(self, data: DataConfig, tokenizer: Tokenizer, split: str) -> Texts:
        """See Task."""
        del data
        return SymbolExamples(self, split).texts(tokenizer)

    def training_examples(self, context: ReadContext, texts: Texts | None) -> TrainingSet:
        """See Task."""
        del texts
        examples = SymbolExamples(self, 'train', context.data.max_train_examples)
        names = Texts(None, [], context.data.task, context.data.task)
        return TrainingSet(examples, np.zeros_like(examples.lengths, bool), names)

    def evaluation_examples(
        self, context: ReadContext, split: str, stride: int
    ) -> 'SymbolExamples':
        """See Task."""
        del context, stride
        return SymbolExamples(self, split)


@dataclasses.dataclass(frozen=True)
class SymbolExamples:
    """The examples of a split of a SymbolTask, made when they are taken."""

    task: SymbolTask
    split: str
    limit: int = 0  # the first so many; 0: all

    @property
    def lengths(self) -> np.ndarray:
        """Upper bounds of source and target lengths, [examples, 2]; 0: no source."""
        return self._lengths

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        count = self.task.count(self.split)
        return self.task.sizes(self.split, min(self.limit or count, count))

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        task = self.task
        made = [task.make_example(task.seed, self.split, int(number)) for number in index]

        def flat(field: str, dtype: type = np.int32) -> tuple[np.ndarray, np.ndarray]:
            parts = [getattr(example, field) for example in made]
            lengths = np.array([len(part) for part in parts], np.int64)
            return np.concatenate([np.zeros(0, dtype), *parts]), lengths

        source = flat('source') if task.has_source else None
        weighted = bool(made) and made[0].weights is not None
        return Taken(source, flat('target'), flat('weights', np.float32)[0] if weighted else None)

    def texts(self, tokenizer: Tokenizer) -> Texts:
        """Return all examples in symbols, without EOS."""
        name = f'{type(self.task).__name__}/{self.split}'
        taken = self.take(np.arange(len(self.lengths)))

        def read(side):
            values, lengths = side
            parts = np.split(values, np.cumsum(lengths)[:-1])
            return tokenizer.decode([part.tolist() for part in parts])

        source = None if taken.source is None else read(taken.source)
        classes = self.task.classes()
        labels = taken.target[0]
        targets = [classes[label] for label in labels] if classes else read(taken.target)
        return Texts(source, targets, name, name)


def sentence(symbols: np.ndarray) -> np.ndarray:
    """Return symbols, counted from 0, as int32 token ids with EOS."""
    return np.append(symbols + FIRST, EOS).astype(np.int32)

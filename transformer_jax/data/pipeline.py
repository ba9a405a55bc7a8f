"""From a resolved experiment to batches: task, tokenizer, batch plan, grain."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from etils import epath

from transformer_jax import spec
from transformer_jax.batch import Batch
from transformer_jax.data.batching import Batching, Buckets, LocalRows, Plan, materialize
from transformer_jax.data.examples import Examples, Joined, Uncounted
from transformer_jax.data.files import Texts
from transformer_jax.data.tasks.base import SPLITS, Log, ReadContext, Task
from transformer_jax.data.tokenizers import Tokenizer, require_texts
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import DataConfig


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """What decides the batches of an experiment."""

    task: Task
    batching: Batching
    data: DataConfig
    batch_tokens: int  # target tokens of a training batch, padding included
    eval_batch_tokens: int
    seed: int  # of the order of the training examples
    max_length: float  # the most tokens that the model can read; math.inf where nothing bounds them
    joins_pairs: bool  # the model reads source and target as one sequence
    shown: int  # the first targets of a sequence that every position sees: they do not count


class Training(NamedTuple):
    """The examples of the training split and the plan of their batches."""

    examples: Examples
    kept: np.ndarray  # the indices of the examples that can be learned from
    plan: Plan


@dataclasses.dataclass
class Data:
    """The texts and the batches of an experiment."""

    config: PipelineConfig
    task: Task  # with what it takes from the keys of the data
    batching: Batching
    tokenizer: Tokenizer
    log: Log
    training: Training | None = None  # None: that split was not read
    _texts: dict[str, Texts] = dataclasses.field(default_factory=dict, init=False)
    _evaluation: dict[tuple[str, int], tuple[Plan, Examples]] = dataclasses.field(
        default_factory=dict, init=False
    )

    @property
    def plan(self) -> Plan:
        """The plan of the training batches; as all about training, only where that was read."""
        return self._read_training.plan

    @property
    def train(self) -> Examples:
        """All training examples, before any is dropped."""
        return self._read_training.examples

    @property
    def kept(self) -> np.ndarray:
        """The indices into `train` that can be learned from."""
        return self._read_training.kept

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which every example is seen once."""
        return self.plan.steps_per_epoch

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, length) of the training batches, before rows are padded to `rows_multiple`."""
        return self.plan.shapes

    def text(self, split: str) -> Texts:
        """Return the texts of 'validation' or 'test', every line of them; they are read once.

        Raises:
            DataError: the split cannot be read, or is empty.
        """
        if split not in self._texts:
            texts = self.task.read_texts(self.config.data, self.tokenizer, split)
            if not len(texts):
                raise DataError(f'{texts.source_name}: the {split} set is empty')
            self._texts[split] = texts
        return self._texts[split]

    def train_iterator(self, local_rows: LocalRows, rows_multiple: int) -> grain.DatasetIterator:
        """Return training batches without end.

        Its `get_state` is the position after the batches that were returned.

        Args:
            local_rows: from the number of rows of a (padded) global batch to the [start, stop) of
                this process.
            rows_multiple: global batches are padded to a multiple of so many rows.
        """
        return self._without_end(lambda n: self._train_batch(n, local_rows, rows_multiple))

    def stacked_iterator(
        self, others: Sequence['Data'], local_rows: LocalRows, rows_multiple: int
    ) -> grain.DatasetIterator:
        """Return the training batches of this run and of `others`, stacked along a new first axis.

        All batches must have one shape.
        """

        def stacked(number):
            batches = [
                data._train_batch(number, local_rows, rows_multiple) for data in (self, *others)
            ]
            return Batch(
                *(
                    None if side[0] is None else np.stack(side)
                    for side in zip(*batches, strict=True)
                )
            )

        return self._without_end(stacked)

    def reordered(self, seed: int) -> 'Data':
        """Return the same data with the training batches in the order of another seed."""
        config = dataclasses.replace(self.config, seed=seed)
        plan = self._plan(self.train, self.kept, seed)
        return dataclasses.replace(
            self, config=config, training=Training(self.train, self.kept, plan)
        )

    def eval_batches(
        self, split: str, rows_multiple: int, local_rows: LocalRows, stride: int = 0
    ) -> Iterator[Batch]:
        """Yield every example of a split once, teacher-forced, in a fixed order.

        What is too long is cut.

        Args:
            split: 'validation' or 'test'.
            rows_multiple: as in `train_iterator`.
            local_rows: as in `train_iterator`.
            stride: of the windows of contiguous text, see `encoding.windows`; 0: they do not
                overlap.
        """
        plan, examples = self.evaluation(split, stride)
        for number in range(plan.steps_per_epoch):
            yield self._batch(plan, examples, number, local_rows, rows_multiple)

    def evaluation(self, split: str, stride: int = 0) -> tuple[Plan, Examples]:
        """Return the plan and the examples of `eval_batches`.

        The first call for a split logs its empty and overlong lines.

        Raises:
            ConfigError: examples of fixed symbols are longer than the model can read.
        """
        if (split, stride) not in self._evaluation:
            examples = self._as_read(
                self.task.evaluation_examples(self._read_context, split, stride)
            )
            batching, needed = self.batching, int(examples.lengths.max())
            if needed > batching.row_lengths()[-1]:
                # Test splits of symbols, and pairs in one sequence, may be longer than training.
                longest = self.config.max_length
                if needed > longest:
                    raise ConfigError(
                        f'the {split} examples of data.task have up to {needed} tokens, the model '
                        f'reads {longest} at most: it can be trained, not scored there'
                    )
                batching = Buckets((*batching.row_lengths(), needed))
            everyone = np.arange(len(examples.lengths))
            plan = batching.plan(examples.lengths, everyone, self.config.eval_batch_tokens, None)
            self._evaluation[split, stride] = plan, examples
        return self._evaluation[split, stride]

    def read_training(self, texts: Texts | None) -> None:
        """Make the training examples, drop what cannot be learned from, and plan the batches.

        Args:
            texts: the training texts if they were read already, else None.

        Raises:
            DataError: the training texts cannot be used, or no example is left.
        """
        found = self.task.training_examples(self._read_context, texts)
        examples = self._as_read(found.examples)
        kept = self._kept(examples, found.empty, found.names)
        plan = self._plan(examples, kept, self.config.seed)
        self.training = Training(examples, kept, plan)
        self.log(
            f'data: {len(kept)} training examples, {plan.steps_per_epoch} steps per epoch, '
            f'{1 - plan.fill:.1%} padding, batches (rows, length) {plan.shapes}'
        )

    @property
    def _read_training(self) -> Training:
        assert self.training is not None, "load_data was not asked for the split 'train'"
        return self.training

    def _plan(self, examples: Examples, kept: np.ndarray, seed: int) -> Plan:
        return self.batching.plan(examples.lengths, kept, self.config.batch_tokens, seed)

    @property
    def _read_context(self) -> ReadContext:
        longest = self.batching.row_lengths()[-1]
        return ReadContext(self.config.data, self.tokenizer, longest, self.log, self.text)

    def _as_read(self, examples: Examples) -> Examples:
        """Return the examples as the model reads them; a language model reads a pair as one."""
        if self.config.joins_pairs and self.task.translates:
            examples = Joined(examples)
        return Uncounted(examples, self.config.shown) if self.config.shown else examples

    def _kept(self, examples: Examples, empty: np.ndarray, names: Texts) -> np.ndarray:
        """Return the examples that can be learned from; count and report the others."""
        context = self._read_context
        longest, long = context.longest, examples.lengths > context.longest
        context.report(empty, names, 'training examples with an empty line dropped')
        context.report(long, names, f'training examples longer than {longest} tokens dropped')
        unfit = empty | long
        if self.config.shown:
            shown = examples.lengths <= [-1, self.config.shown]
            context.report(shown, names, 'training examples that end within the prefix dropped')
            unfit |= shown
        kept = np.flatnonzero(~unfit.any(axis=1))
        if not len(kept):
            raise DataError(
                f'{names.source_name}: no training example is left: {empty.any(axis=1).sum()} have '
                f'an empty line, {long.any(axis=1).sum()} are longer than the {longest} tokens of '
                f'data.batching{", the others end within the prefix" if self.config.shown else ""}'
                '; raise that'
            )
        return kept

    def _train_batch(self, number: int, local_rows: LocalRows, rows_multiple: int) -> Batch:
        return self._batch(self.plan, self.train, number, local_rows, rows_multiple)

    def _batch(
        self,
        plan: Plan,
        examples: Examples,
        number: int,
        local_rows: LocalRows,
        rows_multiple: int,
    ) -> Batch:
        target_length = 1 if self.task.predicts_class else 0  # a class is one token
        return materialize(plan.step(number), examples, rows_multiple, local_rows, target_length)

    def _without_end(self, batch: Callable[[int], Batch]) -> grain.DatasetIterator:
        prefetch = self.config.data.prefetch
        options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        numbers = grain.MapDataset.range(sys.maxsize)
        return iter(numbers.map(lambda n: batch(int(n))).to_iter_dataset(options))


def load_data(
    config: PipelineConfig,
    tokenizer_dir: epath.Path,
    log: Log,
    splits: Sequence[str] = ('train', 'validation'),
) -> Data:
    """Read and check the splits that a command needs; others are read when they are asked for.

    The tokenizer is read from `tokenizer_dir`, or learned from the training text and stored there.

    Raises:
        DataError, ConfigError: the data or the keys that describe it cannot be used.
    """
    require_texts(splits, 'splits')
    for split in splits:
        if split not in SPLITS:
            raise ConfigError(f'split={split!r}: {spec.nearest(split, SPLITS)}')
    task = config.task.opened(config.data)
    tokenizer, texts = task.make_tokenizer(config.data, tokenizer_dir, 'train' in splits)
    data = Data(config, task, config.batching, tokenizer, log)
    if 'train' in splits:
        data.read_training(texts)
    for split in splits:
        if split != 'train':
            data.evaluation(split)
    if texts is not None:
        # Stored only when every check has passed: a run on corrected text must learn it again. All
        # processes write the same bytes.
        tokenizer.save(tokenizer_dir)
    return data

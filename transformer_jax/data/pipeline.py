"""From a configuration to batches: task, tokenizer, plan, grain."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from etils import epath

from transformer_jax.batch import UNK, Batch
from transformer_jax.data import encoding
from transformer_jax.data.batching import Batching, Buckets, LocalRows, Plan, materialise
from transformer_jax.data.encoding import Encoded, Examples
from transformer_jax.data.examples import Drawn, Joined
from transformer_jax.data.files import Texts, cache_dir
from transformer_jax.data.tasks.base import Task
from transformer_jax.data.tokenizers import TOKENIZERS, Symbols, Tokenizer, load_tokenizer
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import DataConfig

Log = Callable[[str], None]
CACHED_FROM = 1_000_000  # pairs: smaller sets are encoded anew, in seconds


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


@dataclasses.dataclass
class Data:
    """The text and the batches of an experiment. `plan` and `train` are None when training was not
    asked for.
    """

    config: PipelineConfig
    task: Task  # as it was opened
    batching: Batching
    tokenizer: Tokenizer
    log: Log
    plan: Plan | None = None
    train: Examples | None = None
    kept: np.ndarray | None = None  # of `train`: what can be learned from
    _texts: dict[str, Texts] = dataclasses.field(default_factory=dict, init=False)
    _evaluation: dict[tuple[str, int], tuple[Plan, Examples]] = dataclasses.field(
        default_factory=dict, init=False
    )

    @property
    def form(self) -> str:
        """What is predicted: 'translation' of a source, 'language' (a text alone), or
        'classification' of a source.
        """
        return self.task.form

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which every example is seen once."""
        return self.plan.steps_per_epoch

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, length) of the training batches, before rows are padded to `rows_multiple`."""
        return self.plan.shapes

    def text(self, split: str) -> Texts:
        """The texts of 'validation' or 'test', every line of them.

        Raises:
            DataError: the split cannot be read, or is empty.
        """
        if split not in self._texts:
            texts = _read(self.task, self.config, self.tokenizer, split)
            if not len(texts):
                raise DataError(f'{texts.source_name}: the {split} set is empty')
            self._texts[split] = texts
        return self._texts[split]

    def train_iterator(self, local_rows: LocalRows, rows_multiple: int) -> grain.DatasetIterator:
        """Training batches without end; `get_state` is the position after the batches that
        were returned.

        Args:
            local_rows: from the number of rows of a (padded) global batch to the [start, stop) of
                this process.
            rows_multiple: global batches are padded to a multiple of so many rows.
        """
        return self._without_end(lambda n: self._train_batch(n, local_rows, rows_multiple))

    def replicas_iterator(
        self, others: Sequence['Data'], local_rows: LocalRows, rows_multiple: int
    ) -> grain.DatasetIterator:
        """The training batches of this run and of `others` beside it, stacked: all must be of
        one shape.
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
        """The same with the training batches of another seed."""
        config = dataclasses.replace(self.config, seed=seed)
        plan = self.batching.plan(self.train.lengths, self.kept, config.batch_tokens, seed)
        return dataclasses.replace(self, config=config, plan=plan)

    def _train_batch(self, number: int, local_rows: LocalRows, rows_multiple: int) -> Batch:
        return materialise(
            self.plan.step(number), self.train, rows_multiple, local_rows, self._target_length
        )

    def _without_end(self, batch: Callable[[int], Batch]) -> grain.DatasetIterator:
        prefetch = self.config.data.prefetch
        options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        return iter(
            grain.MapDataset.range(sys.maxsize)
            .map(lambda n: batch(int(n)))
            .to_iter_dataset(options)
        )

    def eval_batches(
        self, split: str, rows_multiple: int, local_rows: LocalRows, stride: int = 0
    ) -> Iterator[Batch]:
        """Every example of a split once, teacher-forced, in a fixed order; what is too long is cut.

        Args:
            split: 'validation' or 'test'.
            rows_multiple: as in `train_iterator`.
            local_rows: as in `train_iterator`.
            stride: of the windows of contiguous text, see `encoding.windows`; 0: they stand side
                by side.
        """
        plan, examples = self.evaluation(split, stride)
        for number in range(plan.steps_per_epoch):
            yield materialise(
                plan.step(number), examples, rows_multiple, local_rows, self._target_length
            )

    @property
    def _target_length(self) -> int:
        return 1 if self.form == 'classification' else 0  # a class is one token

    def evaluation(self, split: str, stride: int = 0) -> tuple[Plan, Examples]:
        """The plan behind `eval_batches`; reports empty and over-long lines when first asked."""
        if (split, stride) not in self._evaluation:
            examples = self._examples(split, stride)
            everyone = np.arange(len(examples.lengths))
            batching, needed = self.batching, int(examples.lengths.max())
            if (
                needed > batching.row_lengths()[-1]
            ):  # A generated test split that is longer than training.
                longest = self.config.max_length
                if needed > longest:
                    raise ConfigError(
                        f'the {split} examples of data.task have up to {needed} tokens, the model reads '
                        f'{longest} at most: it can be trained, not scored there'
                    )
                batching = Buckets((*batching.row_lengths(), needed))
            plan = batching.plan(examples.lengths, everyone, self.config.eval_batch_tokens, None)
            self._evaluation[split, stride] = plan, examples
        return self._evaluation[split, stride]

    def _examples(self, split: str, stride: int) -> Examples:
        if self.task.drawn:
            return _as_read(self, Drawn(self.task, split))
        texts, longest = self.text(split), self.batching.row_lengths()[-1]
        if self.task.contiguous:
            [text] = texts.target
            examples = encoding.windows(self.tokenizer, text, longest, stride)
            _report_unknown(examples, texts, split, self.log)
            return examples
        whole = encoding.encode(self.tokenizer, texts, self.task.classes())
        lengths = whole.lengths
        _report_unknown(whole, texts, split, self.log)
        _report(
            _empty(self.task, lengths),
            texts,
            f'{split} examples with an empty line kept as they are',
            self.log,
        )
        _report(
            lengths > longest, texts, f'{split} examples longer than {longest} tokens cut', self.log
        )
        source = None if whole.source is None else encoding.cut(whole.source, longest)
        target = (
            whole.target if self.form == 'classification' else encoding.cut(whole.target, longest)
        )
        return _as_read(self, Encoded(source, target))


def load_data(
    config: PipelineConfig,
    tokenizer_dir: epath.Path,
    log: Log,
    splits: Sequence[str] = ('train', 'validation'),
) -> Data:
    """Reads and checks the splits that a command needs; others are read when they are asked for.

    The tokenizer is read from `tokenizer_dir`, or learned from the training text and stored there.

    Raises:
        DataError, ConfigError: the data or the keys that describe it cannot be used.
    """
    task, texts = config.task, None
    if task.drawn:
        task = task.opened(config.data)
        tokenizer = Symbols.of(task.symbols())
    elif (tokenizer_dir / 'tokenizer.json').exists():
        tokenizer = load_tokenizer(tokenizer_dir)
    elif 'train' in splits:
        texts = _train_texts(task, config)
        tokenizer = TOKENIZERS[config.data.tokenizer].train(
            texts.everything() if not task.classes() else texts.source, config.data.vocab_size
        )
    else:
        raise DataError(f'{tokenizer_dir} holds no tokenizer: train first')
    if tokenizer.vocab_size != config.data.vocab_size:
        holder = (
            f'data.task={config.data.task!r} has'
            if task.drawn
            else f'{tokenizer_dir} holds a tokenizer with'
        )
        raise DataError(
            f'data.vocab_size={config.data.vocab_size}, but {holder} {tokenizer.vocab_size} pieces; '
            'use that size, or start anew'
        )
    data = Data(config, task, config.batching, tokenizer, log)
    if 'train' in splits:
        examples, names = _train_examples(data, texts)
        data.train = _as_read(data, _whole_or_cut(data, examples, names))
        data.kept = _kept(data, _empty(task, examples.lengths), names)
        data.plan = data.reordered(config.seed).plan
        log(
            f'data: {len(data.kept)} training examples, {data.plan.steps_per_epoch} steps per epoch, '
            f'{1 - data.plan.fill:.1%} padding, batches (rows, length) {data.plan.shapes}'
        )
    for split in splits:
        if split != 'train':
            data.evaluation(split)
    if texts is not None:
        # Not before every check has passed: a run on mended text learns anew. All processes write
        # the same bytes.
        tokenizer.save(tokenizer_dir)
    return data


def _read(task: Task, config: PipelineConfig, tokenizer: Tokenizer, split: str) -> Texts:
    return Drawn(task, split).texts(tokenizer) if task.drawn else task.load(config.data, split)


def _train_texts(task: Task, config: PipelineConfig) -> Texts:
    texts = task.load(config.data, 'train')
    for side in (texts.source, texts.target):
        if side is not None and not any(map(str.strip, side)):
            raise DataError(f'{texts.source_name}, {texts.target_name}: the training set is empty')
    return texts.head(config.data.limit) if config.data.limit else texts


def _as_read(data: Data, examples: Examples) -> Examples:
    """The examples as the model reads them: to a language model a pair is one sequence."""
    joins = data.config.joins_pairs and data.form == 'translation'
    return Joined(examples) if joins else examples


def _train_examples(data: Data, texts: Texts | None) -> tuple[Examples, Texts]:
    """The training set's tokens, and texts that know their origin (from the cache: without
    their text).
    """
    task, config, tokenizer = data.task, data.config, data.tokenizer
    if task.drawn:
        return Drawn(task, 'train', config.data.limit), Texts(
            None, [], config.data.task, config.data.task
        )
    path = encoding.cache_path(
        cache_dir(config.data), tokenizer, task.fingerprint(config.data, 'train'), config.data.limit
    )
    if path.exists():
        return encoding.restore(path)
    texts = texts or _train_texts(task, config)
    if task.contiguous:
        [text] = texts.target
        longest = data.batching.row_lengths()[-1]
        encoded = encoding.windows(tokenizer, text, longest)
        if encoded.target.lengths[0] < longest:
            raise DataError(
                f'{texts.target_name}: the training text has {encoded.target.lengths[0]} tokens, fewer '
                f'than one row of data.batching, {longest}; give more text, or shorter rows'
            )
        return encoded, texts.head(0)
    encoded = encoding.encode(tokenizer, texts, task.classes())
    if len(texts) >= CACHED_FROM:
        encoding.store(path, encoded, texts)
        encoded, texts = encoding.restore(path)
    return encoded, texts.head(0)


def _whole_or_cut(data: Data, examples: Examples, names: Texts) -> Examples:
    """Training texts whose classes are asked for are cut where they are too long, as in evaluation
    (and in LRA).
    """
    longest = data.batching.row_lengths()[-1]
    long = examples.lengths > longest
    if data.form != 'classification' or not long.any():
        return examples
    _report(long, names, f'training examples longer than {longest} tokens cut', data.log)
    return examples._replace(source=encoding.cut(examples.source, longest))


def _empty(task: Task, lengths: np.ndarray) -> np.ndarray:
    """[examples, 2]: which sides hold no text; what is generated, or cut from one text,
    always does.
    """
    sides = np.array([task.form != 'language', task.form != 'classification']) & (
        not (task.drawn or task.contiguous)
    )
    return (lengths <= 1) & sides


def _kept(data: Data, empty: np.ndarray, names: Texts) -> np.ndarray:
    """The examples that can be learned from; the others are counted and reported."""
    longest = data.batching.row_lengths()[-1]
    long = data.train.lengths > longest
    _report(empty, names, 'training examples with an empty line dropped', data.log)
    _report(long, names, f'training examples longer than {longest} tokens dropped', data.log)
    kept = np.flatnonzero(~(empty | long).any(axis=1))
    if not len(kept):
        raise DataError(
            f'{names.source_name}: no training example is left: {empty.any(axis=1).sum()} have an empty '
            f'line, {long.any(axis=1).sum()} are longer than the {longest} tokens of data.batching; raise '
            'that'
        )
    return kept


def _report_unknown(encoded: Encoded, texts: Texts, split: str, log: Log) -> None:
    """Logs how many tokens of a split the vocabulary does not know."""
    sides = [
        side
        for side in (encoded.source, encoded.target)
        if side is not None and side.lengths.max(initial=0) > 1
    ]
    unknown = sum(
        int((side.values == UNK).sum()) for side in sides
    )  # of classes, single numbers, none is a token
    if unknown:
        log(
            f'data: {split}: {unknown} tokens that the vocabulary does not know, read as unknown '
            f'(in {texts.source_name})'
        )


def _report(flags: np.ndarray, pairs: Texts, what: str, log: Log) -> None:
    """Logs how many pairs are flagged ([pairs, 2]), and where the first is."""
    index = np.flatnonzero(flags.any(axis=1))
    if len(index):
        side = 'source' if flags[index[0], 0] else 'target'
        log(f'data: {what}: {len(index)} (first: {pairs.origin(int(index[0]), side)})')

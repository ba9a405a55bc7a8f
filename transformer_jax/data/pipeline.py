"""From a configuration to batches: task, tokenizer, plan, grain."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import grain
import numpy as np
from etils import epath

from transformer_jax import spec
from transformer_jax.batch import Batch
from transformer_jax.data import encoding
from transformer_jax.data.batching import BATCHING, Batching, LocalRows, Plan, materialise
from transformer_jax.data.encoding import Encoded
from transformer_jax.data.files import Pairs, cache_dir
from transformer_jax.data.tasks import TASKS, Task
from transformer_jax.data.tokenizer import Tokenizer
from transformer_jax.errors import DataError

if TYPE_CHECKING:
    from transformer_jax.config import ExperimentConfig

Log = Callable[[str], None]
CACHED_FROM = 1_000_000  # pairs: smaller sets are encoded anew, in seconds


@dataclasses.dataclass
class Data:
    """The text and the batches of an experiment. `plan` and `train` are None when training was not asked for."""

    config: 'ExperimentConfig'
    task: Task
    batching: Batching
    tokenizer: Tokenizer
    log: Log
    plan: Plan | None = None
    train: Encoded | None = None
    _texts: dict[str, Pairs] = dataclasses.field(default_factory=dict, init=False)
    _evaluation: dict[str, tuple[Plan, Encoded]] = dataclasses.field(default_factory=dict, init=False)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which every example is seen once."""
        return self.plan.steps_per_epoch

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, length) of the training batches, before rows are padded to `rows_multiple`."""
        return self.plan.shapes

    def text(self, split: str) -> Pairs:
        """The sentences of 'validation' or 'test', every line of them.

        Raises:
            DataError: the split cannot be read, or is empty.
        """
        if split not in self._texts:
            pairs = self.task.load(self.config.data, split)
            if not len(pairs):
                raise DataError(f'{pairs.source_name}: the {split} set is empty')
            self._texts[split] = pairs
        return self._texts[split]

    def train_iterator(self, local_rows: LocalRows, rows_multiple: int) -> grain.DatasetIterator:
        """Training batches without end; `get_state` is the position after the batches that were returned.

        Args:
            local_rows: from the number of rows of a (padded) global batch to the [start, stop) of this process.
            rows_multiple: global batches are padded to a multiple of so many rows.
        """
        prefetch = self.config.data.prefetch
        options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        steps = grain.MapDataset.range(sys.maxsize)
        batches = steps.map(lambda n: materialise(self.plan.step(int(n)), self.train, rows_multiple, local_rows))
        return iter(batches.to_iter_dataset(options))

    def eval_batches(self, split: str, rows_multiple: int, local_rows: LocalRows) -> Iterator[Batch]:
        """Every pair of a split once, teacher-forced, in a fixed order; sentences that are too long are cut."""
        plan, encoded = self.evaluation(split)
        for number in range(plan.steps_per_epoch):
            yield materialise(plan.step(number), encoded, rows_multiple, local_rows)

    def evaluation(self, split: str) -> tuple[Plan, Encoded]:
        """The plan behind `eval_batches`; reports empty and over-long lines when first asked."""
        if split not in self._evaluation:
            pairs = self.text(split)
            longest = self.batching.row_lengths()[-1]
            whole = encoding.encode(self.tokenizer, pairs)
            _report(whole.lengths <= 1, pairs, f'{split} pairs with an empty line kept as they are', self.log)
            _report(whole.lengths > longest, pairs, f'{split} pairs longer than {longest} tokens cut', self.log)
            encoded = Encoded(*(encoding.cut(side, longest) for side in whole))
            plan = self.batching.plan(encoded.lengths, np.arange(len(pairs)), self.config.evaluate.batch_tokens, None)
            self._evaluation[split] = plan, encoded
        return self._evaluation[split]


def load_data(config: 'ExperimentConfig', tokenizer_dir: epath.Path, log: Log,
              splits: Sequence[str] = ('train', 'validation')) -> Data:
    """Reads and checks the splits that a command needs; others are read when they are asked for.

    The tokenizer is read from `tokenizer_dir`, or learned from the training text and stored there.

    Raises:
        DataError, ConfigError: the data or the keys that describe it cannot be used.
    """
    task = spec.parse(config.data.task, TASKS, 'data.task')
    batching = spec.parse(config.data.batching, BATCHING, 'data.batching')
    text = None
    if (tokenizer_dir / 'tokenizer.json').exists():
        tokenizer = Tokenizer.load(tokenizer_dir)
        if tokenizer.vocab_size != config.data.vocab_size:
            raise DataError(f'data.vocab_size={config.data.vocab_size}, but {tokenizer_dir} holds a tokenizer with '
                            f'{tokenizer.vocab_size} pieces; use that size, or start anew')
    elif 'train' in splits:
        text = _train_text(task, config)
        tokenizer = Tokenizer.train([*text.source, *text.target], config.data.vocab_size)
    else:
        raise DataError(f'{tokenizer_dir} holds no tokenizer: train first')
    data = Data(config, task, batching, tokenizer, log)
    if 'train' in splits:
        data.train, names = _encode_train(task, config, tokenizer, text)
        data.plan = _plan_train(data, names)
    for split in splits:
        if split != 'train':
            data.evaluation(split)
    if text is not None:
        # Not before every check has passed: a run on mended text learns anew. All processes write the same bytes.
        tokenizer.save(tokenizer_dir)
    return data


def _train_text(task: Task, config: 'ExperimentConfig') -> Pairs:
    pairs = task.load(config.data, 'train')
    if not any(map(str.strip, pairs.source)) or not any(map(str.strip, pairs.target)):
        raise DataError(f'{pairs.source_name}, {pairs.target_name}: the training set is empty')
    return pairs.head(config.data.limit) if config.data.limit else pairs


def _encode_train(task: Task, config: 'ExperimentConfig', tokenizer: Tokenizer,
                  text: Pairs | None) -> tuple[Encoded, Pairs]:
    """The training set's tokens, and pairs that know their origin (from the cache: without their text)."""
    path = encoding.cache_path(cache_dir(config.data), tokenizer, task.fingerprint(config.data, 'train'),
                               config.data.limit)
    if path.exists():
        return encoding.restore(path)
    text = text or _train_text(task, config)
    encoded = encoding.encode(tokenizer, text)
    if len(text) >= CACHED_FROM:
        encoding.store(path, encoded, text)
        return encoding.restore(path)
    return encoded, text.head(0)


def _plan_train(data: Data, names: Pairs) -> Plan:
    """The plan over the pairs that can be learned from; the others are counted and reported."""
    longest = data.batching.row_lengths()[-1]
    lengths = data.train.lengths
    empty, long = lengths <= 1, lengths > longest
    _report(empty, names, 'training pairs with an empty line dropped', data.log)
    _report(long, names, f'training pairs longer than {longest} tokens dropped', data.log)
    examples = np.flatnonzero(~(empty | long).any(axis=1))
    if not len(examples):
        raise DataError(f'{names.source_name}: no training pair is left: {empty.any(axis=1).sum()} have an empty line, '
                        f'{long.any(axis=1).sum()} are longer than the {longest} tokens of data.batching; raise that')
    plan = data.batching.plan(lengths, examples, data.config.train.batch_tokens, data.config.train.seed)
    data.log(f'data: {len(examples)} training pairs, {plan.steps_per_epoch} steps per epoch, '
             f'{1 - plan.fill:.1%} padding, batches (rows, length) {plan.shapes}')
    return plan


def _report(flags: np.ndarray, pairs: Pairs, what: str, log: Log) -> None:
    """Logs how many pairs are flagged ([pairs, 2]), and where the first is."""
    index = np.flatnonzero(flags.any(axis=1))
    if len(index):
        side = 'source' if flags[index[0], 0] else 'target'
        log(f'data: {what}: {len(index)} (first: {pairs.origin(int(index[0]), side)})')


def source_batches(tokenizer: Tokenizer, texts: Sequence[str], lengths: tuple[int, ...], batch_tokens: int,
                   log: Log) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of sentences to translate, of similar length, one shape per row length.

    A row ends with EOS; an empty text is a row of EOS alone, and one longer than the last of `lengths` is cut and
    reported. Rows beyond the texts are empty (segment 0).

    Yields:
        (indices [n ≤ B] into `texts`, source_BS, positions_BS, segments_BS).
    """
    whole = encoding.ragged(tokenizer, texts)
    too_long = np.flatnonzero(whole.lengths > lengths[-1])
    if len(too_long):
        log(f'input lines longer than {lengths[-1]} tokens cut: {len(too_long)} (first: line {too_long[0] + 1})')
    encoded = encoding.cut(whole, lengths[-1])
    order = np.argsort(encoded.lengths, kind='stable')
    bucket = np.searchsorted(lengths, encoded.lengths[order])
    few = 1 << max(0, len(texts) - 1).bit_length()  # a handful of texts need not fill a whole batch
    for index, length in enumerate(lengths):
        rows = min(few, max(1, batch_tokens // length))
        members = order[bucket == index]
        for start in range(0, len(members), rows):
            part = members[start:start + rows]
            yield part, *_source_rows(*encoded.take(part), (rows, length))


def _source_rows(values: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    real = np.arange(shape[1]) < np.pad(lengths, (0, shape[0] - len(lengths)))[:, None]
    source = np.zeros(shape, np.int32)
    source[real] = values
    return source, np.where(real, np.arange(shape[1], dtype=np.int32), 0), real.astype(np.int32)

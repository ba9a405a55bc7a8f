"""The global batch plan: which examples step n sees, and in which rows.

A plan is a pure function of the examples' lengths and the seed; it depends on neither processes nor
devices. A step can be looked up by its number, so that the data position of a checkpoint is one
integer. Every process computes the same plan and materializes only its own rows.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.batch import BOS, Batch
from transformer_jax.data.examples import Examples, Ragged
from transformer_jax.ranges import Ranged, number

# From the rows of the global batch to the [start, stop) of this process.
LocalRows = Callable[[int], tuple[int, int]]


class Step(NamedTuple):
    """The examples of one step, row by row.

    `examples[k]` is in row `row[k]`, rows ascending, the examples of a row in order.
    """

    rows: int
    length: int
    examples: np.ndarray  # [examples of the step] indices
    row: np.ndarray  # [examples of the step]


class Plan:
    """Rows of examples in groups of one shape, spread evenly over the batches of their group.

    Args:
        rows: the examples of every row.
        group: the group of every row.
        shapes: (rows, length) of a batch, by group.
        lengths: [examples, 2] source and target lengths, EOS included.
        seed: of the order, which every epoch shuffles again; None: the given order, for evaluation.

    Attributes:
        steps_per_epoch: batches of an epoch, the same for every epoch.
        shapes: (rows, length) of the groups that occur, one compilation each; before rows are
            padded for the devices.
        fill: the share of the batches' slots, source and target where both exist, that hold
            tokens; the rest is padding.
    """

    def __init__(
        self,
        rows: Ragged,
        group: np.ndarray,
        shapes: Sequence[tuple[int, int]],
        lengths: np.ndarray,
        seed: int | None,
    ):
        members = [np.flatnonzero(group == index) for index in range(len(shapes))]
        self._rows = rows
        self._seed = seed
        self._groups = [
            (shape, rows) for shape, rows in zip(shapes, members, strict=True) if len(rows)
        ]
        batches = [-(-len(rows) // shape[0]) for shape, rows in self._groups]
        sides = np.count_nonzero(lengths.any(axis=0))
        slots = sides * sum(
            count * shape[0] * shape[1]
            for count, (shape, _) in zip(batches, self._groups, strict=True)
        )
        self.shapes = tuple(shape for shape, _ in self._groups)
        self.steps_per_epoch = sum(batches)
        self.fill = float(lengths[rows.values].sum() / slots) if slots else 0.0
        self._epoch = functools.lru_cache(maxsize=2)(self._order)

    def step(self, number: int) -> Step:
        """Return step `number`, from 0; epochs follow one another without end."""
        epoch, index = divmod(number, self.steps_per_epoch)
        (rows, length), members = self._epoch(epoch)[index]
        examples, counts = self._rows.take(members)
        return Step(rows, length, examples, np.repeat(np.arange(len(members)), counts))

    def _order(self, epoch: int) -> list[tuple[tuple[int, int], np.ndarray]]:
        """Return the batches of an epoch: shape and rows.

        Rows are spread evenly, so that no batch is nearly empty.
        """
        batches = []
        for index, (shape, members) in enumerate(self._groups):
            if self._seed is not None:
                members = _random(self._seed, epoch, index + 1).permutation(members)
            batches += [
                (shape, part) for part in np.array_split(members, -(-len(members) // shape[0]))
            ]
        if self._seed is None:
            return batches
        order = _random(self._seed, epoch, 0).permutation(len(batches))
        return [batches[index] for index in order]


def _random(seed: int, epoch: int, stream: int) -> np.random.RandomState:
    # NumPy promises that RandomState's stream never changes (default_rng's may): a resumed run must
    # see the same order.
    return np.random.RandomState([seed, epoch, stream])


class Batching(Ranged, abc.ABC):
    """The way in which examples become rows."""

    @abc.abstractmethod
    def row_lengths(self) -> tuple[int, ...]:
        """Return the lengths of the rows that translation uses, ascending.

        The last one is that of the longest text, EOS included.
        """

    @abc.abstractmethod
    def plan(
        self, lengths: np.ndarray, examples: np.ndarray, batch_tokens: int, seed: int | None
    ) -> Plan:
        """Plan the batches of some examples.

        Args:
            lengths: [all examples, 2] source and target lengths, EOS included.
            examples: [some examples] indices into `lengths`, none above the longest row.
            batch_tokens: target tokens of a batch, padding included.
            seed: as in Plan.
        """


@dataclasses.dataclass(frozen=True)
class Buckets(Batching):
    """One example a row, as long as the smallest of `lengths` that holds source and target."""

    lengths: tuple[int, ...] = number((16, 32, 64, 128), low=2, high=10_000_000)

    def __post_init__(self):
        super().__post_init__()
        if not self.lengths or sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f'lengths={self.lengths} must ascend')

    def row_lengths(self) -> tuple[int, ...]:
        """See Batching."""
        return self.lengths

    def plan(
        self, lengths: np.ndarray, examples: np.ndarray, batch_tokens: int, seed: int | None
    ) -> Plan:
        """See Batching."""
        rows = Ragged(examples, np.arange(len(examples) + 1))
        bucket = np.searchsorted(self.lengths, lengths[examples].max(axis=1, initial=0))
        shapes = [(max(1, batch_tokens // length), length) for length in self.lengths]
        return Plan(rows, bucket, shapes, lengths, seed)


@dataclasses.dataclass(frozen=True)
class Packed(Batching):
    """Rows of several examples as segments: one shape, hardly any padding.

    A row has `length` source tokens and `length` target tokens.
    """

    length: int = number(256, low=2, high=10_000_000)

    def row_lengths(self) -> tuple[int, ...]:
        """See Batching."""
        halves = [self.length]
        while halves[0] >= 32:
            halves.insert(0, halves[0] // 2)
        return tuple(halves)

    def plan(
        self, lengths: np.ndarray, examples: np.ndarray, batch_tokens: int, seed: int | None
    ) -> Plan:
        """See Batching.

        Examples are packed once, in an order that the seed determines; every epoch shuffles the
        packed rows.
        """
        if seed is not None:
            examples = np.random.RandomState([seed]).permutation(examples)
        row = first_fit(lengths[examples], self.length)
        counts = np.bincount(row, minlength=0)
        rows = Ragged(
            examples[np.argsort(row, kind='stable')], np.concatenate([[0], np.cumsum(counts)])
        )
        shapes = [(max(1, batch_tokens // self.length), self.length)]
        return Plan(rows, np.zeros(len(counts), np.int64), shapes, lengths, seed)


BATCHING = {'buckets': Buckets, 'packed': Packed}


def first_fit(lengths: np.ndarray, capacity: int, window: int = 64) -> np.ndarray:
    """Assign each example to the first of `window` open rows that has room for source and target.

    Where none has, the fullest row is closed for good, which bounds the work per example whatever
    the number of rows.

    Args:
        lengths: [examples, 2] source and target lengths, none above `capacity`.
        capacity: source tokens, and target tokens, of a row.
        window: the number of open rows.

    Returns:
        [examples] the row of each, numbered from 0.
    """
    room = np.full((window, lengths.shape[1]), capacity)
    number = np.arange(window)
    following = window
    row = np.empty(len(lengths), np.int64)
    for index, need in enumerate(lengths):
        fits = (room >= need).all(axis=1)
        slot = fits.argmax()
        if not fits[slot]:
            slot = room.sum(axis=1).argmin()
            room[slot], number[slot], following = capacity, following, following + 1
        room[slot] -= need
        row[index] = number[slot]
    return np.unique(row, return_inverse=True)[1]


def padded_rows(rows: int, multiple: int) -> int:
    """Round the rows of a batch up to a multiple that the devices can share."""
    return -(-rows // multiple) * multiple


def materialize(
    step: Step,
    examples: Examples,
    rows_multiple: int,
    local_rows: LocalRows,
    target_length: int = 0,
) -> Batch:
    """Make this process's rows of the batch of one step.

    Concatenating the rows of all processes gives the same batch however many there are; padding has
    segment 0 and weight 0.

    Args:
        step: the examples and their rows.
        examples: the examples of the split.
        rows_multiple: empty rows fill the batch up to a multiple of so many.
        local_rows: from the rows of that batch to the [start, stop) of this process.
        target_length: tokens of a target row; 0: as many as of a source row.

    Returns:
        The batch, int32 arrays [stop − start, length] and float32 weights.
    """
    start, stop = local_rows(padded_rows(step.rows, rows_multiple))
    mine = (step.row >= start) & (step.row < stop)
    row, taken = step.row[mine] - start, examples.take(step.examples[mine])
    shape, source_side = (stop - start, step.length), (None, None, None)
    if taken.source is not None:
        source, lengths = taken.source
        place, positions, segments = _layout(lengths, row, shape)
        source_side = place(source), place(positions), place(segments)
    targets, lengths = taken.target
    place, positions, segments = _layout(lengths, row, (stop - start, target_length or step.length))
    starts = BOS if taken.starts is None else np.repeat(taken.starts, lengths)
    inputs = np.where(positions == 0, starts, np.roll(targets, 1))
    target_side = place(inputs), place(targets), place(positions), place(segments)
    weights = np.ones(len(targets)) if taken.weights is None else taken.weights
    return Batch(*source_side, *target_side, place(weights, np.float32))


def _layout(
    lengths: np.ndarray, row: np.ndarray, shape: tuple[int, int]
) -> tuple[Callable, np.ndarray, np.ndarray]:
    """Lay sequences of `lengths` end to end in their rows of an array of `shape`.

    Returns:
        (a function from the flat tokens to the array, the position of each token, its segment).
    """
    begin = np.cumsum(lengths) - lengths
    first = np.searchsorted(row, row)  # the first sequence of the same row
    positions = np.arange(lengths.sum()) - np.repeat(begin, lengths)
    segments = np.repeat(np.arange(len(row)) - first + 1, lengths)
    index = np.repeat(row * shape[1] + begin - begin[first], lengths) + positions

    def place(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        array = np.zeros(shape, dtype)
        array.reshape(-1)[index] = values
        return array

    return place, positions, segments

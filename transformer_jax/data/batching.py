"""The global batch plan: which examples step n sees, and in which rows.

A plan is a pure function of the examples' lengths and the seed; neither processes nor devices enter
it. A step can be looked up by its number, so that the data position of a checkpoint is one integer.
Every process computes the same plan and materializes only its own rows.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from transformer_jax.batch import BOS, Batch
from transformer_jax.data.examples import Examples, Ragged

LocalRows = Callable[
    [int], tuple[int, int]
]  # (rows of the global batch) -> [start, stop) of this process


class Step(NamedTuple):
    """What one step sees: `examples[k]` stands in row `row[k]`, rows ascending, the examples of a
    row in order.
    """

    rows: int
    length: int
    examples: np.ndarray
    row: np.ndarray


class Plan:
    """Rows of examples, in groups that share a batch shape; the rows of a group are spread evenly
    over its batches.

    Args:
        rows: the examples of every row.
        group: the group of every row.
        shapes: (rows, length) of a batch, by group.
        lengths: [examples, 2] source and target lengths, EOS included.
        seed: of the order, drawn anew for every epoch; None: the order given, as evaluation
            wants it.

    Attributes:
        steps_per_epoch: the same for every epoch.
        shapes: (rows, length) of the groups that occur: what is compiled, before rows are padded
            for the devices.
        fill: the share of the batches' slots, on all sides that there are, that hold tokens; the
            rest is padding.
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
        """Step `number` from 0; epochs follow one another without end."""
        epoch, index = divmod(number, self.steps_per_epoch)
        (rows, length), members = self._epoch(epoch)[index]
        examples, counts = self._rows.take(members)
        return Step(rows, length, examples, np.repeat(np.arange(len(members)), counts))

    def _order(self, epoch: int) -> list[tuple[tuple[int, int], np.ndarray]]:
        """The batches of an epoch: shape and rows. Rows are spread evenly, so that no step is taken
        on a mere rest.
        """
        batches = []
        for index, (shape, members) in enumerate(self._groups):
            if self._seed is not None:
                members = self._random(epoch, index + 1).permutation(members)
            batches += [
                (shape, part) for part in np.array_split(members, -(-len(members) // shape[0]))
            ]
        if self._seed is None:
            return batches
        return [batches[index] for index in self._random(epoch, 0).permutation(len(batches))]

    def _random(self, epoch: int, stream: int) -> np.random.RandomState:
        # NumPy promises that RandomState's stream never changes, which default_rng's may: resuming
        # needs that.
        return np.random.RandomState([self._seed, epoch, stream])


class Batching(Protocol):
    """How examples become rows."""

    def row_lengths(self) -> tuple[int, ...]:
        """Lengths of the rows that translation uses, ascending; the last one is the longest
        sentence, with EOS.
        """

    def plan(
        self, lengths: np.ndarray, examples: np.ndarray, batch_tokens: int, seed: int | None
    ) -> Plan:
        """The plan over `examples`, indices into `lengths` [all examples, 2] (EOS included, none
        above the longest).
        """


@dataclasses.dataclass(frozen=True)
class Buckets:
    """One pair per row; the row is as long as the smallest of `lengths` that holds both sides."""

    lengths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self):
        if (
            not self.lengths
            or sorted(set(self.lengths)) != list(self.lengths)
            or self.lengths[0] < 2
        ):
            raise ValueError(f'lengths={self.lengths} must ascend, from 2 or more')

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
class Packed:
    """Rows of `length` tokens on both sides that hold several pairs as segments: one shape, hardly
    any padding.
    """

    length: int = 256

    def __post_init__(self):
        if self.length < 2:
            raise ValueError(f'length={self.length} must be 2 or more')

    def row_lengths(self) -> tuple[int, ...]:
        """See Batching."""
        halves = [self.length]
        while halves[0] >= 32:
            halves.insert(0, halves[0] // 2)
        return tuple(halves)

    def plan(
        self, lengths: np.ndarray, examples: np.ndarray, batch_tokens: int, seed: int | None
    ) -> Plan:
        """See Batching. Texts are packed once, in an order drawn from the seed; epochs shuffle the
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
    """The row of each example when every one goes to the first of `window` open rows that has room
    on both sides.

    When none has, the fullest is closed for good, which bounds the work per example whatever the
    number of rows.
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
    """Rows of a batch once empty ones fill it up to what the devices need."""
    return -(-rows // multiple) * multiple


def materialize(
    step: Step,
    examples: Examples,
    rows_multiple: int,
    local_rows: LocalRows,
    target_length: int = 0,
) -> Batch:
    """The rows of one step that `local_rows` asks for, of the batch padded to a multiple of
    `rows_multiple` rows.

    Concatenating the rows of all processes gives the same batch however many there are; padding has
    segment 0 and weight 0. `target_length`: of the target side, where that is not as long as the
    source's (0).
    """
    start, stop = local_rows(padded_rows(step.rows, rows_multiple))
    mine = (step.row >= start) & (step.row < stop)
    row, taken = step.row[mine] - start, examples.take(step.examples[mine])
    shape, source_side = (stop - start, step.length), [None] * 3
    if taken.source is not None:
        source, lengths = taken.source
        place, positions, segments = _layout(lengths, row, shape)
        source_side = [place(values) for values in (source, positions, segments)]
    targets, lengths = taken.target
    place, positions, segments = _layout(lengths, row, (stop - start, target_length or step.length))
    starts = BOS if taken.starts is None else np.repeat(taken.starts, lengths)
    inputs = np.where(positions == 0, starts, np.roll(targets, 1))
    target_side = [place(values) for values in (inputs, targets, positions, segments)]
    weights = np.ones(len(targets)) if taken.weights is None else taken.weights
    return Batch(*source_side, *target_side, place(weights, np.float32))


def _layout(
    lengths: np.ndarray, row: np.ndarray, shape: tuple[int, int]
) -> tuple[Callable, np.ndarray, np.ndarray]:
    """How sequences of `lengths`, laid end to end in their rows, fill an array of `shape`.

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

"""The batch plan: a pure function of seed and lengths; packing against literal arrays."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from transformer_jax.batch import BOS, EOS
from transformer_jax.data.batching import Buckets, Packed, Plan, first_fit, materialize, padded_rows
from transformer_jax.data.encoding import Encoded, cut
from transformer_jax.data.examples import Ragged

BATCHINGS = [Buckets((6, 9, 16)), Packed(16), Packed(40)]


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(
        np.array([token for row in rows for token in row], np.uint16),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
    )


def corpus(count: int, seed: int = 0, longest: int = 15) -> Encoded:
    random = np.random.RandomState(seed)
    sides = []
    for side in range(2):  # tokens name their example, so that a batch shows which it holds
        lengths = random.randint(1, longest, count)
        sides.append(
            ragged(
                [[10 + 2 * index + side] * length + [EOS] for index, length in enumerate(lengths)]
            )
        )
    return Encoded(*sides)


def plan_of(batching, encoded: Encoded, seed: int | None = 0, batch_tokens: int = 128) -> Plan:
    return batching.plan(encoded.lengths, np.arange(len(encoded.source)), batch_tokens, seed)


def everything(rows: int) -> tuple[int, int]:
    return 0, rows


def share(process: int, processes: int):
    return lambda rows: (process * rows // processes, (process + 1) * rows // processes)


def steps(plan: Plan, epoch: int) -> list:
    return [
        plan.step(epoch * plan.steps_per_epoch + index) for index in range(plan.steps_per_epoch)
    ]


@pytest.mark.parametrize('batching', BATCHINGS)
def test_every_epoch_holds_each_example_once_in_another_order(batching):
    encoded = corpus(101)
    plan = plan_of(batching, encoded)
    orders = []
    for epoch in range(3):
        orders.append(np.concatenate([step.examples for step in steps(plan, epoch)]))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(101))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


@pytest.mark.parametrize('batching', BATCHINGS)
def test_batches_differ_between_epochs_not_only_their_order(batching):
    plan = plan_of(batching, corpus(301))
    epochs = [
        {frozenset(step.examples.tolist()) for step in steps(plan, epoch)} for epoch in range(2)
    ]
    assert len(epochs[0] & epochs[1]) <= 1


@pytest.mark.parametrize('batching', BATCHINGS)
def test_the_seed_alone_decides(batching):
    encoded = corpus(101)
    same, again, other = (plan_of(batching, encoded, seed) for seed in (3, 3, 4))
    again.step(5 * again.steps_per_epoch)  # earlier look-ups do not matter
    for number in (0, 7, 3 * same.steps_per_epoch - 1):
        for one, two in zip(same.step(number), again.step(number), strict=True):
            np.testing.assert_array_equal(one, two)
    assert any(
        not np.array_equal(a.examples, b.examples)
        for a, b in zip(steps(same, 0), steps(other, 0), strict=False)
    )


@pytest.mark.parametrize('batching', BATCHINGS)
def test_rows_fit_their_shape(batching):
    encoded = corpus(101)
    plan = plan_of(batching, encoded)
    sizes = []
    for step in steps(plan, 0):
        assert (step.rows, step.length) in plan.shapes
        assert step.rows == 128 // step.length
        for side in (encoded.source, encoded.target):
            assert np.bincount(step.row, side.lengths[step.examples]).max() <= step.length
        sizes.append(((step.rows, step.length), len(np.unique(step.row))))
    for shape in plan.shapes:  # no batch is nearly empty
        counts = [count for key, count in sizes if key == shape]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize('batching', BATCHINGS)
@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('multiple', [4, 12])
def test_the_rows_of_all_processes_make_the_global_batch(batching, processes, multiple):
    encoded = corpus(57)
    plan = plan_of(batching, encoded)
    for number in range(plan.steps_per_epoch):
        step = plan.step(number)
        whole = materialize(step, encoded, 1, everything)
        assert padded_rows(step.rows, multiple) % multiple == 0
        parts = [
            materialize(step, encoded, multiple, share(p, processes)) for p in range(processes)
        ]
        for name, array in whole._asdict().items():
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.dtype == array.dtype
            np.testing.assert_array_equal(joined[: step.rows], array)
            assert not joined[step.rows :].any()


@pytest.mark.parametrize('batching', BATCHINGS)
def test_a_batch_holds_the_text_of_its_examples(batching):
    encoded = corpus(57)
    plan = plan_of(batching, encoded)
    for step in steps(plan, 0):
        batch = materialize(step, encoded, 1, everything)
        tokens = {int(token) for token in batch.source_BS.ravel()} - {0, EOS}
        assert tokens == {10 + 2 * int(index) for index in step.examples}
        assert (batch.source_segments_BS > 0).sum() == encoded.source.lengths[step.examples].sum()
        assert batch.weights_BT.sum() == encoded.target.lengths[step.examples].sum()


def test_buckets_of_a_literal_example():
    encoded = Encoded(ragged([[11, 12, EOS], [13, EOS]]), ragged([[21, EOS], [22, 23, EOS]]))
    plan = Buckets((4,)).plan(encoded.lengths, np.arange(2), 12, None)
    batch = materialize(plan.step(0), encoded, 2, everything)
    assert batch.source_BS.tolist() == [[11, 12, EOS, 0], [13, EOS, 0, 0], [0] * 4, [0] * 4]
    assert batch.source_positions_BS.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert batch.source_segments_BS.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
    assert batch.inputs_BT.tolist() == [[BOS, 21, 0, 0], [BOS, 22, 23, 0], [0] * 4, [0] * 4]
    assert batch.targets_BT.tolist() == [[21, EOS, 0, 0], [22, 23, EOS, 0], [0] * 4, [0] * 4]
    assert batch.positions_BT.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0], [0] * 4, [0] * 4]
    assert batch.weights_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0] * 4, [0] * 4]
    assert plan.fill == 10 / (2 * 3 * 4)


def test_packing_of_a_literal_example():
    encoded = Encoded(
        ragged([[11, 12, EOS], [13, EOS], [14, 15, EOS]]),
        ragged([[21, EOS], [22, 23, EOS], [24, 25, 26, EOS]]),
    )
    plan = Packed(6).plan(encoded.lengths, np.arange(3), 12, None)
    batch = materialize(plan.step(0), encoded, 1, everything)
    assert batch.source_BS.tolist() == [[11, 12, EOS, 13, EOS, 0], [14, 15, EOS, 0, 0, 0]]
    assert batch.source_positions_BS.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 0]]
    assert batch.source_segments_BS.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0]]
    assert batch.inputs_BT.tolist() == [[BOS, 21, BOS, 22, 23, 0], [BOS, 24, 25, 26, 0, 0]]
    assert batch.targets_BT.tolist() == [[21, EOS, 22, 23, EOS, 0], [24, 25, 26, EOS, 0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.weights_BT.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    strategies.lists(
        strategies.tuples(strategies.integers(2, 12), strategies.integers(2, 12)),
        min_size=1,
        max_size=60,
    ),
    strategies.integers(1, 5),
)
def test_first_fit_never_overfills_and_leaves_no_gap(pairs, window):
    lengths = np.array(pairs)
    row = first_fit(lengths, 12, window)
    assert sorted(set(row)) == list(range(row.max() + 1))
    for side in range(2):
        assert np.bincount(row, lengths[:, side]).max() <= 12


def test_packing_fills_rows_of_sentence_like_lengths():
    random = np.random.RandomState(0)
    source = np.clip(random.lognormal(2.6, 0.35, 5000), 4, 50).astype(int)
    lengths = np.stack([source, np.clip(source + random.randint(-4, 5, 5000), 2, 50)], axis=1)
    assert Packed(256).plan(lengths, np.arange(5000), 4096, 0).fill > 0.9


def test_evaluation_keeps_the_order_of_each_bucket():
    plan = plan_of(Buckets((6, 9, 16)), corpus(57), seed=None)
    order = [step.examples.tolist() for step in steps(plan, 0)]
    assert order == [step.examples.tolist() for step in steps(plan, 1)]
    assert all(part == sorted(part) for part in order)


def test_cut_keeps_the_end_of_sentence():
    short = cut(ragged([[11, 12, 13, EOS], [14, EOS], [EOS]]), 3)
    assert short.values.tolist() == [11, 12, EOS, 14, EOS, EOS]
    assert short.offsets.tolist() == [0, 3, 5, 6]


@pytest.mark.parametrize(
    'make',
    [
        lambda: Buckets(()),
        lambda: Buckets((8, 4)),
        lambda: Buckets((8, 8)),
        lambda: Buckets((1, 4)),
        lambda: Packed(1),
    ],
)
def test_impossible_lengths_are_refused(make):
    with pytest.raises(ValueError, match=r'must|outside'):
        make()

"""Synthetic tasks: pure functions of seed, split and index; disjoint splits; options."""

import collections
import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic import digest, make_examples, near

from transformer_jax import spec
from transformer_jax.batch import EOS
from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.data.tasks.symbols import FIRST
from transformer_jax.data.tasks.synthetic import SYNTHETIC
from transformer_jax.data.tasks.synthetic.algorithmic import (
    Addition,
    Copy,
    Dyck,
    Parity,
    Reverse,
    Sort,
)
from transformer_jax.data.tasks.synthetic.base import Stream
from transformer_jax.data.tasks.synthetic.listops import ListOps
from transformer_jax.data.tasks.synthetic.recall import (
    MQAR,
    Dependency,
    Induction,
    SelectiveCopying,
)
from transformer_jax.errors import ConfigError

# Every task, with settings that make examples quickly.
SMALL = [
    Copy(alphabet=5, length=6, test_length=9),
    Reverse(length=5, test_length=7),
    Sort(length=4, test_length=8),
    Addition(length=4, test_length=6),
    Addition(reversed=True),
    Parity(length=14, test_length=20),
    Dyck(length=20, test_length=30),
    Induction(length=20, test_length=30),
    SelectiveCopying(length=40, items=4),
    MQAR(),
    ListOps(min_length=10, max_length=60, max_depth=5),
    Dependency(distance=6, test_distance=9),
]
every_task = pytest.mark.parametrize('task', SMALL, ids=lambda task: type(task).__name__)

# The digest of examples of all tasks: it changes only on purpose, never with a version of NumPy.
GOLDEN = '01485d463017ca9bc203199d3817b8cef265179437763a05ff3d4987f549c347'


# --- Examples -------------------------------------------------------------------------------------


@every_task
def test_an_example_depends_on_seed_split_and_index_alone(task):
    contents = {}
    for split, index in itertools.product(SPLITS, range(12)):
        contents[split, index] = [
            None if part is None else part.tolist() for part in task.make_example(3, split, index)
        ]
    again = dataclasses.replace(task)
    for split, index in reversed(contents):
        found = [
            None if part is None else part.tolist() for part in again.make_example(3, split, index)
        ]
        assert found == contents[split, index]
    assert any(contents['validation', index] != contents['train', index] for index in range(12))
    assert any(
        task.make_example(4, 'train', i).target.tolist() != contents['train', i][1]
        for i in range(12)
    )


def test_another_process_makes_the_same_examples():
    code = 'from helpers.synthetic import digest; print(digest())'
    found = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).parents[1],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.strip()
    assert found == digest() == GOLDEN


@every_task
def test_examples_are_well_formed(task):
    assert len(set(task.symbols())) == len(task.symbols())
    assert not any(' ' in name for name in task.symbols())
    for split in SPLITS:
        bounds = task.longest(split)
        for example in make_examples(task, split, 60):
            sides = [part for part in (example.source, example.target) if part is not None]
            assert all(side.dtype == np.int32 for side in sides)
            assert 0 < len(example.target) <= bounds[1]
            ids = example.source if task.predicts_class else np.concatenate(sides)
            assert set(ids.tolist()) <= {EOS, *range(FIRST, FIRST + len(task.symbols()))}
            assert (example.source is not None) == task.has_source == (bounds[0] > 0)
            if example.source is not None:
                assert len(example.source) <= bounds[0]
                assert example.source[-1] == EOS
            if task.predicts_class:
                assert example.target.shape == (1,)
                assert 0 <= example.target[0] < len(task.classes())
            if example.weights is not None:
                assert example.weights.dtype == np.float32
                assert example.weights.shape == example.target.shape
                assert set(example.weights.tolist()) <= {0, 1}
                assert example.weights.any()


def test_the_random_numbers_follow_their_laws():
    stream, count = Stream(0, 1, 2), 20_000
    values = stream.uniform(count)
    assert 0 <= values.min() < 0.001
    assert 0.999 < values.max() < 1
    for value, times in collections.Counter(stream.integers(3, count).tolist()).items():
        assert value in (0, 1, 2)
        near(times / count, 1 / 3, count)
    orders = collections.Counter(tuple(stream.distinct(3, 2).tolist()) for _ in range(2000))
    assert sorted(orders) == sorted(itertools.permutations(range(3), 2))
    for times in orders.values():
        near(times / 2000, 1 / 6, 2000)
    weights = np.array([5, 3, 2])
    orders = collections.Counter(tuple(stream.weighted(weights, 2).tolist()) for _ in range(5000))
    for (first, second), times in orders.items():
        near(times / 5000, weights[first] / 10 * weights[second] / (10 - weights[first]), 5000)


# --- Splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'task',
    [
        Copy(alphabet=10, length=4, test_length=4),
        Reverse(alphabet=10, length=4, test_length=4),
        Sort(alphabet=10, length=4, test_length=5),
        Addition(length=2, test_length=2),
        Parity(length=12, test_length=12),
        Dyck(length=14, test_length=14),
        Induction(alphabet=11, length=7, test_length=0),
        SelectiveCopying(alphabet=4, items=4, length=8),
        MQAR(vocab_size=24, pairs=2, length=8),
        ListOps(min_length=4, max_length=7, max_depth=3),
        Dependency(distance=1),
    ],
    ids=lambda task: type(task).__name__,
)
def test_no_held_out_example_occurs_in_training(task):
    def contents(split, count, seed=0):
        return {
            (example.target if example.source is None else example.source).tobytes()
            for example in make_examples(task, split, count, seed)
        }

    train = contents('train', 1500) | contents('train', 1500, seed=1)
    held_out = [contents(split, 400) for split in ('validation', 'test')]
    assert all(len(content) > 50 for content in held_out)
    assert not train & held_out[0]
    assert not train & held_out[1]
    assert not held_out[0] & held_out[1]


def test_a_length_with_few_examples_is_for_training():
    task = Copy(alphabet=10, length=4, test_length=4)
    assert list(task.lengths('train')) == [1, 2, 3, 4]
    assert list(task.lengths('validation')) == list(task.lengths('test')) == [3, 4]
    short = {
        tuple(example.source)
        for example in make_examples(task, 'train', 2000)
        if len(example.source) == 2
    }
    assert len(short) == 10
    with pytest.raises(ValueError, match='too few to hold some out'):
        Copy(alphabet=10, length=2, test_length=2)


@pytest.mark.parametrize(
    'task', [Copy(), Addition(), Parity(), Dyck()], ids=lambda task: type(task).__name__
)
def test_lengths_are_balanced_and_those_of_the_test_split_longer(task):
    for split in SPLITS:
        lengths = collections.Counter(task.length_at(split, index) for index in range(2000))
        assert max(lengths.values()) - min(lengths.values()) <= 1
        assert set(lengths) == set(task.lengths(split))
        assert max(lengths) == (task.test_length if split == 'test' else task.length)
        assert (min(lengths) > task.length) == (split == 'test')
    for index in range(100):
        example = task.make_example(0, 'test', index)
        length = len(example.target if example.source is None else example.source) - 1
        assert length == task.length_at('test', index) or isinstance(task, Addition)


def test_the_defaults_are_the_papers():
    sizes = {
        name: (task.longest('train'), task.longest('test'), task.count('train'), task.count('test'))
        for name, task in ((name, cls()) for name, cls in SYNTHETIC.items())
    }
    assert sizes == {
        'copy': ((21, 21), (41, 41), 100_000, 10_000),
        'reverse': ((21, 21), (41, 41), 100_000, 10_000),
        'sort': ((21, 21), (41, 41), 100_000, 10_000),
        'addition': ((42, 22), (82, 42), 100_000, 10_000),
        'parity': ((51, 1), (101, 1), 10_000, 2_000),
        'dyck': ((0, 85), (0, 169), 100_000, 2_000),
        'induction': ((0, 256), (0, 512), 8 * 204_800, 2_000),
        'selective_copying': ((0, 4096 + 17), (0, 4096 + 17), 1_000_000, 2_000),
        'mqar': ((0, 64), (0, 64), 100_000, 3_000),
        'listops': ((2001, 1), (2001, 1), 96_000, 2_000),
        'dependency': ((103, 2), (103, 2), 100_000, 2_000),
    }
    assert len(MQAR().symbols()) == 8192
    assert len(Induction().symbols()) == 16
    assert len(ListOps().symbols()) == 15


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('copy(alphabet=1)', 'alphabet=1 is outside'),
        ('copy(length=0)', 'length=0 is outside'),
        ('sort(length=20, test_length=10)', 'test_length=10, it takes at least length=20'),
        ('reverse(examples=0)', 'examples=0 is outside'),
        ('reverse(held_out=0)', 'held_out=0 is outside'),
        ('addition(seed=-1)', 'seed=-1 is outside'),
        ('addition(length=1, test_length=1)', 'too few to hold some out'),
        ('parity(length=9)', 'too few to hold some out'),
        ('dyck(kinds=0)', 'kinds=0 is outside'),
        ('dyck(kinds=1, depth=1)', 'too few to hold some out'),
        ('induction(length=3)', 'length=3 is outside'),
        ('induction(test_length=3)', 'test_length=3 is outside'),
        ('selective_copying(length=10)', 'items=16 do not fit into a length of 10'),
        ('mqar(pairs=17)', 'length=64 must be even, and at least 4·pairs=68'),
        ('mqar(length=65)', 'length=65 must be even'),
        ('mqar(test_length=12)', 'test_length=12 must be even, and at least 4·pairs=16'),
        (
            'mqar(vocab_size=8)',
            'pairs=4 of vocab_size=8: the lower half of the vocabulary has 3 keys',
        ),
        ('mqar(power_a=0.0)', 'power_a=0.0 is outside'),
        ('dependency(distance=0)', 'distance=0 is outside'),
        ('listops(max_args=1)', 'max_args=1 is outside'),
        ('listops(min_length=3)', 'min_length=3 is outside'),
        (
            'listops(min_length=600, max_length=500)',
            'max_length=500, it takes at least min_length=600',
        ),
        (
            'listops(max_depth=4)',
            'max_length=2000, but with max_depth=4 and max_args=10 an expression has at most 1222',
        ),
        (
            'listops(max_args=2)',
            'max_length=2000, but with max_depth=10 and max_args=2 an expression has at most 1534',
        ),
        (
            'listops(min_length=3060, max_length=3070, max_depth=11, max_args=2)',
            'next to no expression is as long as that',
        ),
        (
            'listops(min_length=8, max_length=9, max_args=2)',
            'next to no expression is as long as that',
        ),
    ],
)
def test_bad_options_are_refused(text, message):
    with pytest.raises(ConfigError) as error:
        spec.parse(text, SYNTHETIC, 'data.task')
    assert message in str(error.value)


def test_options_are_spec_strings():
    for text in (
        'addition(reversed=True, length=5, test_length=10)',
        'mqar(pairs=64, length=512)',
        'listops',
        'dependency(distance=20, seed=3)',
    ):
        task = spec.parse(text, SYNTHETIC, 'data.task')
        assert spec.parse(spec.text(task, SYNTHETIC), SYNTHETIC, 'data.task') == task

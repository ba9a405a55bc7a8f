"""Generated tasks: pure draws, right answers by independent evaluation, the papers' distributions,
disjoint splits.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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

# Every task where draws are quick.
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

# The examples themselves: they change only on purpose, never with a version of NumPy.
GOLDEN = '01485d463017ca9bc203199d3817b8cef265179437763a05ff3d4987f549c347'


def draws(task, split, count, seed=0):
    return [task.make_example(seed, split, index) for index in range(count)]


def words(task, ids):
    """The symbols of some ids; EOS is '.'."""
    names = dict(enumerate(task.symbols(), FIRST)) | {EOS: '.'}
    return [names[int(number)] for number in ids]


def pairs(task, split, count):
    """(source, target) symbols, which have to end with EOS."""
    for example in draws(task, split, count):
        source, target = (words(task, side) for side in (example.source, example.target))
        assert source.pop() == target.pop() == '.'
        yield source, target


def digest():
    content = hashlib.sha256()
    for cls, split in itertools.product(SYNTHETIC.values(), SPLITS):
        for index in (7, 0, 123):
            for array in cls().make_example(1, split, index):
                content.update(b'none' if array is None else array.tobytes())
    return content.hexdigest()


def near(found, expected, count):
    """A share found in `count` draws is within four standard deviations of what is expected."""
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / count), (
        found,
        expected,
    )


# --- Draws ----------------------------------------------------------------------------------------


@every_task
def test_a_draw_depends_on_seed_split_and_index_alone(task):
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


def test_another_process_draws_the_same():
    code = 'import test_synthetic; print(test_synthetic.digest())'
    found = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).parent,
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
        for example in draws(task, split, 60):
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
            for example in draws(task, split, count, seed)
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
        tuple(example.source) for example in draws(task, 'train', 2000) if len(example.source) == 2
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


# --- Algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('cls', 'answer'),
    [
        (Copy, list),
        (Reverse, lambda source: source[::-1]),
        (Sort, lambda source: sorted(source, key=int)),
    ],
)
def test_copy_reverse_and_sort(cls, answer):
    seen = collections.Counter()
    for source, target in pairs(cls(), 'train', 300):
        assert target == answer(source)
        seen.update(source)
    assert set(seen) == set(map(str, range(50)))


@pytest.mark.parametrize('task', [Addition(), Addition(reversed=True)], ids=['plain', 'reversed'])
def test_addition(task):
    shapes = set()
    for index, (source, target) in enumerate(pairs(task, 'train', 2000)):
        first, second = ''.join(source).split('+')
        total = ''.join(target[::-1] if task.reversed else target)
        assert int(total) == int(first) + int(second)
        assert all(str(int(number)) == number for number in (first, second, total))
        assert max(len(first), len(second)) == task.length_at('train', index)
        shapes.add((len(first), len(second)))
    assert all({shape[side] for shape in shapes} == set(range(1, 21)) for side in (0, 1))
    assert len(shapes) > 350


def test_parity():
    task = Parity()
    classes = collections.Counter()
    for example in draws(task, 'train', 2000):
        assert example.target[0] == words(task, example.source).count('1') % 2
        classes.update(example.target.tolist())
    near(classes[1] / 2000, 0.5, 2000)


@pytest.mark.parametrize(
    'task',
    [
        Dyck(),
        Dyck(kinds=5, depth=1, length=20, test_length=40),
        Dyck(kinds=1, depth=10, every_token=True),
    ],
    ids=repr,
)
def test_dyck_strings_are_well_nested(task):
    deepest, kinds = 0, set()
    for example in draws(task, 'train', 200):
        *brackets, end = words(task, example.target)
        stack = []
        for bracket, weight in zip(brackets, example.weights, strict=False):
            if bracket.startswith('('):
                stack.append(bracket[1:])
                kinds.add(stack[-1])
            else:
                assert stack.pop() == bracket[:-1]
            deepest = max(deepest, len(stack))
            assert weight == (task.every_token or not bracket.startswith('('))
        assert (stack, end, example.weights[-1]) == ([], '.', task.every_token)
    assert deepest == task.depth
    assert len(kinds) == task.kinds


def test_dyck_strings_are_as_likely_as_the_automaton_makes_them():
    task = Dyck(kinds=2, depth=2, length=20, test_length=40)

    def chance(
        shape,
    ):  # each step from below the greatest depth is one of two; at it there is only one
        depth, result = 0, 1.0
        for step in shape:
            result *= 1 if depth == 2 else 0.5
            depth += 1 if step == '(' else -1
        return result

    shapes = {shape: chance(shape) for shape in ('()()()', '(())()', '()(())', '(()())')}
    count, found = 4000, collections.Counter()
    for index in range(2, 10 * count, 10):  # every tenth has six brackets
        brackets = words(task, task.make_example(0, 'train', index).target)[:-1]
        found[''.join('(' if bracket.startswith('(') else ')' for bracket in brackets)] += 1
    assert set(found) == set(shapes)
    for shape, times in found.items():
        near(times / count, shapes[shape] / sum(shapes.values()), count)


# --- Recall ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('task', [MQAR(), MQAR(vocab_size=64, pairs=16, length=64)], ids=repr)
def test_mqar_asks_once_for_the_value_of_every_key(task):
    for example in draws(task, 'validation', 100):
        symbols, split = words(task, example.target), 2 * task.pairs
        given = dict(zip(symbols[:split:2], symbols[1:split:2], strict=True))
        assert len(given) == len(set(given.values())) == task.pairs
        assert all(
            0 < int(key[1:]) < task.vocab_size // 2 <= int(value[1:])
            for key, value in given.items()
        )
        assert {key[0] + value[0] for key, value in given.items()} == {'kv'}
        asked = np.flatnonzero(example.weights)
        assert (asked > split).all()
        assert {symbols[place - 1]: symbols[place] for place in asked} == given
        rest = set(range(split, task.length)) - {*asked, *(asked - 1)}
        assert {symbols[place] for place in rest} <= {'_'}
        assert len(rest) == task.length - 2 * split


def test_mqar_gaps_follow_the_power_law():
    task, count = MQAR(vocab_size=100, pairs=1, length=20, power_a=0.5), 4000
    slots = collections.Counter(
        int(np.flatnonzero(e.weights)[0]) // 2 for e in draws(task, 'train', count)
    )
    law = {slot: slot**-0.5 for slot in range(1, 10)}  # the density of a·x^(a−1), a = 1/2
    assert set(slots) == set(law)
    for slot, times in slots.items():
        near(times / count, law[slot] / sum(law.values()), count)


def test_induction_repeats_what_followed_the_mark():
    task = Induction()
    places = set()
    for example in draws(task, 'train', 500):
        symbols = words(task, example.target)
        first, last = (place for place, symbol in enumerate(symbols) if symbol == '*')
        assert last == 254
        assert symbols[255] == symbols[first + 1] != '*'
        assert np.flatnonzero(example.weights).tolist() == [255]
        places.add(first)
    assert min(places) < 10
    assert 240 < max(places) <= 252


def test_selective_copying_repeats_what_is_not_blank():
    task = SelectiveCopying(length=200)
    for example in draws(task, 'test', 50):
        symbols = words(task, example.target)
        context, answer = symbols[:200], symbols[201:]
        assert symbols[200] == '>'
        assert answer == [symbol for symbol in context if symbol != '_']
        assert len(answer) == 16
        assert example.weights.tolist() == [0] * 201 + [1] * 16


def test_dependency_lies_at_its_distance():
    task = Dependency(distance=30, test_distance=90)
    for split, distance in (('train', 30), ('validation', 30), ('test', 90)):
        for source, target in pairs(task, split, 50):
            assert source.index('*') == distance
            assert target == [source[distance + 1]]
            assert len(source) - (distance + 2) == distance


# --- ListOps --------------------------------------------------------------------------------------


def parse(symbols):
    """A nested list (operator, argument, …) or a digit."""
    symbol = symbols.pop(0)
    if not symbol.startswith('['):
        return int(symbol)
    tree = [symbol]
    while symbols[0] != ']':
        tree.append(parse(symbols))
    symbols.pop(0)
    return tree


def evaluate(tree):
    if isinstance(tree, int):
        return tree
    operator, *arguments = tree
    values = [evaluate(argument) for argument in arguments]
    return {
        '[MIN': min,
        '[MAX': max,
        '[MED': lambda v: math.floor(statistics.median(v)),
        '[SM': lambda v: sum(v) % 10,
    }[operator](values)


def operations(tree, depth=1):
    """(depth, operator, arguments) of every operation."""
    if isinstance(tree, list):
        yield depth, tree[0], tree[1:]
        for argument in tree[1:]:
            yield from operations(argument, depth + 1)


@pytest.mark.parametrize(
    'task', [ListOps(), ListOps(min_length=20, max_length=200, max_depth=5)], ids=repr
)
def test_listops_expressions_have_their_value(task):
    count, classes, operators, arities, depths, lengths = (
        200,
        *(collections.Counter() for _ in range(5)),
    )
    for example in draws(task, 'test', count):
        *symbols, end = words(task, example.source)
        lengths[len(symbols)] += 1
        tree = parse(symbols)
        assert (symbols, end) == ([], '.')
        assert evaluate(tree) == example.target[0]
        classes[int(example.target[0])] += 1
        for depth, operator, arguments in operations(tree):
            operators[operator] += 1
            arities[len(arguments)] += 1
            depths[depth] += 1
    assert task.min_length <= min(lengths)
    assert max(lengths) <= task.max_length
    assert len(lengths) > 80
    assert set(classes) == set(range(10))
    assert max(classes.values()) < 0.3 * count
    assert set(operators) == {'[MIN', '[MAX', '[MED', '[SM'}
    assert max(operators.values()) < 1.2 * min(operators.values())
    assert set(arities) == set(range(2, 11))
    assert max(depths) == task.max_depth - 1


def published(generator, depth, max_depth, max_args):
    """An expression as a nested list, drawn as the published set was, before lengths are
    looked at.
    """
    if depth == max_depth or generator.random() >= 0.25:
        return generator.randrange(10)
    arguments = [
        published(generator, depth + 1, max_depth, max_args)
        for _ in range(generator.randint(2, max_args))
    ]
    return [generator.choice(['[MIN', '[MAX', '[MED', '[SM']), *arguments]


def size(tree):
    return 1 if isinstance(tree, int) else 2 + sum(map(size, tree[1:]))


def test_listops_distribution_is_that_of_dropping_what_does_not_fit():
    task, generator, count = (
        ListOps(min_length=8, max_length=24, max_depth=4, max_args=4),
        random.Random(0),
        4000,
    )
    trees = []
    while len(trees) < count:
        tree = published(generator, 1, 4, 4)
        if 8 <= size(tree) <= 24:
            trees.append(tree)
    drawn = [parse(words(task, example.source)[:-1]) for example in draws(task, 'train', count)]
    for feature in (
        size,
        len,
        lambda tree: len(list(operations(tree))),
        lambda tree: size(tree[1]),
        lambda tree: size(tree[-1]),
        evaluate,
    ):
        expected, found = (collections.Counter(map(feature, some)) for some in (trees, drawn))
        for value in expected | found:
            share = (expected[value] + found[value]) / 2 / count
            # Both are samples: the variance of their difference is twice that of one.
            near((found[value] - expected[value]) / count / math.sqrt(2) + share, share, count)


def test_listops_reaches_its_longest_expression():
    task = ListOps(min_length=8, max_length=10, max_depth=3, max_args=2)  # 10 = 2 + 2 (2 + 2)
    shapes = {
        size(parse(words(task, example.source)[:-1])) for example in draws(task, 'train', 200)
    }
    assert shapes == {10}  # with two arguments each, lengths are 4, 7 and 10


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('copy(alphabet=1)', 'alphabet=1, it takes at least 2'),
        ('copy(length=0)', 'length=0, it takes at least 1'),
        ('sort(length=20, test_length=10)', 'test_length=10, it takes at least length=20'),
        ('reverse(examples=0)', 'examples=0, it takes at least 1'),
        ('reverse(held_out=0)', 'held_out=0, it takes at least 1'),
        ('addition(seed=-1)', 'seed=-1, it takes at least 0'),
        ('addition(length=1, test_length=1)', 'too few to hold some out'),
        ('parity(length=9)', 'too few to hold some out'),
        ('dyck(kinds=0)', 'kinds=0, it takes at least 1'),
        ('dyck(kinds=1, depth=1)', 'too few to hold some out'),
        ('induction(length=3)', 'length=3, it takes at least 4'),
        ('induction(test_length=3)', 'test_length=3, it takes at least 4, or 0: as length'),
        ('selective_copying(length=10)', 'items=16 do not fit into a length of 10'),
        ('mqar(pairs=17)', 'length=64 must be even, and at least 4·pairs=68'),
        ('mqar(length=65)', 'length=65 must be even'),
        ('mqar(test_length=12)', 'test_length=12 must be even, and at least 4·pairs=16'),
        (
            'mqar(vocab_size=8)',
            'pairs=4 of vocab_size=8: the lower half of the vocabulary has 3 keys',
        ),
        ('mqar(power_a=0.0)', 'power_a=0.0 must be positive'),
        ('dependency(distance=0)', 'distance=0, it takes at least 1'),
        ('listops(max_args=1)', 'max_args=1, it takes at least 2'),
        ('listops(min_length=3)', 'min_length=3, it takes at least 4'),
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

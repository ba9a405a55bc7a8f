"""ListOps: values by independent evaluation, and the published set's distribution."""

import collections
import math
import random
import statistics

import pytest
from helpers.synthetic import make_examples, near, words

from transformer_jax.data.tasks.synthetic.listops import ListOps


def parse(symbols):
    """Parse a prefix of symbols: a nested list (operator, argument, …) or a digit."""
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
    """Yield (depth, operator, arguments) of every operation."""
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
    for example in make_examples(task, 'test', count):
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
    """Sample an expression as the published set was, before the filter by length."""
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
    ours = [
        parse(words(task, example.source)[:-1]) for example in make_examples(task, 'train', count)
    ]
    for feature in (
        size,
        len,
        lambda tree: len(list(operations(tree))),
        lambda tree: size(tree[1]),
        lambda tree: size(tree[-1]),
        evaluate,
    ):
        expected, found = (collections.Counter(map(feature, some)) for some in (trees, ours))
        for value in expected | found:
            share = (expected[value] + found[value]) / 2 / count
            # Both are samples: the variance of their difference is twice that of one.
            near((found[value] - expected[value]) / count / math.sqrt(2) + share, share, count)


def test_listops_reaches_its_longest_expression():
    task = ListOps(min_length=8, max_length=10, max_depth=3, max_args=2)  # 10 = 2 + 2 (2 + 2)
    shapes = {
        size(parse(words(task, example.source)[:-1]))
        for example in make_examples(task, 'train', 200)
    }
    assert shapes == {10}  # with two arguments each, lengths are 4, 7 and 10

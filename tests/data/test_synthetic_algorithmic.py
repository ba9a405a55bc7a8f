"""Algorithmic tasks: the answers by independent computation, the papers' distributions."""

import collections

import pytest
from helpers.synthetic import make_examples, near, pairs, words

from transformer_jax.data.tasks.synthetic.algorithmic import (
    Addition,
    Copy,
    Dyck,
    Parity,
    Reverse,
    Sort,
)


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
    for example in make_examples(task, 'train', 2000):
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
    for example in make_examples(task, 'train', 200):
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

    def chance(shape):
        """Multiply the chances of all steps: 1/2 each, but 1 at the greatest depth."""
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

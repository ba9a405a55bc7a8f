"""Recall tasks: what is asked, what counts, and the papers' distributions."""

import collections

import numpy as np
import pytest
from helpers.synthetic import make_examples, near, pairs, words

from transformer_jax.data.tasks.synthetic.recall import (
    MQAR,
    Dependency,
    Induction,
    SelectiveCopying,
)


@pytest.mark.parametrize('task', [MQAR(), MQAR(vocab_size=64, pairs=16, length=64)], ids=repr)
def test_mqar_asks_once_for_the_value_of_every_key(task):
    for example in make_examples(task, 'validation', 100):
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
        int(np.flatnonzero(e.weights)[0]) // 2 for e in make_examples(task, 'train', count)
    )
    law = {slot: slot**-0.5 for slot in range(1, 10)}  # the density of a·x^(a−1), a = 1/2
    assert set(slots) == set(law)
    for slot, times in slots.items():
        near(times / count, law[slot] / sum(law.values()), count)


def test_induction_repeats_what_followed_the_mark():
    task = Induction()
    places = set()
    for example in make_examples(task, 'train', 500):
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
    for example in make_examples(task, 'test', 50):
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

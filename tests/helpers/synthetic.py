"""Examples of synthetic tasks, as symbols and as shares."""

import hashlib
import itertools
import math

from transformer_jax.batch import EOS
from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.data.tasks.symbols import FIRST
from transformer_jax.data.tasks.synthetic import SYNTHETIC


def make_examples(task, split, count, seed=0):
    """Make the first `count` examples of a split."""
    return [task.make_example(seed, split, index) for index in range(count)]


def words(task, ids):
    """Return the symbols of token ids; EOS is '.'."""
    names = dict(enumerate(task.symbols(), FIRST)) | {EOS: '.'}
    return [names[int(number)] for number in ids]


def pairs(task, split, count):
    """Yield (source, target) as symbols without EOS, with which both must end."""
    for example in make_examples(task, split, count):
        source, target = (words(task, side) for side in (example.source, example.target))
        assert source.pop() == target.pop() == '.'
        yield source, target


def near(found, expected, count):
    """Assert that a share of `count` samples is within 4 standard deviations of `expected`."""
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / count), (
        found,
        expected,
    )


def digest():
    """Return the SHA-256 of some examples of every task with its defaults."""
    content = hashlib.sha256()
    for cls, split in itertools.product(SYNTHETIC.values(), SPLITS):
        for index in (7, 0, 123):
            for array in cls().make_example(1, split, index):
                content.update(b'none' if array is None else array.tobytes())
    return content.hexdigest()

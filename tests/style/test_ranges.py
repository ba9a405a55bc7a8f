"""Every number of a spec states its range where its field is, and every class checks it."""

import inspect

import pytest
from helpers.specs import numeric_fields, rows

from transformer_jax.ranges import FINITE, Ranged

every_spec = pytest.mark.parametrize('row', rows(), ids=lambda row: row[2].__qualname__)


@every_spec
def test_every_number_has_a_range(row):
    bare = [f.name for f in numeric_fields(row[2]) if f.metadata.get('range', FINITE) == FINITE]
    assert not bare, f'{bare} of {row[1]}: declare them with ranges.number(default, low=…, high=…)'


@every_spec
def test_ranges_are_bounded_on_both_sides(row):
    for field in numeric_fields(row[2]):
        interval = field.metadata['range']
        assert (interval.low is None) != (interval.above is None), field.name
        assert (interval.high is None) != (interval.below is None), field.name


@every_spec
def test_every_class_checks_its_numbers(row):
    assert issubclass(row[2], Ranged)
    for cls in row[2].__mro__[: row[2].__mro__.index(Ranged)]:
        if check := vars(cls).get('__post_init__'):
            first = inspect.getsource(check).splitlines()[1].strip()
            assert first == 'super().__post_init__()', f'{cls.__qualname__}: {first}'

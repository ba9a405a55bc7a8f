"""Numbers that make no sense: refused by name, with their value and their range, in any place.

Each of them was once trained with, or filled the memory.
"""

import dataclasses
import re

import pytest
from helpers.specs import numeric_fields, rows
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.config.resolve import SPECS
from transformer_jax.errors import ConfigError
from transformer_jax.optim.optimizers import Adam
from transformer_jax.ranges import Range, Ranged, RangeError, number

# key, spec, what is said of it
NONSENSE = [
    ('optim.optimizer', 'adam(b1=-3.0, b2=2.0, eps=-1.0)', 'adam.b1=-3.0 is outside 0 ≤ value < 1'),
    ('optim.optimizer', 'adam(b2=1.0)', 'adam.b2=1.0 is outside 0 ≤ value < 1'),
    ('optim.optimizer', 'adam(b2=0.99999999)', 'adam.b2=0.99999999 (1.0 in float32) is outside'),
    ('optim.optimizer', 'adam(eps=0)', 'adam.eps=0.0 is outside 1e-30 ≤ value ≤ 1'),
    ('optim.optimizer', 'adafactor(decay=2)', 'adafactor.decay=2.0 is outside 0 < value ≤ 1'),
    ('optim.optimizer', 'adafactor(clip=0)', 'adafactor.clip=0.0 is outside'),
    ('optim.optimizer', 'muon(steps=0)', 'muon.steps=0 is outside 1 ≤ value ≤ 100'),
    ('optim.optimizer', 'muon(beta=1)', 'muon.beta=1.0 is outside 0 ≤ value < 1'),
    ('optim.optimizer', 'lion(b1=2)', 'lion.b1=2.0 is outside 0 ≤ value < 1'),
    ('optim.schedule', 'linear(warmup=-5)', 'linear.warmup=-5 is outside 0 ≤ value'),
    ('optim.schedule', 'inverse_sqrt(warmup=0)', 'inverse_sqrt.warmup=0 is outside 1 ≤ value'),
    ('optim.schedule', 'noam(warmup=0)', 'noam.warmup=0 is outside 1 ≤ value'),
    ('optim.schedule', 'cosine(end=-1e999)', 'cosine.end=-inf is outside 0 ≤ value ≤ 1'),
    ('model.attention', 'softmax(scale=1e999)', 'softmax.scale=inf is outside 0 < value ≤ 1e6'),
    ('model.attention', 'softmax(scale=1e-50)', 'softmax.scale=1e-50 (0.0 in float32) is outside'),
    ('model.attention', 'softmax(softcap=1e999)', 'softmax.softcap=inf is outside'),
    ('model.attention', 'softmax(mask=window(10000000000))', 'window.size=10000000000 is outside'),
    ('model.attention', 'linear(feature=favor(features=-1))', 'favor.features=-1 is outside'),
    ('model.attention', f'softmax(mask=window({"9" * 400}))', 'window.size=(about 10^400) is out'),
    ('model.attention', f'softmax(softcap={"9" * 400})', 'softmax.softcap=inf is outside'),
    ('model.position', 'rope(theta=1e999)', 'rope.theta=inf is outside'),
    (
        'model.position',
        'rope(scaling=yarn(factor=1e999, original=8))',
        'yarn.factor=inf is outside',
    ),
    ('model.position', 'fire(length=1e999)', 'fire.length=inf is outside'),
    ('model.position', 't5(buckets=2000000000)', 't5.buckets=2000000000 is outside'),
    ('model.norm', 'layer(eps=1e999)', 'layer.eps=inf is outside 1e-30 ≤ value ≤ 1'),
    ('model.ffn', 'moe(z=1e999)', 'moe.z=inf is outside 0 ≤ value'),
    ('model.ffn', 'moe(capacity=1e999)', 'moe.capacity=inf is outside 0 < value'),
    ('data.batching', 'buckets(lengths=(16, 1000000000))', 'buckets.lengths=1000000000 is outside'),
    ('data.batching', 'packed(length=1000000000)', 'packed.length=1000000000 is outside'),
    ('data.task', 'mqar(vocab_size=2147483647)', 'mqar.vocab_size=2147483647 is outside'),
    ('data.task', 'mqar(power_a=1e999)', 'mqar.power_a=inf is outside'),
    ('data.task', 'copy(examples=1000000000000)', 'copy.examples=1000000000000 is outside'),
    ('data.task', 'listops(max_depth=1000000000)', 'listops.max_depth=1000000000 is outside'),
    ('data.task', 'number_words(limit=1000000000000)', 'number_words.limit=1000000000000 is out'),
]
TABLES = {'model.attention': KINDS, **SPECS}


@pytest.mark.parametrize(('key', 'text', 'said'), NONSENSE, ids=[row[1][:40] for row in NONSENSE])
def test_nonsense_is_refused(key, text, said):
    with pytest.raises(ConfigError, match=re.escape(f' is invalid: {said}')) as caught:
        spec.parse(text, TABLES[key], key)
    first, _, mark = str(caught.value).split('\n')
    assert first.startswith(f'{key}=')
    assert mark.strip() == '^'


ALL = [(table, name, field) for table, name, cls in rows() for field in numeric_fields(cls)]


@pytest.mark.parametrize(('table', 'name', 'field'), ALL, ids=[f'{n}.{f.name}' for _, n, f in ALL])
def test_every_number_of_every_spec_is_bounded(table, name, field):
    interval = field.metadata['range']
    required = [
        f'{f.name}=8'
        for f in dataclasses.fields(table[name])
        if f.init and f.default is dataclasses.MISSING and f is not field
    ]
    for value in (-(10**12), 10**30, '1e999', '-1e999'):
        many = isinstance(field.default, tuple)
        given_ = f'{field.name}=({value},)' if many else f'{field.name}={value}'
        with pytest.raises(ConfigError) as caught:
            spec.parse(f'{name}({", ".join([given_, *required])})', table, 'some.key')
        said = str(caught.value).split('\n')[0]
        floats = 'takes int' in said or 'takes tuple of int' in said  # 1e999 is no int at all
        assert floats or (f'{name}.{field.name}=' in said and str(interval) in said)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -1.0, 1.0, 1 - 1e-9])
def test_a_number_is_refused_where_the_class_is_made_by_hand(value):
    with pytest.raises(RangeError, match=r'^b2=') as caught:
        Adam(b2=value)
    assert caught.value.field == 'b2'


@dataclasses.dataclass(frozen=True)
class Bare(Ranged):
    """A class of a user, who states no range."""

    scale: float = 1.0


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e39])
def test_without_a_range_a_number_is_finite(value):
    with pytest.raises(RangeError, match=r'^scale=.* is not finite$'):
        Bare(scale=value)
    assert Bare(scale=-1e38).scale == -1e38


@pytest.mark.parametrize(
    ('interval', 'inside', 'outside', 'text'),
    [
        (Range(low=0, below=1), (0, 0.0, 0.5), (-1e-9, 1.0, 1 - 1e-9, 1), '0 ≤ value < 1'),
        (Range(above=0, high=1), (1e-30, 1.0, 1), (0.0, 1e-46, 1.001), '0 < value ≤ 1'),
        (Range(low=1, high=2000, also=(-1,)), (-1, 1, 2000), (0, -2), '-1 or 1 ≤ value ≤ 2,000'),
        (Range(low=0.1, high=0.1), (0.1,), (0.2,), '0.1 ≤ value ≤ 0.1'),
        (Range(low=1e-30, high=1e6), (1e-30, 1e6), (0.0,), '1e-30 ≤ value ≤ 1e6'),
    ],
)
def test_a_range(interval, inside, outside, text):
    assert str(interval) == text
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in (*outside, float('nan'), float('inf')))


@given(st.floats() | st.integers())
def test_a_range_decides_every_number(value):
    interval = number(0.5, low=0, below=1).metadata['range']
    assert (value in interval) == (not interval.reject('x', value))
    assert value not in interval or 0 <= value < 1

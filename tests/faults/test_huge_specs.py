"""Specs whose text is huge, or says something huge: refused at once, in a few lines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.work import measured_work

from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.attention.masks import MASKS, BigBird
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError

DEEP = 'is nested more than 100 levels deep'
HUGE = {
    'a count of layers': ('1000000000*softmax', 'is a pattern of more than 1,000 layers'),
    'a count with 4,000 digits': (f'{"9" * 4000}*softmax', 'is a pattern of more than 1,000'),
    'several counts': ('999*softmax, 999*softmax', 'is a pattern of more than 1,000 layers'),
    'layers one by one': ('softmax, ' * 1001, 'is a pattern of more than 1,000 layers'),
    '200 kB': ('softmax, ' * 22_000, 'has 197,999 characters, a spec has at most 10,000'),
    '200 kB of a name': ('s' * 200_000, 'has 200,000 characters, a spec has at most 10,000'),
    '5,000 &': (f'softmax(mask={"&".join(["full"] * 5000)})', 'a spec has at most 10,000'),
    '1,500 |': (f'softmax(mask={"|".join(["full"] * 1500)})', DEEP),
    'parentheses': (f'softmax(mask={"(" * 5000}full{")" * 4000})', 'is no spec'),
    'brackets': (f'softmax(gate={"[" * 150}{"]" * 150})', DEEP),
    'calls': ('linear(' * 150 + ')' * 150, DEEP),
    'signs': ('-' * 9000 + '1', DEEP),
    'attributes': ('a.' * 4900 + 'b', DEEP),
    'comparisons': ('a<' * 4900 + 'b', 'is no spec'),
    'an integer': (f'softmax(scale={"9" * 9000})', 'is no spec (Exceeds the limit'),
    'a string': (f'softmax(gate="{"a" * 9000}")', 'it takes none, head, element'),
}


@pytest.mark.parametrize('what', HUGE)
def test_a_huge_spec_is_refused(what):
    text, said = HUGE[what]
    with measured_work() as work, pytest.raises(ConfigError) as caught:
        spec.parse_pattern(text, KINDS, 'model.attention')
    assert work.faults == []
    message = str(caught.value)
    assert said in message
    assert message.startswith('model.attention=')
    assert len(message) < 1000
    assert len(message.split('\n')) == 3


def test_the_mark_stands_below_its_place_in_a_long_text():
    text = ', '.join(['softmax'] * 40 + ['softmx'] + ['softmax'] * 40)
    with pytest.raises(ConfigError) as caught:
        spec.parse_pattern(text, KINDS, 'model.attention')
    _, part, mark = str(caught.value).split('\n')
    assert part[mark.index('^') :].startswith('softmx, ')


@pytest.mark.parametrize('count', [2, 90])
def test_what_is_large_but_sensible_is_read(count):
    (kind,) = spec.parse_pattern(f'softmax(mask={"&".join(["full"] * count)})', KINDS, 'key')
    assert spec.text(kind.mask, MASKS).count('&') == count - 1
    assert len(spec.parse_pattern('999*softmax, linear', KINDS, 'key')) == 1000


def test_random_blocks_that_do_not_exist_cost_nothing():
    """1,000 of them among 3 blocks compiled for two minutes, one comparison each."""
    positions_BT = jnp.arange(12)[None]
    tokens = Tokens(positions_BT, jnp.ones_like(positions_BT))
    many, all_there = (
        BigBird(block=4, window=1, first=1, random=random, length=12) for random in (1000, 1)
    )
    assert len(jax.make_jaxpr(lambda: many.allowed(tokens, tokens))().eqns) < 100
    np.testing.assert_array_equal(many.allowed(tokens, tokens), all_there.allowed(tokens, tokens))

"""Keys of decoding that a command or a call gives take effect, or are refused by name."""

import dataclasses

import pytest
from helpers.support import experiment

from transformer_jax.errors import ConfigError
from transformer_jax.inference.decode_keys import METHOD_OF, with_method
from transformer_jax.inference.trained_run import _usable_here
from transformer_jax.schema import DecodeConfig

# What is given, and the method that results where the run's own is 'sample' or 'greedy'.
GIVEN = [
    ({'beam': 7}, 'beam'),
    ({'beam': 1}, 'beam'),
    ({'length_penalty': 0.0}, 'beam'),
    ({'beam': 4, 'length_penalty': 1.0}, 'beam'),
    ({'temperature': 0.8, 'top_k': 40}, 'sample'),
    ({'top_p': 0.9}, 'sample'),
    ({'method': 'sample', 'temperature': 0.0}, 'sample'),
    ({'method': 'greedy'}, 'greedy'),
    ({'method': 'beam'}, 'beam'),
    ({'max_extra_tokens': 3}, None),
    ({}, None),
]


@pytest.mark.parametrize('own', ['sample', 'greedy', 'beam'])
@pytest.mark.parametrize(('given', 'method'), GIVEN)
def test_a_key_selects_the_method_that_reads_it(given, method, own):
    config = experiment(decode__method=own)
    found = _usable_here(config, given, print).decode
    assert found == dataclasses.replace(config.decode, **{**given, 'method': method or own})


WITHOUT_EFFECT = [
    ({'method': 'sample', 'beam': 7}, "decode.beam=7 has no effect with decode.method='sample'"),
    ({'method': 'greedy', 'beam': 1}, "decode.beam=1 has no effect with decode.method='greedy'"),
    ({'method': 'greedy', 'top_k': 3}, "decode.top_k=3 has no effect with decode.method='greedy'"),
    ({'method': 'beam', 'top_p': 0.5}, "it is a key of the method 'sample'"),
    ({'beam': 4, 'temperature': 0.8}, "decode.temperature=0.8 has no effect with decode.method='b"),
]


@pytest.mark.parametrize(('given', 'message'), WITHOUT_EFFECT)
def test_a_key_that_the_method_does_not_read_is_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        with_method(given)
    assert message in str(caught.value)


def test_every_key_but_method_and_limit_belongs_to_a_method():
    keys = {field.name for field in dataclasses.fields(DecodeConfig)}
    assert keys - {'method', 'max_extra_tokens'} == set(METHOD_OF)

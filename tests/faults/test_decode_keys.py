"""Keys of decoding that a command or a call gives take effect, or are refused by name."""

import dataclasses
import types

import pytest
from helpers.data import everything, load
from helpers.support import experiment

from transformer_jax.errors import ConfigError
from transformer_jax.inference.decode_keys import METHOD_OF, with_method
from transformer_jax.inference.probes import choose_batches
from transformer_jax.inference.requirements import require_decoding
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
    found = _usable_here(config, given, '', print).decode
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


SEEDS = [  # flags of `generate`, what is said of them
    (['--seed=4294967295', '--samples=2'], '--samples=2 counts --seed=4294967295 up: the last one'),
    (['--seed=4294967290', '--samples=7'], '--samples=7 counts --seed=4294967290 up'),
    (['--seed=4294967296'], '--seed=4294967296'),
    (['--seed=-1'], '--seed=-1'),
]


@pytest.mark.parametrize(('flags', 'message'), SEEDS)
def test_no_seed_of_a_sample_wraps(call, flags, message):
    code, output, errors = call('generate', '--workdir=nowhere', *flags)
    assert (code, output, len(errors.splitlines())) == (2, '', 1)
    assert message in errors


@pytest.mark.parametrize('flag', ['--beam=4', '--length_penalty=1'])
def test_lengths_are_scored_without_decoding(call, flag):
    code, output, errors = call('evaluate', '--workdir=nowhere', '--lengths=8', flag)
    assert (code, output) == (2, '')
    assert f'{flag.partition("=")[0]} has no effect on --lengths' in errors


@pytest.mark.parametrize('count', [1, 3, 10**9, 10**12])
def test_no_more_batches_are_probed_than_there_are(tmp_path, count):
    config = experiment(evaluate__batch_tokens=96)
    data, _ = load(config, tmp_path, splits=('train', 'validation'))
    partitioner = types.SimpleNamespace(rows_multiple=1, local_rows=everything, put=lambda b: b)
    taken = choose_batches(
        types.SimpleNamespace(data=data, partitioner=partitioner), 'validation', count
    )
    there = data.evaluation('validation')[0].steps_per_epoch
    assert there > 1
    assert len(taken) == min(count, there)


def test_beams_of_a_model_that_does_not_translate_are_refused():
    trained = types.SimpleNamespace(
        data=types.SimpleNamespace(task=types.SimpleNamespace(translates=False)),
        workdir=types.SimpleNamespace(path='runs/lm'),
        config=experiment(model__kind='decoder_only'),
    )
    with pytest.raises(ConfigError, match=r"decode\.beam=2 has no effect: .* 'decoder_only'"):
        require_decoding(trained, {'beam': 2})
    require_decoding(trained, {})

"""Synthesizer against the equations of Tay et al. (2020) in float64; what its scores depend on."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.reference import (
    double,
    mixed,
    out,
    outputs_and_weights,
    projected,
    rotated,
    softmax_weights,
)
from laws.contract import B, Case, N, T, distance, inputs, site, whole

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.config import resolve_architecture
from transformer_jax.errors import ConfigError
from transformer_jax.schema import ExperimentConfig, ModelConfig

DENSE, RANDOM = 'synthesizer(max_len=24)', 'synthesizer(max_len=24, form="random")'


def mixes(text):
    return text.replace(')', ', mix=True)')


@pytest.mark.parametrize(
    ('text', 'kv_heads', 'name', 'position'),
    [
        (DENSE, 4, 'encoder', 'none'),
        (RANDOM, 2, 'decoder', 'none'),
        (mixes(DENSE), 2, 'decoder', 'rope'),
        (mixes(RANDOM), 1, 'encoder', 'none'),
    ],
)
def test_outputs_and_weights_are_the_papers(text, kv_heads, name, position):
    at = site(Case(text, position, kv_heads), name)
    (x_BTD, tokens, *_), o_BTD, weights_BNTS = outputs_and_weights(at)
    params, positions_BT = double(at.params), tokens.positions_BT
    keys, mix = params['keys'], params['mix']
    if 'mix' in text:
        q_BTNH, k_BSKH = projected(x_BTD, params['queries']['query']), projected(x_BTD, keys['key'])
        if position == 'rope':
            q_BTNH, k_BSKH = rotated(q_BTNH, positions_BT), rotated(k_BSKH, positions_BT)

    def score(b, n, t, s):
        place = positions_BT[b, s]
        if 'random' in text:
            synthesized = mix['matrix'][positions_BT[b, t], place, n]
        else:
            asks = params['queries']
            hidden = np.maximum(
                x_BTD[b, t] @ asks['hidden']['kernel'][:, n] + asks['hidden_bias'][n], 0
            )
            synthesized = mix['kernel'][place, n] @ hidden + mix['bias'][place, n]
        if 'mix' not in text:
            return synthesized
        a, c = np.exp(mix['share'][:, n]) / np.exp(mix['share'][:, n]).sum()
        return a * synthesized + c * q_BTNH[b, t, n] @ k_BSKH[b, s, n * kv_heads // N] / math.sqrt(
            4
        )

    expected = softmax_weights(score, tokens, tokens, name == 'decoder')
    np.testing.assert_allclose(weights_BNTS, expected, atol=2e-6)
    assert distance(o_BTD, out(mixed(expected, projected(x_BTD, keys['value'])), params)) < 2e-6


def test_random_weights_ignore_the_input():
    at = site(Case(RANDOM, kv_heads=2), 'decoder')
    (_, o_BTD, weights_BNTS), (_, other_BTD, other_BNTS) = (
        outputs_and_weights(at, seed) for seed in (1, 2)
    )
    np.testing.assert_array_equal(weights_BNTS, other_BNTS)
    assert distance(o_BTD, other_BTD) > 0.1
    assert not np.array_equal(weights_BNTS[0, 0], weights_BNTS[0, 1])  # Heads differ.


def test_dense_weights_of_a_query_depend_on_no_other_token():
    at, t = site(Case(DENSE), 'encoder'), 6
    bound, tokens = at.module.bind({'params': at.params}), whole(B, T)
    attention_inputs = AttentionInputs(at.mask, tokens, tokens, params=bound.mix())

    def weights(x_BTD):
        return at.kind.weights(
            bound.queries(x_BTD, tokens), bound.keys(x_BTD, tokens), attention_inputs
        )

    others_BTD = inputs(2)
    others_BTD[:, t] = inputs(1)[:, t]
    before, after = weights(inputs(1)), weights(others_BTD)
    np.testing.assert_allclose(before[:, :, t], after[:, :, t], atol=1e-7)
    assert distance(before[:, :, t + 1], after[:, :, t + 1]) > 0.1


def refusal(**changes):
    model = ModelConfig(cross_attention='softmax', **changes)
    with pytest.raises(ConfigError) as error:
        config_lib.replace(ExperimentConfig(), model=model)
    return str(error.value)


def test_what_it_cannot_do_is_refused():
    for position in ('rope', 'shaw', 'cope'):
        said = refusal(attention='synthesizer', position=position)
        assert said.startswith(
            f"model.attention='synthesizer' cannot work with model.position='{position}'"
        )
    assert 'set its mix=True' in refusal(attention='synthesizer', position='rope')
    said = refusal(attention='synthesizer(max_len=100)')
    assert said.startswith("model.attention='synthesizer(max_len=100)' ends before the text")
    with pytest.raises(ConfigError, match='cannot attend to another sequence'):
        config_lib.replace(ExperimentConfig(), model=ModelConfig(cross_attention='synthesizer'))
    for text, why in (
        ('synthesizer(form="sparse")', 'it takes dense, random'),
        ('synthesizer(max_len=0)', 'max_len=0 is outside'),
    ):
        with pytest.raises(ConfigError, match=why):
            spec.parse(text, KINDS, 'attention')


@pytest.mark.parametrize('position', ['rope', 'shaw', 'cope'])
def test_mixed_with_softmax_it_takes_every_position(position):
    model = ModelConfig(
        attention='synthesizer(mix=True)', cross_attention='softmax', position=position
    )
    assert config_lib.replace(ExperimentConfig(), model=model).model == model
    attention = resolve_architecture(model, 10).attention_at('decoder', 0)
    kind, place = attention.kind, attention.position
    assert kind.incompatibility(place, 'auto') == ''
    assert dataclasses.replace(kind, mix=False).incompatibility(place, 'auto')

"""Latent attention (MLA) against the equations of DeepSeek-V2 in float64; its two forms agree."""

import math

import jax
import jax.numpy as jnp
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
from laws.contract import PAST, B, Case, N, T, distance, inputs, site, whole

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.cache import RingCache
from transformer_jax.attention.kinds.latent import Latent, Latents, Queries
from transformer_jax.attention.kinds.softmax import KeysValues, Softmax
from transformer_jax.attention.masks import Window
from transformer_jax.attention.normalizers import Sink
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.positions.base import Position
from transformer_jax.positions.biases import Alibi
from transformer_jax.positions.relative import Shaw


def normed(x_BTR, scale_R):
    return x_BTR / np.sqrt((x_BTR**2).mean(-1, keepdims=True) + 1e-6) * scale_R


@pytest.mark.parametrize(
    ('attention', 'kv_heads', 'name', 'position'),
    [
        ('latent', 2, 'decoder', 'rope'),
        ('latent(rank=6, rope_dim=4, query_rank=3)', 1, 'cross', 'none'),
    ],
)
def test_outputs_and_weights_are_the_papers(attention, kv_heads, name, position):
    at = site(Case(attention, position, kv_heads), name)
    (x_BTD, tokens, x_BSD, key_tokens), o_BTD, weights_BNTS = outputs_and_weights(at)
    params = double(at.params)
    latent_BSR = normed(
        projected(x_BSD, params['keys']['latent'])[:, :, 0], params['keys']['latent_norm']
    )
    k_BSKH = np.einsum('bsr,rkh->bskh', latent_BSR, params['mix']['up_key'])
    v_BSKH = np.einsum('bsr,rkh->bskh', latent_BSR, params['mix']['up_value'])
    asks_BTR = x_BTD
    if 'query_rank' in attention:
        asks_BTR = projected(x_BTD, params['queries']['query_latent'])[:, :, 0]
        asks_BTR = normed(asks_BTR, params['queries']['query_latent_norm'])
    q_BTNH = projected(asks_BTR, params['queries']['query'])
    q_BTNH, rotated_BTNP = q_BTNH[..., :4], q_BTNH[..., 4:]
    rotated_BSP = projected(x_BSD, params['keys']['turned_key'])
    if position == 'rope':
        rotated_BTNP, rotated_BSP = (
            rotated(x, at_.positions_BT)
            for x, at_ in ((rotated_BTNP, tokens), (rotated_BSP, key_tokens))
        )

    def score(b, n, t, s):
        content = q_BTNH[b, t, n] @ k_BSKH[b, s, n * kv_heads // N]
        return (content + rotated_BTNP[b, t, n] @ rotated_BSP[b, s, 0]) / math.sqrt(
            4 + rotated_BSP.shape[-1]
        )

    expected = softmax_weights(score, tokens, key_tokens, name == 'decoder')
    np.testing.assert_allclose(weights_BNTS, expected, atol=1e-6)
    assert distance(o_BTD, out(mixed(expected, v_BSKH), params)) < 1e-6


R, K, H, P = 7, 2, 8, 6


def arrays(length=9):
    """Return (queries, keys, attention inputs) of `length` tokens."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    parameters = {'normalizer': (), 'key_RKH': normal(R, K, H), 'value_RKH': normal(R, K, H)}
    queries = Queries(normal(2, length, N, H), normal(2, length, N, P))
    keys = Latents(normal(2, length, R), normal(2, length, P))
    return (
        queries,
        keys,
        AttentionInputs(PAST, whole(2, length), whole(2, length), params=parameters),
    )


@pytest.mark.parametrize('kind', [Latent(), Latent(softcap=2.0), Latent(normalizer=Sink())])
@pytest.mark.parametrize('position', [Position(), Alibi()])
def test_absorbed_is_expanded(kind, position):
    queries, keys, attention_inputs = arrays()
    sinks_KG11 = jnp.asarray(np.random.default_rng(1).normal(size=(K, N // K, 1, 1)), jnp.float32)
    parameters = attention_inputs.params | {
        'normalizer': sinks_KG11 if kind.normalizer == Sink() else ()
    }
    attention_inputs = attention_inputs.replace(position=position, params=parameters)
    expected_BTNH = kind.attend(queries, keys, attention_inputs)
    assert expected_BTNH.shape == (2, 9, N, H)
    assert distance(kind.absorbed(queries, keys, attention_inputs), expected_BTNH) < 1e-6


def test_absorbed_never_holds_a_key_or_a_value_in_full():
    queries, keys, attention_inputs = arrays()
    full = f'f32[2,9,{K},{H}]'

    def text(form):
        return str(jax.make_jaxpr(lambda *a: form(*a, attention_inputs))(queries, keys))

    assert full in text(Latent().attend)
    assert full not in text(Latent().absorbed)


def test_the_cache_holds_the_latent_and_one_turned_key():
    cache = site(Case('latent', 'rope', 2), 'decoder').init_cache(inputs(0), T)
    assert [leaf.nbytes / (B * T) for leaf in cache.keys] == [
        4 * 16,
        4 * 2,
    ]  # bytes of a token in float32
    kv_BTKH = np.zeros((B, T, N, 4), np.float32)
    whole_cache = Softmax().init_cache(KeysValues(kv_BTKH, kv_BTKH), T, PAST)
    assert sum(leaf.nbytes / (B * T) for leaf in jax.tree.leaves(whole_cache.keys)) == 4 * (
        2 * N * 4
    )


def stepped(kind, queries, keys, attention_inputs, cache):
    """Return o_BTNH of decoding token by token."""
    outputs = []
    for t in range(9):
        one_queries, one_keys, token = (
            jax.tree.map(lambda leaf, t=t: leaf[:, t : t + 1], tree)
            for tree in (queries, keys, attention_inputs.query_tokens)
        )
        o_B1NH, cache = kind.step(
            one_queries,
            one_keys,
            attention_inputs.replace(query_tokens=token, key_tokens=token),
            cache,
        )
        outputs.append(o_B1NH)
    return jnp.concatenate(outputs, axis=1)


def test_with_a_position_that_reads_keys_a_step_expands():
    queries, keys, attention_inputs = arrays()
    rng = np.random.default_rng(2)
    tables = {
        name: jnp.asarray(rng.normal(size=(5, H)), jnp.float32) for name in ('keys', 'values')
    }
    attention_inputs = attention_inputs.replace(position=Shaw(clip=2), position_params=tables)
    o_BTNH = stepped(Latent(), queries, keys, attention_inputs, Latent().init_cache(keys, 9, PAST))
    assert distance(o_BTNH, Latent().attend(queries, keys, attention_inputs)) < 1e-6


def test_a_window_keeps_a_ring_of_latents():
    kind, (queries, keys, attention_inputs) = Latent(mask=Window(4)), arrays()
    attention_inputs = attention_inputs.replace(mask=PAST & kind.mask)
    cache = kind.init_cache(keys, 9, attention_inputs.mask)
    assert isinstance(cache, RingCache)
    assert [leaf.shape for leaf in cache.keys] == [(2, 4, R), (2, 4, P)]
    o_BTNH = stepped(kind, queries, keys, attention_inputs, cache)
    assert distance(o_BTNH, kind.attend(queries, keys, attention_inputs)) < 1e-6


def test_only_the_decoupled_parts_turn():
    at = site(Case('latent', 'rope', 2), 'decoder')
    bound = at.module.bind({'params': at.params})
    x_BTD, here, there = inputs(0), whole(B, T), whole(B, T, start=5)
    for project, others in ((bound.queries, 'q_BTNH'), (bound.keys, 'c_BSR')):
        a, b = project(x_BTD, here), project(x_BTD, there)
        np.testing.assert_array_equal(getattr(a, others), getattr(b, others))
        assert distance(a[1], b[1]) > 0.1


def test_zero_stands_for_the_papers_proportions():
    at = site(Case('latent', 'rope', 2), 'decoder')
    assert at.params['mix']['up_key'].shape == (16, 2, 4)  # rank 4 d_k
    assert at.params['keys']['turned_key']['kernel'].shape[-1] == 2  # d_k / 2
    heads = {d_k: Latent().rotated_dim(HeadDims(1, 1, d_k, d_k)) for d_k in (64, 6, 5)}
    assert heads == {64: 32, 6: 4, 5: 4}


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('latent(rank=-1)', 'rank=-1 is outside'),
        ('latent(query_rank=-2)', 'query_rank=-2 is outside'),
        ('latent(rope_dim=3)', 'rope_dim=3 is odd'),
    ],
)
def test_wrong_widths_are_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        spec.parse(text, KINDS, 'attention')

"""Whole models from a covering array of the attention space.

Every pair of values of any two axes is in some model, where it is allowed.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model
from helpers.covering_array import covering_array

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.attention import KINDS
from transformer_jax.config.resolve import parse_components
from transformer_jax.errors import ConfigError
from transformer_jax.layers.feed_forward import FFNS
from transformer_jax.layers.norms import NORMS, PLACEMENTS
from transformer_jax.partitioning.rules import partition_specs
from transformer_jax.positions import POSITIONS
from transformer_jax.schema import DataConfig, DecodeConfig, ExperimentConfig, ModelConfig
from transformer_jax.training import train_state

V, LENGTH = 12, 12
# The options of the scored kinds are axes of their own, and become arguments of the kind's spec.
ARGUMENTS = ('mask', 'normalizer', 'softcap', 'scale', 'qk_norm', 'talking', 'forget', 'gate')
AXES = {
    'attention': [
        'softmax',
        'additive',
        'differential',
        'latent(rank=8, rope_dim=4)',
        'synthesizer(max_len=16)',
        "synthesizer(form='random', max_len=16)",
        'linear',
        'linear(feature=favor(features=8))',
        'linear(decay=fixed)',
        'linear(decay=gated)',
        'linformer(length=16, rank=4)',
        'reformer',
        'sinkhorn',
    ],
    'position': ['none', *(name for name in POSITIONS if name != 'none')],
    'mask': [
        'full',
        'window(5)',
        'dilated(3, 2)',
        'strided(3)',
        'window(3) | global_tokens(2)',
        'bigbird(2)',
    ],
    'normalizer': ['softmax', 'off_by_one', 'sink', 'sigmoid', 'relu2', 'sparsemax', 'entmax15'],
    'engine': ['dense', 'chunked', 'blocked'],
    'softcap': [0.0, 3.0],
    'scale': ["'rsqrt'", "'none'", 0.7],
    'qk_norm': [False, True],
    'talking': ["'none'", "'before'", "'after'"],
    'forget': [False, True],
    'gate': ["'none'", "'head'", "'element'"],
    'num_kv_heads': [4, 2, 1],
    'norm': list(NORMS),
    'norm_placement': list(PLACEMENTS),
    'ffn': list(FFNS),
    'block': ['sequential', 'parallel'],
    'attention_bias': ['none', 'qkv', 'all'],
}


def experiment(row):
    """Return the experiment of a row of the array.

    A kind that cannot be causal, or cannot attend to another sequence, is in the encoder alone.
    """
    given = {name: row[name] for name in ARGUMENTS if row[name] != AXES[name][0]}
    attention = row['attention']
    if given:
        options = ', '.join(f'{name}={value}' for name, value in given.items())
        attention = (
            f'{attention[:-1]}, {options})'
            if attention.endswith(')')
            else f'{attention}({options})'
        )
    capabilities = spec.parse_pattern(attention, KINDS, 'model.attention')[0].supports()
    sites = {'encoder': 'encoder', 'decoder': 'causal', 'cross': 'cross'}
    chosen = {
        f'{site}_attention': attention for site, need in sites.items() if need in capabilities
    }
    others = {axis: value for axis, value in row.items() if axis not in (*ARGUMENTS, 'attention')}
    model = ModelConfig(
        encoder_layers=1, decoder_layers=1, d_model=16, d_ff=24, num_heads=4, **chosen, **others
    )
    if model.engine == 'blocked':  # The blocked engine cannot run cross-attention.
        model = dataclasses.replace(model, cross_attention='linear')
    return ExperimentConfig(
        model=model,
        data=DataConfig(batching='buckets(lengths=(12,))'),
        decode=DecodeConfig(max_extra_tokens=0),
    )


def allowed(row):
    try:
        config = experiment(row)
        config_lib.replace(config)
    except ConfigError:
        return False
    return True


def rows():
    return covering_array(AXES, allowed)


ROWS = rows()


def label(row):
    return (
        ' '.join(
            str(value).replace(' ', '') for axis, value in row.items() if value != AXES[axis][0]
        )
        or 'plain'
    )


def marked():
    """Each compiles for 10 seconds: one is a fast test, six are slow, the others rare."""
    for number, row in enumerate(ROWS):
        often = pytest.mark.rare if number % 4 else pytest.mark.slow
        yield pytest.param(row, id=label(row), marks=() if number == 5 else often)


@pytest.mark.parametrize('row', list(marked()))
def test_a_model_keeps_what_its_parts_promise(row, make_batch):
    """Gradients are finite, packing changes nothing, nothing looks ahead, decoding is exact."""
    config = experiment(row).model
    model, rng = build_model(config, V), np.random.default_rng(0)
    first, second, third = (
        [tuple(rng.integers(4, V, n).tolist() for n in pair)] for pair in ((5, 4), (6, 7), (12, 12))
    )
    architecture = model.architecture
    packs = all(
        'segments' in architecture.attention_at(*place).kind.supports()
        for place in architecture.sites
    )
    batch = make_batch([first + second if packs else first, first, second, third], LENGTH)
    params = nn.meta.unbox(model.init(jax.random.PRNGKey(0), batch))['params']

    @jax.jit
    def run(batch):
        def loss(params):
            x_BTD = model.apply({'params': params}, batch, method='features')
            return (jnp.square(x_BTD) * batch.weights_BT[..., None]).sum(), x_BTD

        grads, x_BTD = jax.grad(loss, has_aux=True)(params)
        return model.apply({'params': params}, x_BTD, method='logits'), grads

    logits_BTV, grads = run(batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits_BTV, grads)))
    if packs:
        assert_close(logits_BTV[0, :4], logits_BTV[1, :4])
        assert_close(logits_BTV[0, 4:11], logits_BTV[2, :7])

    other_BT = np.where(
        batch.positions_BT >= 2, (batch.inputs_BT - 3) % (V - 4) + 4, batch.inputs_BT
    )
    earlier = (batch.positions_BT < 2) & (batch.segments_BT > 0)
    later_BTV, _ = run(batch._replace(inputs_BT=other_BT))
    assert_close(later_BTV[earlier], logits_BTV[earlier])
    assert np.abs(later_BTV - logits_BTV)[~earlier & (batch.segments_BT > 0)].max() > 1e-4

    @jax.jit
    def decode(inputs_BT, source_BS, source):
        cache, memory = model.apply({'params': params}, source_BS, source, LENGTH, method='start')

        def body(cache, tokens_B):
            logits_BV, cache = model.apply(
                {'params': params}, tokens_B, cache, memory, method='step'
            )
            return cache, logits_BV

        return jnp.moveaxis(jax.lax.scan(body, cache, inputs_BT.T)[1], 0, 1)

    alone = jax.tree.map(lambda a_BT: a_BT[1:], batch)
    decoded_BTV, real = (
        decode(alone.inputs_BT, alone.source_BS, alone.source_tokens),
        alone.segments_BT > 0,
    )
    assert_close(decoded_BTV[real], logits_BTV[1:][real])


def assert_close(found, expected):
    assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize('row', ROWS, ids=label)
def test_a_model_can_be_laid_out_over_devices(row):
    config = experiment(row)
    state = jax.eval_shape(
        lambda: train_state.init_state(parse_components(config), build_model(config.model, V))
    )
    specs = jax.tree.leaves(partition_specs(state, {'data': 1, 'fsdp': 1, 'tensor': 1}).params)
    assert any(any(partition) for partition in specs)


def test_the_array_covers_every_allowed_pair():
    plain = {axis: values[0] for axis, values in AXES.items()}
    covered = {pair for row in ROWS for pair in itertools.combinations(row.items(), 2)}
    order = list(AXES)
    covered = {tuple(sorted(pair, key=lambda item: order.index(item[0]))) for pair in covered}
    for a, b in itertools.combinations(AXES, 2):
        for x, y in itertools.product(AXES[a], AXES[b]):
            assert ((a, x), (b, y)) in covered or not allowed(plain | {a: x, b: y}), (
                f'{a}={x} with {b}={y}'
            )


def test_every_kind_stands_in_the_array():
    assert {row['attention'].partition('(')[0] for row in ROWS} == set(KINDS)

"""Properties of every encoder-decoder: causality, cached decoding, dropout, parameter counts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch
from laws import translation as promises

from transformer_jax.attention import cache as caches

V, LENGTH = 20, 8
VARIANTS = {
    'paper': {},
    'pre': {'norm_placement': 'pre', 'position': 'learned(max_len=8)', 'tie_embeddings': 'none'},
    'grouped': {
        'num_kv_heads': 2,
        'head_dim': 6,
        'value_dim': 3,
        'tie_embeddings': 'decoder',
        'position': 'none',
    },
}
# Settings that cover every placement, block, feed-forward network and norm.
BLOCKS = [
    {
        'norm_placement': 'sandwich',
        'norm': 'rms(offset=True)',
        'ffn': 'geglu',
        'logit_softcap': 5.0,
    },
    {
        'norm_placement': 'deepnorm',
        'norm': 'layer(bias=False)',
        'ffn': 'gelu',
        'attention_bias': 'all',
    },
    {
        'norm_placement': 'pre',
        'block': 'parallel',
        'norm': 'rms',
        'ffn': 'swiglu(equal_parameters=False)',
    },
    {'ffn': 'relu2', 'attention_bias': 'qkv', 'embedding_norm': True, 'embedding_scale': 'none'},
]
LENGTHS = [[(3, 2), (4, 5)], [(8, 8)], [(2, 6)], [(1, 1), (2, 3), (3, 4)]]


def shapes(module):
    """Return the parameters of a module as shapes."""
    return jax.eval_shape(module.init, jax.random.PRNGKey(0), dummy_batch())['params']


class Model:
    """A model, its parameters and its compiled functions, shared by the tests of this file."""

    def __init__(self, config):
        self.module = build_model(config, V)
        self.architecture = self.module.architecture
        leaves, tree = jax.tree.flatten(nn.meta.unbox(shapes(self.module)))
        rng = np.random.default_rng(0)
        # Every element is random, so that no test passes because a bias is 0 or a scale is 1.
        self.params = jax.tree.unflatten(
            tree,
            [
                jnp.asarray(
                    rng.normal(scale=leaf.shape[0] ** -0.5, size=leaf.shape)
                    if leaf.ndim > 1
                    else 1 + 0.2 * rng.normal(size=leaf.shape),
                    jnp.float32,
                )
                for leaf in leaves
            ],
        )

    @functools.cached_property
    def features(self):
        return jax.jit(
            lambda params, batch: self.module.apply({'params': params}, batch, method='features')
        )

    @functools.cached_property
    def dropped(self):
        return jax.jit(
            lambda batch, rate, seed: self.module.apply(
                {'params': self.params},
                batch,
                rate,
                method='features',
                rngs={'dropout': jax.random.PRNGKey(seed)},
            )
        )

    @functools.cached_property
    def scores(self):
        """Return the function from a batch to log-probabilities of all tokens, [B, T, V]."""
        return jax.jit(
            lambda batch: jax.nn.log_softmax(self.module.apply({'params': self.params}, batch))
        )

    @functools.cached_property
    def step(self):
        return jax.jit(
            lambda tokens_R, cache, memory: self.module.apply(
                {'params': self.params}, tokens_R, cache, memory, method='step'
            )
        )

    def cache(self, source_BS, source, length):
        variables = {'params': self.params}
        return self.module.apply(variables, source_BS, source, length, method='start')


@pytest.fixture(scope='module')
def models(tiny):
    return functools.cache(lambda name: Model(tiny(**VARIANTS[name])))


@pytest.fixture(params=VARIANTS)
def model(request, models):
    return models(request.param)


@pytest.fixture
def batch(make_batch, random_rows):
    return make_batch(random_rows(LENGTHS, V), LENGTH)


@pytest.mark.parametrize('name', ['paper', 'pre'])
def test_causality_by_gradient(name, tiny, make_batch, random_rows):
    # Each learned position is an input at one place alone, so the gradient of the features with
    # respect to it shows which places read this one.
    model = Model(tiny(**VARIANTS[name] | {'encoder_layers': 1, 'position': 'learned(max_len=8)'}))
    batch = make_batch(random_rows([[(LENGTH, LENGTH)]], V), LENGTH)
    r_TD = (
        np.random.default_rng(0)
        .normal(size=(LENGTH, model.architecture.d_model))
        .astype(np.float32)
    )

    def outputs_T(table_TD, side):
        params = model.params | {f'{side}_positions': {'positions': table_TD}}
        return (model.features(params, batch)[0] * r_TD).sum(-1)

    jacobian = jax.jit(jax.jacrev(outputs_T), static_argnums=1)
    own = np.abs(jacobian(model.params['target_positions']['positions'], 'target')).sum(-1)
    assert not np.any(np.triu(own, k=1))  # exactly 0 after t
    assert np.all(own[np.tril_indices(LENGTH)] > 1e-6)
    source = np.abs(jacobian(model.params['source_positions']['positions'], 'source')).sum(-1)
    assert np.all(source > 1e-6)


def test_padding_has_no_influence(model, batch):
    promises.padding_has_no_influence(lambda batch: model.features(model.params, batch), batch)


def test_packed_is_separate(model, make_batch, random_rows):
    promises.packed_is_separate(
        model.scores, lambda rows: make_batch(rows, LENGTH), random_rows(LENGTHS, V)
    )


def test_scores_do_not_depend_on_the_batch_or_its_padding(model, make_batch, random_rows):
    pair = random_rows([[(3, 4)]], V)[0]
    others = random_rows([[(2, 5)], [(8, 8)], [(1, 1)]], V, seed=1)
    alone = make_batch([pair], 4)  # source 3 of 4, target 4 of 4
    expected = np.asarray(model.scores(alone))[0]
    for position in (0, 2):
        batch = make_batch([*others[:position], pair, *others[position:]], LENGTH)
        np.testing.assert_allclose(model.scores(batch)[position, :4], expected, atol=1e-5)


def test_cached_decoding_is_teacher_forcing(model, make_batch, random_rows):
    batch = make_batch(random_rows([[(3, 8)], [(8, 8)], [(1, 8)], [(5, 8)]], V), LENGTH)
    expected = model.scores(batch)
    cache, memory = model.cache(batch.source_BS, batch.source_tokens, LENGTH)
    for t in range(LENGTH):
        logits_BV, cache = model.step(batch.inputs_BT[:, t], cache, memory)
        assert logits_BV.dtype == jnp.float32
        np.testing.assert_allclose(
            jax.nn.log_softmax(logits_BV), expected[:, t], atol=1e-5, err_msg=f'step {t}'
        )


@pytest.mark.parametrize(
    'changes', BLOCKS, ids=lambda changes: changes.get('norm_placement', 'post')
)
def test_cached_decoding_is_teacher_forcing_in_every_block(changes, tiny, make_batch, random_rows):
    model = Model(tiny(encoder_layers=1, decoder_layers=1, **changes))
    batch = make_batch(random_rows([[(3, 8)], [(8, 8)]], V), LENGTH)
    expected = model.scores(batch)
    cache, memory = model.cache(batch.source_BS, batch.source_tokens, 2 * LENGTH)
    # Two beams of a sentence share its memory.
    cache = caches.reorder(cache, jnp.zeros((2, 2), jnp.int32))
    for t in range(LENGTH):
        logits_RV, cache = model.step(np.repeat(batch.inputs_BT[:, t], 2), cache, memory)
        np.testing.assert_allclose(
            jax.nn.log_softmax(logits_RV), np.repeat(expected[:, t], 2, 0), atol=1e-5
        )


def test_the_beams_of_a_sentence_share_its_memory_and_change_places(
    models, make_batch, random_rows
):
    model = models('paper')
    batch = make_batch(random_rows([[(3, 8)], [(8, 8)], [(1, 8)], [(5, 8)]], V), LENGTH)
    others = make_batch(random_rows([[(3, 8)], [(8, 8)], [(1, 8)], [(5, 8)]], V, seed=1), LENGTH)
    second = batch._replace(inputs_BT=others.inputs_BT)  # another hypothesis of the same sources
    expected = np.stack([model.scores(batch), model.scores(second)], axis=1)  # B, K, T, V
    cache, memory = model.cache(batch.source_BS, batch.source_tokens, 2 * LENGTH)
    cache = caches.reorder(cache, jnp.zeros((4, 2), jnp.int32))
    inputs = np.stack([batch.inputs_BT, second.inputs_BT], axis=1)
    for t in range(LENGTH):
        if t == 3:  # reorder the beams, differently in each row; one beam is copied
            rows, parents = np.arange(4)[:, None], np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
            cache = caches.reorder(cache, jnp.array(parents))
            expected, inputs = expected[rows, parents], inputs[rows, parents]
        logits_RV, cache = model.step(inputs[:, :, t].reshape(-1), cache, memory)
        np.testing.assert_allclose(
            jax.nn.log_softmax(logits_RV), expected[:, :, t].reshape(8, -1), atol=1e-5
        )


def test_dropout_of_rate_0_is_none_and_the_rate_is_traced(models, batch):
    model = models('paper')
    real = batch.segments_BT > 0
    plain = np.asarray(model.features(model.params, batch))
    np.testing.assert_allclose(
        model.dropped(batch, jnp.float32(0), 0)[real], plain[real], rtol=1e-6, atol=1e-6
    )
    first, again, other = (
        np.asarray(model.dropped(batch, jnp.float32(0.3), seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != plain)
    assert model.dropped._cache_size() == 1


def test_dropout_stands_where_the_paper_has_it(models, batch):
    # Section 5.4: the output of each sublayer, and the sums of embeddings and positions.
    architecture = models('paper').architecture
    jaxpr = str(jax.make_jaxpr(models('paper').dropped)(batch, jnp.float32(0.1), 0))
    sublayers = 2 * architecture.encoder_layers + 3 * architecture.decoder_layers
    assert jaxpr.count('random_bits') == 2 + sublayers


@pytest.mark.parametrize('placement', ['post', 'pre'])
def test_where_the_norm_stands(placement, tiny, batch):
    # With sublayers that return 0, post-norm normalizes the embedding after each of them; pre-norm
    # leaves it unchanged up to the final norm.
    model = Model(tiny(norm_placement=placement))
    params = jax.tree_util.tree_map_with_path(_without_sublayers, model.params)
    x_BTD = params['target_embedding']['table'][batch.inputs_BT] * 4.0
    x_BTD = x_BTD + model.module.bind({'params': params}).target_positions(
        jnp.zeros_like(x_BTD), batch.positions_BT
    )

    def norm(x_BTD, p):
        centered_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
        return (
            centered_BTD / np.sqrt((centered_BTD**2).mean(-1, keepdims=True) + 1e-6) * p['scale']
            + p['bias']
        )

    with jax.numpy_rank_promotion('allow'):
        if placement == 'pre':
            x_BTD = norm(x_BTD, params['decoder_norm'])
        else:
            for layer in range(model.architecture.decoder_layers):
                for site in ('attention', 'cross', 'ffn'):
                    x_BTD = norm(x_BTD, params[f'decoder_{layer}'][f'{site}_connection']['norm'])
    np.testing.assert_allclose(model.features(params, batch), x_BTD, atol=1e-5)


def _without_sublayers(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    return leaf * ('.out.' not in name and '.ffn.out_' not in name)


@pytest.mark.parametrize(
    ('tie', 'placement', 'heads', 'position'),
    [
        ('all', 'post', {}, 'sinusoidal'),
        ('decoder', 'pre', {}, 'sinusoidal'),
        ('inputs', 'pre', {}, 'sinusoidal'),
        ('none', 'post', {'head_dim': 3, 'value_dim': 5, 'num_kv_heads': 2}, 'sinusoidal'),
        ('all', 'pre', {'head_dim': 3, 'value_dim': 5, 'num_kv_heads': 2}, 'learned(max_len=30)'),
    ],
)
def test_parameters_are_counted_by_hand(tie, placement, heads, position, tiny):
    config = tiny(tie_embeddings=tie, norm_placement=placement, position=position, **heads)
    D, F, N = config.d_model, config.d_ff, config.num_heads
    d_k, d_v, K = (3, 5, 2) if heads else (D // N, D // N, N)
    attention = D * N * d_k + D * K * d_k + D * K * d_v + N * d_v * D
    ffn = D * F + F + F * D + D
    norm = 2 * D
    layers = 2 * (attention + ffn + 2 * norm) + 2 * (2 * attention + ffn + 3 * norm)
    tables = {'all': 1, 'decoder': 2, 'inputs': 2, 'none': 3}[tie] * V * D
    tables += 2 * 30 * D if 'learned' in position else 0
    total = layers + tables + (2 * norm if placement == 'pre' else 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(build_model(config, V)))) == total


@pytest.mark.parametrize(
    ('changes', 'norms', 'norm_size', 'matrices'),
    [
        # 21 hidden units are ⅔ of 32.
        (
            {'norm_placement': 'sandwich', 'norm': 'rms', 'ffn': 'swiglu'},
            4 + 6 + 2,
            16,
            3 * 16 * 21,
        ),
        (
            {
                'norm_placement': 'pre',
                'block': 'parallel',
                'norm': 'layer(bias=False)',
                'ffn': 'relu2(bias=False)',
            },
            1 + 1 + 2,
            16,
            2 * 16 * 32,
        ),
        (
            {'embedding_norm': True, 'ffn': 'geglu(equal_parameters=False)'},
            2 + 3 + 2,
            32,
            3 * 16 * 32,
        ),
    ],
)
def test_parameters_of_blocks_are_counted_by_hand(changes, norms, norm_size, matrices, tiny):
    module = build_model(tiny(encoder_layers=1, decoder_layers=1, **changes), V)
    total = V * 16 + 3 * 4 * 16 * 16 + 2 * matrices + norms * norm_size
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module))) == total


def test_the_base_model_has_the_papers_size(tiny):
    # Table 3 says 65 million, with a shared vocabulary of about 37,000.
    config = tiny(encoder_layers=6, decoder_layers=6, d_model=512, d_ff=2048, num_heads=8)
    module = build_model(config, 37_000)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(module))) == pytest.approx(
        65e6, rel=0.05
    )


def test_bfloat16_computes_in_half_and_scores_in_single_precision(tiny, models, batch):
    model, single = Model(tiny(dtype='bfloat16')), models('paper')
    assert model.features(model.params, batch).dtype == jnp.bfloat16
    scores = model.scores(batch)
    assert scores.dtype == jnp.float32
    real = batch.segments_BT > 0
    np.testing.assert_allclose(scores[real], single.scores(batch)[real], atol=0.15)


def test_attention_weights_are_sown_for_pictures(models, batch):
    model = models('paper')
    _, sown = model.module.apply(
        {'params': model.params}, batch, method='features', mutable='intermediates'
    )
    weights = sown['intermediates']['decoder_1']['cross']['weights_BNTS'][0]
    assert weights.shape == (len(LENGTHS), 4, LENGTH, LENGTH)
    real = (batch.segments_BT > 0)[:, None]
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(real, weights.shape[:3]), atol=1e-5)

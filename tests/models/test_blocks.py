"""Residual paths, blocks and switches of the architecture, against formulas in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax import config as config_lib
from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.norms import PLACEMENTS, deepnorm
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models.blocks import Block, Connection
from transformer_jax.models.multi_head import PAST
from transformer_jax.positions import sinusoids
from transformer_jax.schema import ExperimentConfig, ModelConfig

B, T, S, D = 2, 3, 4, 16


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomize(variables):
    """Replace every element by a random one, so that no test passes because a bias is 0."""
    leaves, tree = jax.tree.flatten(nn.meta.unbox(variables)['params'])
    return jax.tree.unflatten(
        tree,
        [0.5 * normal(*leaf.shape, seed=i) + (leaf.ndim == 1) for i, leaf in enumerate(leaves)],
    )


def tokens(length):
    return Tokens(
        np.tile(np.arange(length, dtype=np.int32), (B, 1)), np.ones((B, length), np.int32)
    )


def layer_norm(x_BTD, p):
    x_BTD = np.asarray(x_BTD, np.float64)
    centered_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
    return (
        centered_BTD / np.sqrt((centered_BTD**2).mean(-1, keepdims=True) + 1e-6) * p['scale']
        + p['bias']
    )


# --- The residual path ----------------------------------------------------------------------------

FORMULAS = {
    'post': lambda x, s, n, inner: n(x + s(x)),
    'pre': lambda x, s, n, inner: x + s(n(x)),
    'sandwich': lambda x, s, n, inner: x + inner(s(n(x))),
    'deepnorm': lambda x, s, n, inner: n(1.8612097182041991 * x + s(x)),  # 12^¼: 4 decoder layers
}


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_placements_are_their_formulas(placement, architecture):
    x_BTD = normal(B, T, D)
    module = Connection(architecture(norm_placement=placement, decoder_layers=4), 'decoder')
    params = randomize(module.init(jax.random.PRNGKey(0), x_BTD, jnp.sin, None))
    found = module.apply({'params': params}, x_BTD, jnp.sin, None)
    expected = FORMULAS[placement](
        x_BTD,
        np.sin,
        lambda x: layer_norm(x, params['norm']),
        lambda x: layer_norm(x, params['inner_norm']),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_dropout_acts_on_what_is_added(placement, architecture):
    # At a rate near 1 the whole output of the sublayer is dropped, and only x remains.
    x_BTD, rate = normal(B, T, D), jnp.float32(0.9999)
    module = Connection(architecture(norm_placement=placement), 'encoder')
    params = randomize(module.init(jax.random.PRNGKey(0), x_BTD, jnp.sin, None))
    found = module.apply(
        {'params': params}, x_BTD, jnp.sin, rate, rngs={'dropout': jax.random.PRNGKey(0)}
    )
    expected = FORMULAS[placement](
        x_BTD, lambda x: 0, lambda x: layer_norm(x, params['norm']), lambda x: 0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('stack', 'layers', 'alpha', 'beta'),
    [
        ('encoder', (6, 4), 0.81 * (6**4 * 4) ** (1 / 16), 0.87 * (6**4 * 4) ** (-1 / 16)),
        ('decoder', (6, 4), (3 * 4) ** (1 / 4), (12 * 4) ** (-1 / 4)),
        ('encoder', (6, 0), (2 * 6) ** (1 / 4), (8 * 6) ** (-1 / 4)),
        ('decoder', (0, 4), (2 * 4) ** (1 / 4), (8 * 4) ** (-1 / 4)),
    ],
)
def test_deepnorms_constants_are_those_of_the_papers_table(stack, layers, alpha, beta):
    assert deepnorm(stack, *layers) == pytest.approx((alpha, beta), rel=1e-9)


@pytest.mark.parametrize(
    ('attention', 'values'), [('softmax', 'value.kernel'), ('latent', 'up_value')]
)
def test_deepnorm_scales_the_initial_feed_forward_values_and_output(
    attention, values, architecture
):
    def initial(placement):
        """Return the initial arrays by name: {'encoder.ffn.in_kernel': array, …}."""
        config = architecture(
            norm_placement=placement,
            encoder_layers=3,
            decoder_layers=1,
            ffn='swiglu',
            attention=attention,
        )
        x_BTD, side, rng = normal(B, T, D), tokens(T), jax.random.PRNGKey(0)
        blocks = {
            'encoder': Block(config, 'encoder', 0).init(rng, x_BTD, side, None),
            'decoder': Block(config, 'decoder', 0, crosses=True).init(
                rng, x_BTD, side, None, (x_BTD, side)
            ),
        }
        leaves = jax.tree_util.tree_leaves_with_path(
            {name: nn.meta.unbox(v)['params'] for name, v in blocks.items()}
        )
        return {
            jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves
        }

    post, deep = initial('post'), initial('deepnorm')
    scaled = {path for path in post if '.ffn.' in path or path.endswith((values, 'out.kernel'))}
    # A gated network has 3 kernels; each attention has 2, of values and output.
    assert len(scaled) == (3 + 2) + (3 + 2 + 2)
    betas = {'encoder': 0.87 * (3**4 * 1) ** (-1 / 16), 'decoder': 12**-0.25}
    for path, leaf in post.items():
        beta = betas[path.partition('.')[0]] if path in scaled else 1
        np.testing.assert_allclose(deep[path], beta * leaf, rtol=1e-6, err_msg=path)


# --- Blocks ---------------------------------------------------------------------------------------


def test_a_parallel_encoder_block_adds_both_branches(architecture):
    x_BSD, side = normal(B, S, D), tokens(S)
    module = Block(architecture(norm_placement='pre', block='parallel'), 'encoder', 0)
    params = randomize(module.init(jax.random.PRNGKey(0), x_BSD, side, None))
    assert set(params) == {'attention', 'attention_connection', 'ffn'}
    block = module.bind({'params': params})
    y_BSD = layer_norm(x_BSD, params['attention_connection']['norm']).astype(np.float32)
    attended_BSD = block.attention(
        y_BSD, block.attention.keys(y_BSD, side), AttentionInputs(Segments(), side, side), None
    )
    np.testing.assert_allclose(
        block(x_BSD, side, None), x_BSD + attended_BSD + block.ffn(y_BSD), rtol=1e-5, atol=1e-4
    )


def test_a_parallel_decoder_block_adds_all_three_branches(architecture):
    x_BTD, memory_BSD, target, source = (
        normal(B, T, D),
        normal(B, S, D, seed=1),
        tokens(T),
        tokens(S),
    )
    module = Block(architecture(norm_placement='pre', block='parallel'), 'decoder', 0, crosses=True)
    params = randomize(
        module.init(jax.random.PRNGKey(0), x_BTD, target, None, (memory_BSD, source))
    )
    assert set(params) == {'attention', 'attention_connection', 'cross', 'ffn'}
    block = module.bind({'params': params})
    y_BTD = layer_norm(x_BTD, params['attention_connection']['norm']).astype(np.float32)
    own_BTD = block.attention(
        y_BTD, block.attention.keys(y_BTD, target), AttentionInputs(PAST, target, target), None
    )
    cross_BTD = block.cross(
        y_BTD,
        block.cross.keys(memory_BSD, source),
        AttentionInputs(Segments(), target, source),
        None,
    )
    np.testing.assert_allclose(
        block(x_BTD, target, None, (memory_BSD, source)),
        x_BTD + own_BTD + cross_BTD + block.ffn(y_BTD),
        rtol=1e-5,
        atol=1e-4,
    )


def test_branches_of_a_parallel_block_drop_apart(tiny):
    config = tiny(norm_placement='pre', block='parallel', encoder_layers=1, decoder_layers=1)
    module = build_model(config, 10)
    params = jax.eval_shape(module.init, jax.random.PRNGKey(0), dummy_batch())['params']
    jaxpr = str(
        jax.make_jaxpr(
            lambda params, rng: module.apply(
                {'params': params},
                dummy_batch(),
                jnp.float32(0.1),
                method='features',
                rngs={'dropout': rng},
            )
        )(nn.meta.unbox(params), jax.random.PRNGKey(0))
    )
    assert jaxpr.count('random_bits') == 2 + 2 + 3  # embeddings, encoder, decoder


# --- Switches -------------------------------------------------------------------------------------


@pytest.mark.parametrize('bias', ['qkv', 'all'])
def test_biases_of_projections_start_at_zero(bias, architecture):
    x_BSD, side, heads = (
        normal(B, S, D),
        tokens(S),
        {'num_kv_heads': 2, 'head_dim': 6, 'value_dim': 3},
    )
    module, plain = (
        Block(architecture(attention_bias=choice, **heads), 'encoder', 0)
        for choice in (bias, 'none')
    )
    variables, without = (
        nn.meta.unbox(m.init(jax.random.PRNGKey(0), x_BSD, side, None)) for m in (module, plain)
    )
    shapes, plain_shapes = (
        {
            jax.tree_util.keystr(path, simple=True, separator='.'): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(v['params']['attention'])
        }
        for v in (variables, without)
    )
    added = {
        'queries.query.bias': (4, 6),
        'keys.key.bias': (2, 6),
        'keys.value.bias': (2, 3),
        'out.bias': (D,),
    }
    if bias == 'qkv':
        del added['out.bias']
    assert shapes == plain_shapes | added
    np.testing.assert_array_equal(
        module.apply(variables, x_BSD, side, None), plain.apply(without, x_BSD, side, None)
    )


@pytest.mark.parametrize(('scale', 'factor', 'norm'), [('sqrt', 4, True), ('none', 1, False)])
def test_what_the_first_block_reads(scale, factor, norm, tiny):
    config = tiny(
        embedding_scale=scale,
        embedding_norm=norm,
        encoder_layers=1,
        decoder_layers=1,
        tie_embeddings='none',
    )
    module, batch, read = build_model(config, 10), dummy_batch(B, T), {}
    params = randomize(jax.eval_shape(module.init, jax.random.PRNGKey(0), batch))

    def record(call, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == '__call__':
            read[context.module.name] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        module.apply({'params': params}, batch)
    positions_BTD = sinusoids(batch.positions_BT, D)
    for side, block in (('source', 'encoder_0'), ('target', 'decoder_0')):
        x_BTD = params[f'{side}_embedding']['table'][batch.source_BS] * factor + positions_BTD
        np.testing.assert_allclose(
            read[block],
            layer_norm(x_BTD, params[f'{side}_norm']) if norm else x_BTD,
            rtol=1e-4,
            atol=1e-4,
        )


def test_capped_logits_and_their_loss(tiny):
    config = tiny(logit_softcap=1.5, encoder_layers=1, decoder_layers=1)
    module, batch = build_model(config, 10), dummy_batch(B, T)
    params = randomize(jax.eval_shape(module.init, jax.random.PRNGKey(0), batch))
    x_BTD = np.asarray(module.apply({'params': params}, batch, method='features'), np.float64)
    raw_BTV = x_BTD @ params['target_embedding']['table'].T
    assert abs(raw_BTV).max() > 1.5
    capped_BTV = 1.5 * np.tanh(raw_BTV / 1.5)
    np.testing.assert_allclose(
        module.apply({'params': params}, batch), capped_BTV, rtol=1e-4, atol=1e-5
    )
    logp_BTV = capped_BTV - np.log(np.exp(capped_BTV).sum(-1, keepdims=True))
    sums, _ = loss_sums(module, params, batch, 0.0)
    # Every target of a dummy batch is token 1.
    assert float(sums.nll) == pytest.approx(-logp_BTV[..., 1].sum(), rel=1e-4)


# --- What cannot run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'norm_placement': 'sandwhich'},
            r"^model\.norm_placement='sandwhich': did you mean 'sandwich'\?",
        ),
        ({'block': 'paralel'}, r"^model\.block='paralel': did you mean 'parallel'\?"),
        (
            {'block': 'parallel'},
            r"^model\.block='parallel' .*norm_placement='post'.*set model\.norm_placement='pre'",
        ),
        ({'block': 'parallel', 'norm_placement': 'sandwich'}, r"model\.norm_placement='sandwich'"),
        ({'logit_softcap': -1.0}, r'^model\.logit_softcap=-1\.0 is outside 0 ≤ value'),
        ({'ffn': 'geglu(width=3)'}, r"gives geglu an unknown argument 'width'"),
        ({'norm': 'rmsnorm'}, r"^model\.norm='rmsnorm' names the unknown 'rmsnorm'"),
        ({'norm': 'rms(eps=0)'}, r'^model\.norm=.*eps=0.0 is outside 1e-30 ≤ value'),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.replace(ExperimentConfig(), model=ModelConfig(**changes))

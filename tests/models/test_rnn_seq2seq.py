"""The recurrent baselines: cells and attention against loops over the equations, and the
properties of every model.
"""

import functools
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import support
from helpers.build import build_model, dummy_batch
from laws import translation as promises

from transformer_jax.attention import cache as caches
from transformer_jax.batch import EOS, Tokens
from transformer_jax.config import from_config_dict, from_dict, resolve, to_dict
from transformer_jax.errors import ConfigError
from transformer_jax.inference import attention_maps
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.layers.recurrent import RNNS, Weights, recur
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models.rnn_decoder import Memory, align, last_outputs
from transformer_jax.models.rnn_layers import Layer
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.rules import partition_specs
from transformer_jax.schema import MeshConfig
from transformer_jax.training.train import train

V, LENGTH, D = 20, 8, 8
ONE = {'encoder_layers': 1, 'decoder_layers': 1}
VARIANTS = {
    'additive': {'rnn': 'lstm', 'encoder_layers': 2, 'decoder_layers': 2},
    'none': {'rnn': "gru(attention='none')", 'tie_embeddings': 'decoder'} | ONE,
    'fed': {
        'rnn': "gru(attention='multiplicative', input_feeding=True)",
        'tie_embeddings': 'none',
        'encoder_layers': 1,
        'decoder_layers': 2,
    },
    'one way': {'rnn': "lstm(attention='multiplicative', bidirectional=False)"} | ONE,
    'fed one way': {'rnn': 'lstm(bidirectional=False, input_feeding=True)'} | ONE,
}
LENGTHS = [[(3, 2), (4, 5)], [(8, 8)], [(2, 6)], [(1, 1), (2, 3), (3, 4)]]
ALONE = [[(3, 8)], [(8, 8)], [(1, 8)], [(5, 8)]]


class Model:
    """A model, parameters of which every element is random, and its compiled functions."""

    def __init__(self, config):
        self.module = build_model(config, V)
        self.architecture = self.module.architecture
        self.boxed = jax.eval_shape(self.module.init, jax.random.PRNGKey(0), dummy_batch())[
            'params'
        ]
        leaves, tree = jax.tree.flatten(nn.meta.unbox(self.boxed))
        rng = np.random.default_rng(0)
        self.params = tree.unflatten(
            [jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), jnp.float32) for leaf in leaves]
        )

    @functools.cached_property
    def scores(self):
        """Return the function from a batch to log-probabilities of all tokens, [B, T, V]."""
        return jax.jit(
            lambda batch: jax.nn.log_softmax(self.module.apply({'params': self.params}, batch))
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
    def start(self):
        return jax.jit(
            lambda source_BS, source: self.module.apply(
                {'params': self.params}, source_BS, source, LENGTH, method='start'
            )
        )

    @functools.cached_property
    def step(self):
        return jax.jit(
            lambda tokens_R, cache, memory: self.module.apply(
                {'params': self.params}, tokens_R, cache, memory, method='step'
            )
        )


@pytest.fixture(scope='module')
def models(tiny):
    return functools.cache(
        lambda name: Model(tiny(kind='rnn_seq2seq', d_model=D, **VARIANTS[name]))
    )


@pytest.fixture(params=VARIANTS)
def model(request, models):
    return models(request.param)


@pytest.fixture
def batch(make_batch, random_rows):
    return make_batch(random_rows(LENGTHS, V), LENGTH)


# --- The equations --------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x_D, state, w):
    """Compute one step of an LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""
    h, c = state
    i, f, g, o = (
        w.input_IZD[:, z].T @ x_D + w.recurrent_DZD[:, z].T @ h + w.bias_4D[z] for z in range(4)
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(x_D, state, w):
    """Compute one step of a GRU; z keeps the old state (Cho et al. 2014, equation 7)."""
    (h,) = state
    from_x = [w.input_IZD[:, z].T @ x_D + w.bias_4D[z] for z in range(3)]
    from_h = [w.recurrent_DZD[:, z].T @ h for z in range(3)]
    reset, keep = (sigmoid(from_x[z] + from_h[z]) for z in range(2))
    new = np.tanh(from_x[2] + reset * (from_h[2] + w.bias_4D[3]))
    return (keep * h + (1 - keep) * new,)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(('name', 'equations'), [('lstm', lstm), ('gru', gru)])
def test_a_layer_is_a_loop_over_the_equations(name, equations, reverse):
    cell, rng = RNNS[name](), np.random.default_rng(0)
    x_BTI, initial_BTD = rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 7, D))
    weights = Weights(
        *(rng.normal(size=shape) for shape in ((3, cell.gates, D), (D, cell.gates, D), (4, D)))
    )
    segments_BT = np.array([[1, 1, 1, 2, 2, 0, 0], [0, 1, 2, 2, 2, 2, 2]])
    found = recur(
        cell,
        Weights(*(jnp.asarray(a, jnp.float32) for a in weights)),
        jnp.asarray(x_BTI, jnp.float32),
        jnp.asarray(segments_BT),
        jnp.asarray(initial_BTD, jnp.float32),
        reverse,
    )
    for b, segment in ((0, 1), (0, 2), (1, 1), (1, 2)):
        times = np.flatnonzero(segments_BT[b] == segment)[:: -1 if reverse else 1]
        state = cell.states * (initial_BTD[b, times[0]],)
        for t in times:
            state = equations(x_BTI[b, t], state, weights)
            np.testing.assert_allclose(found[b, t], state[0], atol=1e-5)


def test_an_lstm_forgets_little_at_first_and_gates_start_orthogonal():
    layer = nn.meta.unbox(Layer(RNNS['lstm'](), D).init(jax.random.PRNGKey(0), 2 * D))['params']
    np.testing.assert_array_equal(layer['bias'], [[row == 1] * D for row in range(4)])  # i, f, g, o
    u_DZD = layer['recurrent_kernel']
    for gate in range(4):
        np.testing.assert_allclose(u_DZD[:, gate].T @ u_DZD[:, gate], np.eye(D), atol=1e-5)
    # Glorot's variance of the matrix of each gate, 2 / (fan in + fan out), with 2 D inputs and D
    # units.
    assert np.var(layer['input_kernel']) == pytest.approx(2 / (3 * D), rel=0.2)


@pytest.mark.parametrize('score', ['additive', 'multiplicative'])
def test_attention_is_a_loop_over_the_equations(score):
    T, S, E = 3, 6, 5
    rng = np.random.default_rng(0)
    h, m = rng.normal(size=(2, T, D)), rng.normal(size=(2, S, E))
    shapes = {'key_ED': (E, D), 'out_CD': (E + D, D)} | (
        {'query_ID': (D, D), 'query_bias_D': (D,), 'score_D': (D,)} if score == 'additive' else {}
    )
    p = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    allowed = np.array(
        [[[1, 1, 0, 0, 0, 0]] * T, [[0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1], [0] * 6]]
    ).astype(bool)
    single = functools.partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float32))
    found, weights = align(
        single(p), single(h), Memory(single(m), single(m @ p['key_ED']), None), jnp.array(allowed)
    )
    for b, t in np.ndindex(2, T):
        seen = np.flatnonzero(allowed[b, t])
        if score == 'additive':
            scores = [
                p['score_D']
                @ np.tanh(p['query_ID'].T @ h[b, t] + p['key_ED'].T @ m[b, s] + p['query_bias_D'])
                for s in seen
            ]
        else:
            scores = [h[b, t] @ p['key_ED'].T @ m[b, s] for s in seen]
        alpha = np.zeros(S)
        alpha[seen] = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights[b, t], alpha, atol=1e-5)
        joined = np.concatenate([sum(alpha[s] * m[b, s] for s in range(S)), h[b, t]])
        np.testing.assert_allclose(found[b, t], np.tanh(p['out_CD'].T @ joined), atol=1e-5)


def test_the_decoder_starts_from_the_ends_of_its_own_source_segment():
    memory_BSE = jnp.arange(2 * 6 * 2.0).reshape(2, 6, 2)  # forward even, backward odd
    source = Tokens(None, jnp.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 0, 0, 0]]))
    target = Tokens(None, jnp.array([[1, 2, 2, 0], [3, 2, 1, 0]]))
    both = last_outputs(memory_BSE, source, target, True)
    np.testing.assert_array_equal(
        both, [[[4, 1], [8, 7], [8, 7], [0, 0]], [[0, 0], [16, 15], [12, 13], [0, 0]]]
    )
    one = last_outputs(memory_BSE, source, target, False)
    np.testing.assert_array_equal(
        one, [[[4, 5], [8, 9], [8, 9], [0, 0]], [[0, 0], [16, 17], [12, 13], [0, 0]]]
    )


# --- Properties of every model --------------------------------------------------------------------


def test_packed_is_separate(model, make_batch, random_rows):
    promises.packed_is_separate(
        model.scores, lambda rows: make_batch(rows, LENGTH), random_rows(LENGTHS, V)
    )


def test_padding_has_no_influence(model, batch):
    promises.padding_has_no_influence(model.scores, batch)


def test_the_past_and_the_whole_source_are_seen_and_the_future_is_not(
    model, make_batch, random_rows
):
    [[(source, target)]] = random_rows([[(LENGTH, LENGTH)]], V)

    def other(tokens, place):
        return [*tokens[:place], 4 + (tokens[place] - 3) % (V - 4), *tokens[place + 1 :]]

    rows = [
        (source, target),
        (other(source, 0), target),
        (other(source, LENGTH - 1), target),
        (source, other(target, 3)),  # target 3 is the input at time 4
    ]
    found = np.asarray(model.scores(make_batch([[row] for row in rows], LENGTH)))
    changed = np.abs(found - found[:1]).max(-1)
    assert (changed[1:3] > 1e-5).all()
    assert not changed[3, :4].any()
    assert (changed[3, 4:] > 1e-5).all()


def test_cached_decoding_is_teacher_forcing_and_beams_share_a_memory(
    model, make_batch, random_rows
):
    batch = make_batch(random_rows(ALONE, V), LENGTH)
    second = batch._replace(inputs_BT=make_batch(random_rows(ALONE, V, seed=1), LENGTH).inputs_BT)
    expected = np.stack([model.scores(batch), model.scores(second)], axis=1)  # B, beams, T, V
    inputs = np.stack([batch.inputs_BT, second.inputs_BT], axis=1)
    cache, memory = model.start(batch.source_BS, batch.source_tokens)
    cache = caches.reorder(cache, jnp.zeros((4, 2), jnp.int32))
    for t in range(LENGTH):
        if t == 4:  # swap the beams of each sentence
            cache = caches.reorder(cache, jnp.tile(jnp.array([[1, 0]]), (4, 1)))
            expected, inputs = expected[:, ::-1], inputs[:, ::-1]
        logits_RV, cache = model.step(inputs[:, :, t].reshape(-1), cache, memory)
        assert logits_RV.dtype == jnp.float32
        np.testing.assert_allclose(
            jax.nn.log_softmax(logits_RV), expected[:, :, t].reshape(8, V), atol=1e-5
        )


def test_gradients_are_finite_and_reach_every_parameter(models, batch):
    model = models('fed')
    grads = jax.jit(jax.grad(lambda params: loss_sums(model.module, params, batch, 0.1)[0].loss))(
        model.params
    )
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.any(grad), path


@pytest.mark.slow
@pytest.mark.parametrize('name', ['additive', 'fed'])
def test_dropout_acts_on_what_layers_read_and_its_rate_is_traced(name, models, batch):
    model = models(name)
    real = batch.segments_BT > 0
    plain = np.asarray(model.scores(batch))
    undropped = model.module.apply(
        {'params': model.params}, model.dropped(batch, jnp.float32(0), 0), method='logits'
    )
    np.testing.assert_allclose(jax.nn.log_softmax(undropped)[real], plain[real], atol=1e-5)
    first, again, other = (
        np.asarray(model.dropped(batch, jnp.float32(0.3), seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert model.dropped._cache_size() == 1
    jaxpr = str(jax.make_jaxpr(model.dropped)(batch, jnp.float32(0.1), 0))
    assert (
        jaxpr.count('random_bits')
        == model.architecture.encoder_layers + model.architecture.decoder_layers + 1
    )


@pytest.mark.slow
def test_bfloat16_keeps_the_state_in_single_precision(tiny, models, batch):
    model = Model(tiny(kind='rnn_seq2seq', d_model=D, dtype='bfloat16', **VARIANTS['fed']))
    assert jax.eval_shape(model.dropped, batch, 0.0, 0).dtype == jnp.bfloat16
    cache, _ = jax.eval_shape(model.start, batch.source_BS, batch.source_tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype('float32')}
    real = batch.segments_BT > 0
    np.testing.assert_allclose(
        model.scores(batch)[real], models('fed').scores(batch)[real], atol=0.3
    )


def layer(inputs, gates):
    """Count the parameters of a layer in one direction."""
    return inputs * gates * D + D * gates * D + 4 * D


# The terms: tables, encoder, decoder, bridge to the first state; keys and output of attention; the
# query of the additive score or the kernel of input feeding.
@pytest.mark.parametrize(
    ('name', 'by_hand'),
    [
        (
            'additive',
            V * D
            + 2 * layer(D, 4)
            + 2 * layer(2 * D, 4)
            + 2 * layer(D, 4)
            + 2 * D * D
            + D
            + 2 * D * D
            + 3 * D * D
            + D * D
            + 2 * D,
        ),
        ('none', 2 * V * D + 2 * layer(D, 3) + layer(D, 3) + 2 * D * D + D),
        (
            'fed',
            3 * V * D
            + 2 * layer(D, 3)
            + 2 * layer(D, 3)
            + 2 * D * D
            + D
            + 2 * D * D
            + 3 * D * D
            + 3 * D * D,
        ),
        ('one way', V * D + layer(D, 4) + layer(D, 4) + D * D + D + D * D + 2 * D * D),
    ],
)
def test_parameters_are_counted_by_hand(name, by_hand, models):
    assert sum(leaf.size for leaf in jax.tree.leaves(models(name).params)) == by_hand


def test_parameters_are_cut_over_a_mesh(models):
    model = models('fed')
    specs = partition_specs(model.boxed, mesh_sizes(MeshConfig(data=1, fsdp=2, tensor=2), 4))
    assert tuple(specs['decoder_1']['recurrent_kernel']) == ('fsdp', None, 'tensor')


# --- Pictures, configuration, training ------------------------------------------------------------


def test_the_alignment_is_drawn(models):
    model, source, target = models('fed'), [5, 6, 7, EOS], [9, 10, EOS]
    weights = attention_maps.attention_weights(model.module, model.params, source, target)
    assert {stack: w.shape for stack, w in weights.items()} == {'cross': (1, 1, 3, 4)}
    np.testing.assert_allclose(weights['cross'].sum(-1), 1, atol=1e-6)
    changed = attention_maps.attention_weights(model.module, model.params, source, [9, 11, EOS])[
        'cross'
    ]
    np.testing.assert_array_equal((changed != weights['cross']).any(-1)[0, 0], [False, False, True])


def test_without_attention_there_is_nothing_to_draw(models):
    model = models('none')
    with pytest.raises(
        ConfigError, match=r"model.rnn='gru\(attention=none\)' has no attention to draw"
    ):
        attention_maps.attention_weights(model.module, model.params, [5, EOS], [9, EOS])


@pytest.mark.parametrize(
    ('rnn', 'said'),
    [
        ('lstn', "model.rnn='lstn' names the unknown 'lstn': did you mean 'lstm'?"),
        ("gru(attention='dot')", "attention='dot', it takes none, additive, multiplicative"),
        ("lstm(attention='none', input_feeding=True)", "attention='none' finds nothing"),
    ],
)
def test_what_no_recurrent_model_can_be_is_refused(rnn, said):
    values = to_dict(support.experiment())
    values['model'] |= {'kind': 'rnn_seq2seq', 'rnn': rnn}
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert said in str(caught.value)


def test_what_limits_attention_does_not_limit_a_recurrent_model():
    config = support.experiment(
        model__kind='rnn_seq2seq', model__d_model=17, model__position='learned(max_len=3)'
    )
    architecture = resolve(config).architecture
    assert architecture.sites == ()
    assert architecture.max_length == float('inf')


@pytest.mark.rare
@pytest.mark.parametrize('rnn', ['lstm', 'gru'])
def test_number_words_are_translated(rnn, tmp_path):
    file = support.CONFIG_FILE.with_name('number_words_rnn.py')
    config = from_config_dict(runpy.run_path(str(file))['get_config'](f'en-de,{rnn}'))
    train(config, tmp_path, support.quiet)
    assert (
        TrainedRun(tmp_path, 'last', support.quiet, {}, ('test',))
        .evaluate('test')
        .scores['exact_match']
        >= 0.99
    )


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path):
    changes = {
        'model__kind': 'rnn_seq2seq',
        'model__d_model': 32,
        'data__batching': 'packed(length=48)',
        'train__steps': 30,
        'optim__learning_rate': 0.02,
        'checkpoint__every': 0,
    }
    train(support.experiment(**changes), tmp_path, support.quiet)
    losses = support.losses(tmp_path)
    assert np.mean(losses[-3:]) < 0.75 * losses[0]

"""Scanned and rematerialized layers compute what the same layers compute apart."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers.support import experiment, losses, quiet

import transformer_jax
from transformer_jax.config import resolve
from transformer_jax.efficiency.flops import forward_flops
from transformer_jax.errors import ConfigError
from transformer_jax.layers import dropout as dropout_lib
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import abstract_params, build_model, init_params
from transformer_jax.models.architecture import LayerScan
from transformer_jax.models.layer_stack import REMATS, split_layers, stack_layers
from transformer_jax.optim.roles import roles
from transformer_jax.profiling.flops import activation_bytes
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.training.train import train
from transformer_jax.training.train_state import init_state

ROWS = [[(5, 4), (3, 6)], [(7, 9)]]
MODELS = {
    'the paper': {'encoder_layers': 3, 'decoder_layers': 3},
    'a pattern and a rest': {
        'kind': 'decoder_only',
        'decoder_layers': 5,
        'attention': 'softmax(mask=window(3)), softmax',
        'position': 'rope',
        'norm_placement': 'pre',
        'num_kv_heads': 2,
    },
    'shared positions': {'position': 't5', 'norm_placement': 'sandwich', 'block': 'sequential'},
    'DeepNorm': {'norm_placement': 'deepnorm', 'attention_bias': 'all', 'encoder_layers': 3},
    'experts': {
        'kind': 'decoder_only',
        'decoder_layers': 3,
        'ffn': 'moe(experts=4, k=2)',
        'tie_embeddings': 'decoder',
    },
    'linear': {'kind': 'decoder_only', 'attention': 'linear', 'block': 'parallel'}
    | {'norm_placement': 'pre', 'decoder_layers': 4},
}
FAST_MODEL, FAST_REMAT = 'a pattern and a rest', 'full'  # each compiles for some seconds


def but_one_slow(names, fast):
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def loss_and_gradients(model, params, batch, rate=None, rng=None):
    """The loss, and its gradients by layer."""

    def loss(params):
        sums, loads = loss_sums(model, params, batch, 0.1, rate, rng)
        return sums.loss, [load.chosen_E for load in loads]

    (value, chosen), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, chosen, split_layers(grads, model.architecture)


def near(found, expected, tolerance=2e-6):
    """Each array by its own norm."""
    for name, array in traverse_util.flatten_dict(expected, sep='/').items():
        other = traverse_util.flatten_dict(found, sep='/')[name]
        scale = np.linalg.norm(array) + 1e-6
        assert np.linalg.norm(other - array) <= tolerance * scale, name


@pytest.mark.parametrize('name', but_one_slow(MODELS, FAST_MODEL))
def test_scanned_layers_are_the_layers_apart(architecture, make_batch, random_rows, name):
    apart = architecture(**MODELS[name])
    scanned = dataclasses.replace(apart, scan_layers=True)
    batch = make_batch(random_rows(ROWS, apart.vocab_size), 12)
    rng = jax.random.PRNGKey(3)
    params = nn.meta.unbox(init_params(build_model(apart), rng))
    stacked = nn.meta.unbox(init_params(build_model(scanned), rng))
    jax.tree.map(np.testing.assert_array_equal, split_layers(stacked, scanned), params)
    rate = 0.0 if 'ffn' in MODELS[name] else None  # a rate: training, with loads of experts
    loss, chosen, grads = loss_and_gradients(build_model(apart), params, batch, rate, rng)
    found, loads, gradients = loss_and_gradients(build_model(scanned), stacked, batch, rate, rng)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    near(gradients, grads)
    jax.tree.map(
        np.testing.assert_array_equal, sorted(map(tuple, loads)), sorted(map(tuple, chosen))
    )
    # Parameters that `model.init` made are apart: the model stacks them itself.
    other, _, _ = loss_and_gradients(build_model(scanned), params, batch, rate, rng)
    np.testing.assert_array_equal(other, found)


@pytest.mark.parametrize(
    ('layers', 'attention', 'expected'),
    [
        (1, 'softmax', None),
        (2, 'softmax', LayerScan(1, 2)),
        (7, 'softmax', LayerScan(1, 7)),
        (6, 'softmax(mask=window(2)), softmax', LayerScan(2, 3)),
        (7, 'softmax(mask=window(2)), softmax', LayerScan(2, 3)),
        (26, '5*softmax(mask=window(2)), softmax', LayerScan(6, 4)),
        (3, 'softmax(mask=window(2)), softmax', None),
        (4, 'softmax, linear, softmax, softmax', None),
    ],
)
def test_the_shortest_pattern_is_scanned(architecture, layers, attention, expected):
    found = architecture(
        kind='decoder_only', decoder_layers=layers, attention=attention, scan_layers=True
    )
    assert found.scan('decoder') == expected
    assert found.unscanned().scan('decoder') is None


def test_stacked_parameters_have_an_axis_of_layers(architecture):
    scanned = architecture(ffn='moe(experts=4, k=1)', scan_layers=True)
    boxed = abstract_params(build_model(scanned))
    kernel = boxed['decoder_layers']['block_0']['attention']['out']['kernel']
    assert kernel.names[0] == 'layers'
    assert kernel.value.shape == (2, 4, 4, 16)
    apart = split_layers(jax.tree.map(jnp.zeros_like, boxed), scanned)
    assert apart['decoder_1']['attention']['out']['kernel'].names == kernel.names[1:]
    again = stack_layers(apart, scanned)
    assert jax.tree.structure(again) == jax.tree.structure(boxed)
    role = roles(boxed)['decoder_layers']['block_0']['ffn']['experts']
    [experts] = [each for name, each in role.items() if name == 'in_kernel'] or [
        next(each for each in role.values() if each.group == 'kernel')
    ]
    assert (experts.batch, experts.stacked) == ((0, 1), True)


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('remat', but_one_slow(sorted(REMATS.keys() - {'none'}), FAST_REMAT))
def test_what_is_computed_again_is_the_same(
    architecture, make_batch, random_rows, remat, scan_layers
):
    kept = architecture(scan_layers=scan_layers, dropout=0.5)
    again = dataclasses.replace(kept, remat=remat)
    batch = make_batch(random_rows(ROWS, kept.vocab_size), 12)
    rng = jax.random.PRNGKey(3)
    params = nn.meta.unbox(init_params(build_model(kept), rng))
    rate = jnp.float32(0.5)
    loss, _, grads = loss_and_gradients(build_model(kept), params, batch, rate, rng)
    found, _, gradients = loss_and_gradients(build_model(again), params, batch, rate, rng)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    near(gradients, grads)


@pytest.mark.slow
def test_less_is_stored_for_the_backward_pass():
    def stored(remat, scan_layers):
        components = resolve(
            experiment(
                model__remat=remat,
                model__scan_layers=scan_layers,
                model__encoder_layers=4,
                model__decoder_layers=4,
            )
        )
        model = build_model(components.architecture)
        state = nn.meta.unbox(jax.eval_shape(lambda: init_state(components, model)))
        return activation_bytes(model, state, 4, 16), forward_flops(model, state.params, 4, 16)

    for scan_layers in (False, True):
        (none, flops), (dots, _), (full, again) = (
            stored(remat, scan_layers) for remat in ('none', 'dots', 'full')
        )
        assert full < dots < none
        assert flops == again  # of the forward pass alone


def test_each_scanned_layer_drops_other_elements(
    architecture, make_batch, random_rows, monkeypatch
):
    keys = []
    drop = dropout_lib.apply_dropout

    def noted(rng, x, rate):
        jax.debug.callback(lambda key: keys.append(tuple(key.tolist())), rng)
        return drop(rng, x, rate)

    monkeypatch.setattr(dropout_lib, 'apply_dropout', noted)
    scanned = architecture(kind='decoder_only', decoder_layers=4, scan_layers=True, dropout=0.5)
    batch = make_batch(random_rows(ROWS, scanned.vocab_size), 12)
    model = build_model(scanned)
    params = nn.meta.unbox(init_params(model, jax.random.PRNGKey(0)))
    loss_sums(model, params, batch, 0.0, jnp.float32(0.5), jax.random.PRNGKey(1))
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) >= 1 + 2 * 4  # the embedding, and two sublayers a layer


def test_a_deeper_model_is_no_longer_program(architecture, make_batch, random_rows):
    def products(layers, scan_layers):
        found = architecture(
            kind='decoder_only', decoder_layers=layers, scan_layers=scan_layers, dropout=0.0
        )
        model = build_model(found)
        params = nn.meta.unbox(abstract_params(model))
        batch = make_batch(random_rows(ROWS, found.vocab_size), 12)
        gradient = jax.grad(lambda params: loss_sums(model, params, batch)[0].loss)
        return jax.jit(gradient).lower(params).as_text().count('stablehlo.dot_general')

    assert products(8, True) == products(3, True)
    assert products(8, False) > products(3, False)


# --- In training ----------------------------------------------------------------------------------

RUN = {
    'train__steps': 4,
    'checkpoint__every': 2,
    'evaluate__every': 2,
    'model__encoder_layers': 2,
    'model__decoder_layers': 3,
    'model__dropout': 0.0,
}


@pytest.fixture(scope='module')
def apart(tmp_path_factory):
    """The workdir of a run whose layers are apart."""
    workdir = tmp_path_factory.mktemp('apart')
    train(experiment(**RUN), workdir, quiet)
    return workdir


def arrays(workdir, step=4):
    return Checkpoints(workdir / 'checkpoints', keep=9).record(step)['arrays']


@pytest.mark.rare
def test_a_checkpoint_does_not_tell(apart, tmp_path):
    """It has the same arrays, and the other sort of model begins with it."""
    config = experiment(model__scan_layers=True, model__remat='full', train__ema=0.5, **RUN)
    train(config, tmp_path / 'scanned', quiet)
    np.testing.assert_allclose(losses(tmp_path / 'scanned'), losses(apart), rtol=1e-5)
    theirs = {
        name: text for name, text in arrays(tmp_path / 'scanned').items() if 'ema' not in name
    }
    assert theirs == arrays(apart)
    # Resumed, and evaluated from the checkpoint alone.
    shorter = tmp_path / 'shorter'
    constant = {'optim__schedule': 'constant', 'model__scan_layers': True}
    train(experiment(**RUN | constant | {'train__steps': 2}), shorter, quiet)
    train(experiment(**RUN | constant | {'model__remat': 'full'}), shorter, quiet)
    train(experiment(**RUN | constant), tmp_path / 'whole', quiet)
    np.testing.assert_allclose(losses(shorter), losses(tmp_path / 'whole'), rtol=1e-5)
    run = transformer_jax.open_run(shorter)
    assert 'decoder_2' in run.params
    # Begun with the parameters of the other sort.
    for scan_layers, source in ((True, apart), (False, shorter)):
        begun = experiment(
            model__scan_layers=scan_layers,
            train__init_from=f'{source}:4',
            **RUN | {'optim__learning_rate': 0.0},
        )
        train(begun, tmp_path / f'from-{scan_layers}', quiet)
        ours, others = (
            transformer_jax.open_run(path, checkpoint='4').params
            for path in (tmp_path / f'from-{scan_layers}', source)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, others)


@pytest.mark.slow
@pytest.mark.parametrize(
    'optimizer',
    [
        'adam',
        *(
            pytest.param(name, marks=pytest.mark.rare)
            for name in ('lion', 'muon', 'adafactor(min_size=8)')
        ),
    ],
)
def test_every_optimizer_updates_each_layer_by_itself(tmp_path, optimizer):
    found = []
    for scan_layers in (False, True):
        keys = {'optim__optimizer': optimizer, 'model__scan_layers': scan_layers}
        workdir = tmp_path / str(scan_layers)
        train(experiment(**RUN | keys | {'evaluate__every': 0}), workdir, quiet)
        found.append((losses(workdir), arrays(workdir)))
    (apart, names), (scanned, stored) = found
    np.testing.assert_allclose(scanned, apart, rtol=1e-5)
    assert stored == names


@pytest.mark.rare
@pytest.mark.parametrize('keys', [{'train__num_seeds': 2}, {'parallel__mode': 'pmap'}])
def test_scanned_layers_train_in_every_mode(tmp_path, keys):
    keys = RUN | keys | {'evaluate__every': 0}
    member = '1' if 'train__num_seeds' in keys else '.'
    for scan_layers in (False, True):
        for steps in (2, 4):  # stopped and resumed
            changes = keys | {'train__steps': steps, 'optim__schedule': 'constant'}
            config = experiment(model__scan_layers=scan_layers, **changes)
            train(config, tmp_path / str(scan_layers), quiet)
    apart, scanned = (losses(tmp_path / name / member) for name in ('False', 'True'))
    np.testing.assert_allclose(scanned, apart, rtol=1e-5)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        ({'model__kind': 'rnn_seq2seq'}, 'has no layers that could be scanned'),
        ({'model__encoder_attention': 'reformer'}, 'computes with the number of its layer'),
        ({'model__attention': 'differential'}, 'computes with the number of its layer'),
        ({'model__remat': 'some'}, 'model.remat'),
    ],
)
def test_what_cannot_be_scanned_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(experiment(model__scan_layers=True, **keys))
    if 'model__attention' in keys:
        resolve(
            experiment(model__scan_layers=True, model__attention='differential(lambda_init=0.5)')
        )

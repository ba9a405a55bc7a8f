"""Rows that are cut over devices train as whole rows do, beside all other axes of the mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers.build import build_model, with_vocabulary
from helpers.one_device import assert_same_training, one_device, train
from helpers.support import events, quiet
from helpers.support import experiment as tiny_experiment

from transformer_jax.losses.token_scores import token_scores
from transformer_jax.schema import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.training.programs import make_program
from transformer_jax.training.train import train as train_run

V, LENGTH, ROWS, STEPS, CLASSES = 32, 16, 8, 20, 12
MESHES = {
    'context8': MeshConfig(1, context=8),
    'context4-data2': MeshConfig(2, context=4),
    'context2-fsdp2-tensor2': MeshConfig(1, 2, 2, context=2),
}
MODELS = {
    'encoder_decoder': {'position': 't5', 'decoder_layers': 1, 'encoder_layers': 1},
    'decoder_only': {'position': 'rope', 'decoder_layers': 1, 'num_kv_heads': 2},
    'classifier': {'position': 'alibi', 'encoder_layers': 1},
}
BATCHES = ('bucketed', 'packed')
FAST = ('decoder_only', 'context2-fsdp2-tensor2')  # all axes at once; a case compiles for 20 s
SLOW = ('encoder_decoder', 'context4-data2')  # all others are rare


@pytest.fixture(scope='module')
def batches(make_batch, random_rows):
    """{(model, kind): batches}, all of one shape; some rows are padding alone."""
    rng = np.random.default_rng(0)
    lengths = {
        'bucketed': lambda: (
            [[tuple(rng.integers(1, LENGTH + 1, 2))] for _ in range(ROWS - 2)] + [[]] * 2
        ),
        'packed': lambda: [
            [tuple(rng.integers(1, 5, 2)) for _ in range(1 + row % 4)] for row in range(ROWS)
        ],
    }
    found = {}
    for kind, draw in lengths.items():
        pairs = [make_batch(random_rows(draw(), V, seed), LENGTH) for seed in range(3)]
        found['encoder_decoder', kind] = pairs
        found['decoder_only', kind] = [batch._replace(**NO_SOURCE) for batch in pairs]
        found['classifier', kind] = [with_classes(batch) for batch in pairs]
    return found


NO_SOURCE = {'source_BS': None, 'source_positions_BS': None, 'source_segments_BS': None}


def with_classes(batch):
    """A class for each row, which its first token decides."""
    first = jax.tree.map(lambda a: a[:, :1], batch)
    classes_B1 = batch.source_BS[:, :1] % CLASSES
    return batch._replace(
        **first._replace(targets_BT=classes_B1)._asdict()
        | {
            name: getattr(batch, name)
            for name in ('source_BS', 'source_positions_BS', 'source_segments_BS')
        }
    )


def experiment(tiny, model, mesh):
    return ExperimentConfig(
        tiny(kind=model, **MODELS[model]),
        data=DataConfig(task='listops' if model == 'classifier' else 'number_words'),
        train=TrainConfig(steps=100),
        optim=OptimConfig(schedule='constant', learning_rate=3e-3),
        parallel=ParallelConfig(mesh=mesh),
    )


def marks(case):
    return () if case == FAST else pytest.mark.slow if case == SLOW else pytest.mark.rare


@pytest.fixture(
    scope='module',
    params=[
        pytest.param((model, mesh), marks=marks((model, mesh)))
        for model in MODELS
        for mesh in MESHES
    ],
    ids='-'.join,
)
def program(request, tiny):
    """(the kind of the model, its program on a mesh)."""
    model, mesh = request.param
    components = with_vocabulary(experiment(tiny, model, MESHES[mesh]), V)
    if model == 'classifier':  # 10 classes cannot be split over fsdp 2 and tensor 2
        architecture = dataclasses.replace(components.architecture, num_classes=CLASSES)
        components = dataclasses.replace(components, architecture=architecture)
    return model, make_program(components)


@pytest.fixture(scope='module')
def single(tiny, batches):
    """The answers of one device, by model and kind of batch; each is computed when asked for."""
    functions, answers = {}, {}

    def answer(model, kind):
        if model not in functions:
            config = experiment(tiny, model, MeshConfig())
            classes = CLASSES if model == 'classifier' else 0
            functions[model] = one_device(config, build_model(config.model, V, classes))
        if (model, kind) not in answers:
            answers[model, kind] = train(*functions[model], batches[model, kind], STEPS)
        return answers[model, kind]

    return answer


@pytest.mark.parametrize('kind', BATCHES)
def test_pieces_train_as_whole_rows(program, kind, batches, single):
    model, layout = program
    placed = [layout.place(batch) for batch in batches[model, kind]]
    found = train(layout.init_state, layout.train_step, placed, STEPS)
    assert_same_training(found, single(model, kind))


def test_every_token_has_its_own_score_in_evaluation(program, batches):
    model, layout = program
    batch, state = batches[model, 'packed'][0], layout.init_state()
    score = layout.partitioner.compile(
        lambda params, batch: token_scores(layout.model, params, batch),
        out_shardings=layout.partitioner.batch_sharding,
    )
    found = score(state.params, layout.partitioner.put(batch))
    params = jax.tree.map(np.asarray, state.params)
    expected = jax.jit(functools.partial(token_scores, layout.model))(params, batch)
    np.testing.assert_allclose(found.nll_BT, expected.nll_BT, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.predicted_BT, expected.predicted_BT)


@pytest.mark.slow
def test_a_run_that_cuts_rows_is_evaluated_and_translates(tmp_path):
    for name, mesh in (('whole', {}), ('cut', {'data': 2, 'context': 4})):
        keys = {f'parallel__mesh__{axis}': size for axis, size in mesh.items()}
        config = tiny_experiment(train__steps=4, evaluate__every=2, model__dropout=0.1, **keys)
        train_run(config, tmp_path / name, quiet)
    whole, cut = (events(tmp_path / name, 'validation') for name in ('whole', 'cut'))
    assert [event['step'] for event in cut] == [2, 4]
    for expected, found in zip(whole, cut, strict=True):
        assert found['loss'] == pytest.approx(expected['loss'], rel=1e-4)
        assert found['bleu'] == pytest.approx(expected['bleu'], abs=1e-6)

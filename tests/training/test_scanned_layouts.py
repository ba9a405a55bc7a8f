"""Scanned layers on eight devices give the answer of the same layers apart on one device."""

import jax
import numpy as np
import pytest
from helpers.build import build_model, with_vocabulary
from helpers.one_device import assert_same_training, one_device, train

from transformer_jax.schema import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.training.programs import make_program

V, LENGTH, ROWS, STEPS = 32, 16, 16, 20
MODELS = {
    'encoder_decoder': {'encoder_layers': 2, 'decoder_layers': 3},
    # Two periods of the pattern, and a layer that is left.
    'decoder_only': {'decoder_layers': 5, 'attention': 'softmax(mask=window(5)), softmax'}
    | {'position': 'rope'},
}
LAYOUTS = {
    'data8': ParallelConfig(mesh=MeshConfig(8)),
    'fsdp8': ParallelConfig(mesh=MeshConfig(1, 8)),
    'tensor4-data2': ParallelConfig(mesh=MeshConfig(2, 1, 4)),
    '2x2x2': ParallelConfig(mesh=MeshConfig(2, 2, 2)),
    'context2-fsdp2-tensor2': ParallelConfig(mesh=MeshConfig(1, 2, 2, context=2)),
    'pmap8': ParallelConfig('pmap', MeshConfig(8)),
}
OFTEN = {('encoder_decoder', '2x2x2')}  # a case compiles for half a minute


def config(tiny, model, layout, **changes):
    return ExperimentConfig(
        tiny(kind=model, **MODELS[model], **changes),
        data=DataConfig(task='number_words'),
        train=TrainConfig(steps=100),
        optim=OptimConfig(schedule='constant', learning_rate=3e-3),
        parallel=LAYOUTS[layout],
    )


@pytest.mark.parametrize(
    ('model', 'layout'),
    [
        pytest.param(*case, marks=pytest.mark.slow if case in OFTEN else pytest.mark.rare)
        for case in [(model, layout) for model in MODELS for layout in LAYOUTS]
    ],
)
def test_scanned_layers_on_eight_devices_are_layers_apart_on_one(
    tiny, make_batch, random_rows, model, layout
):
    rng = np.random.default_rng(0)
    rows = [[tuple(rng.integers(1, 5, 2)) for _ in range(1 + row % 4)] for row in range(ROWS)]
    batches = [make_batch(random_rows(rows, V, seed), LENGTH) for seed in range(3)]
    apart = config(tiny, model, 'data8')
    expected = train(*one_device(apart, build_model(apart.model, V)), batches, STEPS)

    scanned = config(tiny, model, layout, scan_layers=True, remat='full')
    program = make_program(with_vocabulary(scanned, V))
    assert program.model.architecture.scan('decoder')
    placed = [program.place(batch) for batch in batches]
    first, losses = train(program.init_state, program.train_step, placed, STEPS)
    stored = jax.tree.map(np.asarray, program.layout.store(first))
    assert_same_training((stored, losses), expected)

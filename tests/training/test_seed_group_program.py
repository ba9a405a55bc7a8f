"""The compiled program of a group of seeds: where its arrays are, and what each seed computes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, with_vocabulary

from transformer_jax.config import resolve
from transformer_jax.partitioning.mesh import seed_mesh_sizes
from transformer_jax.schema import (
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step
from transformer_jax.training.programs import SeedGroupProgram, make_program


def test_seeds_take_the_devices_that_data_leaves():
    one = {'data': 8, 'fsdp': 1, 'tensor': 1}
    for seeds, mesh, expected in (
        (4, MeshConfig(), (4, 2)),
        (6, MeshConfig(), (2, 4)),
        (3, MeshConfig(), (1, 8)),
        (4, MeshConfig(data=8), (1, 8)),
    ):
        sizes = seed_mesh_sizes(mesh, one, seeds)
        assert (sizes['seed'], sizes['data']) == expected


@pytest.fixture(scope='module')
def mixture(tiny, make_batch, random_rows):
    """(config, members, model, a batch of each): experts, microbatches, averages and dropout."""
    config = ExperimentConfig(
        model=tiny(kind='decoder_only', decoder_layers=1, ffn='moe(4, 2)', dropout=0.1),
        train=TrainConfig(steps=100, accumulate=2, ema=0.9),
        optim=OptimConfig(schedule='constant', clip=1.0),
    )
    members = [
        dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, seed=seed),
            optim=dataclasses.replace(config.optim, learning_rate=rate),
        )
        for seed, rate in ((3, 0.01), (4, 0.02), (5, 0.03), (6, 0.04))
    ]
    batches = [
        make_batch(
            random_rows([[(4, 1 + (row + seed) % 8)] for row in range(16)], 20, seed), 8
        )._replace(source_BS=None, source_positions_BS=None, source_segments_BS=None)
        for seed in range(4)
    ]
    return config, members, build_model(config.model, 20), batches


@pytest.mark.slow
@pytest.mark.parametrize(
    'layout',
    [
        'all devices',
        pytest.param('an axis of seeds', marks=pytest.mark.rare),
        pytest.param('one by one', marks=pytest.mark.rare),
        pytest.param('pieces', marks=pytest.mark.rare),
    ],
)
def test_experts_microbatches_and_averages_side_by_side(mixture, layout):
    config, members, model, batches = mixture
    count = 3 if layout == 'one by one' else 4
    meshes = {'all devices': MeshConfig(data=8), 'pieces': MeshConfig(context=2)}
    mesh = meshes.get(layout, MeshConfig())
    config = dataclasses.replace(config, parallel=ParallelConfig(mesh=mesh))
    program = SeedGroupProgram(with_vocabulary(config, 20), members[:count])
    states, live = program.init_state(), [True] * count
    stacked = jax.tree.map(lambda *a: np.stack(a), *batches[:count])
    live[1] = False
    first = jax.tree.map(np.asarray, states)
    for _ in range(3):
        states, metrics = program.train_step(
            states, program.place(stacked), program.place_live(live)
        )
    alone = jax.jit(functools.partial(step.train_step, model, resolve(config)))
    for index in (0, 2):
        state = nn.meta.unbox(train_state.init_state(resolve(members[index]), model))
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, atol=1e-7),
            first.params,
            state.params,
        )
        for _ in range(3):
            state, expected = alone(state, batches[index])
        assert {'experts_load_max', 'experts_dropped'} <= expected.keys()
        for name, value in expected.items():
            assert float(metrics[name][index]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), (
                name
            )
        for a, b in zip(*map(jax.tree.leaves, (states.ema, state.ema)), strict=True):
            np.testing.assert_allclose(a[index], b, atol=1e-4)
    # A seed that is not live keeps its state.
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), states, first)


def test_seeds_are_on_their_own_devices(mixture):
    config, members, _, _ = mixture
    program = SeedGroupProgram(with_vocabulary(config, 20), members)
    state = program.init_state()
    sizes = {'seed': 4, 'data': 2, 'fsdp': 1, 'context': 1, 'tensor': 1}
    assert dict(program.partitioner.mesh.shape) == sizes
    assert all(leaf.addressable_shards[0].data.shape[0] == 1 for leaf in jax.tree.leaves(state))
    one = program.params_of(state.params, 2)
    alone = make_program(with_vocabulary(config, 20)).init_state(5)
    jax.tree.map(np.testing.assert_array_equal, one, alone.params)
    assert jax.tree.leaves(one)[0].sharding == jax.tree.leaves(alone.params)[0].sharding
    assert (
        state.hyper.learning_rate.tolist()
        == jnp.array([0.01, 0.02, 0.03, 0.04], jnp.float32).tolist()
    )

"""Which part of a training step takes how long.

The parts are measured by compiling more and more of the step, each program by itself. `forward` is
the features alone, without dropout; `output layer and loss` is the loss from given features with
its gradients, which are computed in one pass (see `losses.cross_entropy`); `backward` is what the
gradient without dropout takes beyond these two; `dropout` is what the gradient with dropout takes
beyond that; `optimizer` is what the whole step takes beyond its gradients. XLA fuses operations
across these borders, so a part is the time that it adds, and a part below the noise shows 0.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from transformer_jax.batch import Batch
from transformer_jax.efficiency.timing import seconds
from transformer_jax.losses.cross_entropy import cross_entropy
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.programs import TrainProgram
from transformer_jax.training.train_state import dropout_rate

PARTS = ('forward', 'output layer and loss', 'backward', 'dropout', 'optimizer')
ROUNDS = 5  # measurements of each part; the median counts


def time_step_parts(
    config: ExperimentConfig, program: TrainProgram, batch: Batch
) -> dict[str, float]:
    """Measure the seconds of each of PARTS in a training step; they add up to the whole step.

    Args:
        config: the experiment.
        program: of that experiment.
        batch: NumPy arrays of all rows.
    """
    accumulate = config.train.accumulate
    micro = jax.tree.map(
        lambda a_BT: program.partitioner.put_whole(a_BT[: len(a_BT) // accumulate]), batch
    )
    with program.partitioner.context():
        runs = _nested_programs(config, program, micro, program.place_whole(batch))
        for run in runs:
            jax.block_until_ready(run())
        rounds = [[seconds(run) for run in runs] for _ in range(ROUNDS)]
    forward, loss, plain, dropped, full = map(statistics.median, zip(*rounds, strict=True))
    # All but the whole step were measured on one of `accumulate` microbatches.
    ends = [*(accumulate * end for end in (forward, forward + loss, plain, dropped)), full]
    ends = np.minimum(np.maximum.accumulate(ends), full)
    return dict(zip(PARTS, np.diff(ends, prepend=0).tolist(), strict=True))


def _nested_programs(
    config: ExperimentConfig, program: TrainProgram, micro: Batch, whole: Batch
) -> tuple[Callable[[], Any], ...]:
    """Make functions that run one compiled program each: ever more of a step, then the whole."""
    model, smoothing = program.model, config.train.label_smoothing
    state, rng = program.init_state(), jax.random.PRNGKey(0)

    @jax.jit
    def features(params, batch):
        return model.apply({'params': params}, batch, None, method='features')

    @jax.jit
    def output(params, batch, x_BTD):
        def loss(x_BTD, w_VD):
            softcap = config.model.logit_softcap
            return cross_entropy(
                x_BTD, w_VD, batch.targets_BT, batch.weights_BT, smoothing, softcap
            ).loss

        w_VD = model.apply({'params': params}, method='output_table')
        return jax.grad(loss, argnums=(0, 1))(x_BTD, w_VD)

    @functools.partial(jax.jit, static_argnames='drops')
    def gradient(params, batch, hyper, rng, drops):
        dropout = dropout_rate(model.architecture, hyper) if drops else None

        def loss(params):
            return loss_sums(model, params, batch, smoothing, dropout, rng)[0].loss

        return jax.grad(loss)(params)

    def update():
        nonlocal state  # The step consumes the state that it is given.
        state, _ = program.train_step(state, whole)
        return state

    x_BTD = features(state.params, micro)
    return (
        lambda: features(state.params, micro),
        lambda: output(state.params, micro, x_BTD),
        lambda: gradient(state.params, micro, state.hyper, rng, drops=False),
        lambda: gradient(state.params, micro, state.hyper, rng, drops=True),
        update,
    )

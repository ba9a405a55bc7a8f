"""The roofline's step time against a measured one, on the CPU of this machine.

    python benchmarks/predicted_step_time.py

The formula is that of `inspect --topology`; the peaks of the CPU are measured: the best of ten
large matrix products, and the best of ten passes over an array that no cache holds. Peaks and steps
are measured in turn, because the speed of a machine drifts; the fastest of each counts.
"""

import runpy

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import config as config_lib
from transformer_jax.efficiency.timing import matmul_peak, seconds
from transformer_jax.models import dummy_batch
from transformer_jax.profiling.compiled import read_compiled
from transformer_jax.profiling.lowered import lower
from transformer_jax.profiling.roofline import Peaks, predict
from transformer_jax.schema import ExperimentConfig
from transformer_jax.training.programs import make_program

CASES = (
    ('tiny_shakespeare', 'cpu', {}),
    ('lm1b', 'softmax', {
        'model.dtype': 'float32', 'model.decoder_layers': 2, 'model.dropout': 0.0,
        'train.batch_tokens': 1024,
    }),
    ('wmt14', 'en-de,base', {
        'model.dtype': 'float32', 'model.encoder_layers': 1, 'model.decoder_layers': 1,
        'model.dropout': 0.0, 'train.batch_tokens': 1024,
    }),
)  # fmt: skip
ROUNDS, STEPS = 3, 3
PASS_BYTES = 2**28


def memory_peak() -> float:
    """Measure the bytes per second of a pass that reads and writes an array."""
    add, a = jax.jit(lambda a: a + 1), jnp.zeros(PASS_BYTES // 4, jnp.float32)
    jax.block_until_ready(add(a))
    return 2 * PASS_BYTES / min(seconds(lambda: add(a)) for _ in range(10))


def compare(config: ExperimentConfig) -> tuple[float, float]:
    """Return (predicted, measured) seconds of a step."""
    traced = lower(config, 'train', 'cpu')
    compiled = traced.lowered.compile()
    program = read_compiled(compiled, traced.mesh)
    training = make_program(config_lib.resolve(config))
    state = training.init_state()
    batch = training.place(
        jax.tree.map(
            np.asarray, dummy_batch(training.model.architecture, traced.rows, traced.length)
        )
    )

    def step():
        nonlocal state
        state, _ = compiled(state, batch)
        return state

    step(), step()
    flops, rate, taken = 0.0, 0.0, []
    for _ in range(ROUNDS):
        flops, rate = max(flops, matmul_peak('float32')), max(rate, memory_peak())
        taken += [seconds(step) for _ in range(STEPS)]
    peaks = Peaks(flops, rate, link_rate=1.0)  # one device: nothing is sent
    return predict(program.works, program.collectives, 0.0, peaks).step, min(taken)


if __name__ == '__main__':
    for file, argument, overrides in CASES:
        made = runpy.run_path(f'configs/{file}.py')['get_config'](argument)
        config = config_lib.override(config_lib.from_config_dict(made), overrides)
        predicted, measured = compare(config)
        print(
            f'{file}:{argument} {predicted * 1e3:.1f} ms predicted, {measured * 1e3:.1f} measured: '
            f'{measured / predicted:.2f}',
            flush=True,
        )

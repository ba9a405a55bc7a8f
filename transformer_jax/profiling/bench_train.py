"""How fast a config trains on this machine, and where a step's time goes:
`transformer-jax bench train`.

What is compared runs alternately in one process, since a machine's speed drifts: bare steps, the
training loop, bare steps again. Seconds are wall-clock, whatever else the machine does; its load
average at the start stands in the result.

A step's parts are measured by compiling more and more of it, each program on its own, on the batch
shape that takes most of the time. `forward` is the features alone, without dropout;
`output layer and loss` the loss from given features together with its gradients, which are made in
one pass (see `losses`); `backward` what the gradient without dropout takes beyond these two;
`dropout` what the gradient with dropout takes beyond that; `optimizer` what the whole step takes
beyond its gradients. XLA fuses across these borders: a part is what it adds, and one that is lost
in the noise shows 0.
"""

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.table

from transformer_jax import config as config_lib
from transformer_jax.batch import Batch
from transformer_jax.config import Components
from transformer_jax.data import Data, load_data
from transformer_jax.data.batching import padded_rows
from transformer_jax.display.tables import result_table
from transformer_jax.losses.cross_entropy import cross_entropy
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.models import dummy_batch
from transformer_jax.profiling import flops as costs
from transformer_jax.profiling.timing import TimedIterator, matmul_peak, seconds
from transformer_jax.schema import CheckpointConfig, EvaluateConfig, ExperimentConfig
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.provenance import describe_machine
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import TrainProgram, make_program
from transformer_jax.training.train_state import dropout_rate
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.training_run import TrainingRun

Log = Callable[[str], None]
Shape = tuple[int, int]  # (rows, length)
PARTS = ('forward', 'output layer and loss', 'backward', 'dropout', 'optimizer')
ROUNDS = 5  # measurements of each part


@dataclasses.dataclass(frozen=True)
class ShapeTimes:
    """One compiled batch shape: what it costs, and the steps of that shape."""

    rows: int  # of all devices and microbatches
    length: int  # of source and target
    steps: int
    seconds: float  # of a bare step, the median; 0 without steps
    flops: int  # of a step, padding included, see `costs`
    peak_share: float  # of the machine's matrix products; 0 without steps
    compile_seconds: float
    temporary_bytes: int  # per device


@dataclasses.dataclass(frozen=True)
class TrainBench:
    """What training costs."""

    machine: dict[str, Any]
    steps: int
    tokens: int  # real target tokens
    tokens_per_second: float  # real target tokens, in the loop
    padding: float  # share of these steps' slots, on both sides
    epoch_padding: float  # of a whole epoch's, before rows are padded for the devices
    data_wait: float  # share of the loop's time
    loop_seconds: float  # of a step in the training loop, the mean
    bare_seconds: float  # of the same steps with their batches on the devices, the mean
    loop_over_bare: float
    peak_flops: (
        float  # per second, of large matrix products in the model's dtype on all devices together
    )
    peak_share: float  # of the bare steps
    compile_seconds: float  # of all shapes
    temporary_bytes: int  # per device, of the shape that needs most
    shapes: tuple[ShapeTimes, ...]
    parts_shape: Shape
    parts: dict[str, float]  # seconds; they add up to a step of that shape


def bench_train(config: ExperimentConfig, steps: int, log: Log, matmul_size: int = 0) -> TrainBench:
    """Times `steps` steps on the config's own data, every batch shape compiled beforehand, in
    one process.

    Args:
        config: neither evaluates nor saves here, whatever it says.
        steps: of the loop, the first of the run's; as many as an epoch has see all of its batches.
        log: receives remarks.
        matmul_size: see `matmul_peak`.

    Raises:
        ConfigError, DataError: as training would.
    """
    machine = describe_machine()
    config = config_lib.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps),
        evaluate=EvaluateConfig(),
        checkpoint=CheckpointConfig(every=0),
    )
    with tempfile.TemporaryDirectory() as directory:
        workdir = Workdir(directory)
        components = config_lib.resolve(config)
        data = load_data(components.pipeline, workdir.tokenizer_path, log, ('train',))
        program = make_program(components)
        shapes = [
            (padded_rows(rows, program.rows_multiple), length) for rows, length in data.shapes
        ]
        compiled = {shape: _compile(program, shape, log) for shape in shapes}
        batches = list(
            itertools.islice(
                data.train_iterator(program.partitioner.local_rows, program.rows_multiple), steps
            )
        )
        peak = matmul_peak(config.model.dtype, matmul_size)
        log(f'{steps} steps: bare, in the loop, and bare again')
        before = _bare(program, batches)
        loop_seconds, waited = _loop(components, data, program, workdir)
        bare = (before + _bare(program, batches)) / 2
    taken = [batch.shape for batch in batches]
    times = tuple(
        _shape_times(
            program, shape, compiled[shape], peak, bare[[other == shape for other in taken]]
        )
        for shape in shapes
    )
    slowest = max(times, key=lambda shape: shape.steps * shape.seconds)
    parts_shape = slowest.rows, slowest.length
    log(f'parts of a step of {parts_shape}')
    tokens = sum(int(batch.weights_BT.sum()) for batch in batches)
    segments = [
        side
        for batch in batches
        for side in (batch.source_segments_BS, batch.segments_BT)
        if side is not None
    ]
    return TrainBench(
        machine,
        steps,
        tokens,
        tokens / loop_seconds,
        padding=1 - sum(map(np.count_nonzero, segments)) / sum(side.size for side in segments),
        epoch_padding=1 - data.plan.fill,
        data_wait=waited / loop_seconds,
        loop_seconds=loop_seconds / steps,
        bare_seconds=float(bare.mean()),
        loop_over_bare=loop_seconds / float(bare.sum()),
        peak_flops=peak,
        peak_share=sum(shape.steps * shape.flops for shape in times) / float(bare.sum()) / peak,
        compile_seconds=sum(shape.compile_seconds for shape in times),
        temporary_bytes=max(shape.temporary_bytes for shape in times),
        shapes=times,
        parts_shape=parts_shape,
        parts=step_parts(config, program, batches[taken.index(parts_shape)]),
    )


def step_parts(config: ExperimentConfig, program: TrainProgram, batch: Batch) -> dict[str, float]:
    """Seconds of a training step on `batch`, which lies on the host, by part: see the
    module's text.
    """
    model, accumulate = program.model, config.train.accumulate
    state, whole, rng = program.init_state(), program.place(batch), jax.random.PRNGKey(0)
    micro = program.partitioner.put(
        jax.tree.map(lambda a_BT: a_BT[: len(a_BT) // accumulate], batch)
    )
    smoothing = config.train.label_smoothing

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

        return jax.grad(loss, argnums=(0, 1))(
            x_BTD, model.apply({'params': params}, method='output_table')
        )

    @functools.partial(jax.jit, static_argnames='drops')
    def gradient(params, batch, hyper, rng, drops):
        dropout = dropout_rate(model.architecture, hyper) if drops else None

        def loss(params):
            return loss_sums(model, params, batch, smoothing, dropout, rng)[0].loss

        return jax.grad(loss)(params)

    def update():
        nonlocal state  # The step consumes the one it is given.
        state, _ = program.train_step(state, whole)
        return state

    with program.partitioner.context():
        x_BTD = features(state.params, micro)
        programs = (
            lambda: features(state.params, micro),
            lambda: output(state.params, micro, x_BTD),
            lambda: gradient(state.params, micro, state.hyper, rng, drops=False),
            lambda: gradient(state.params, micro, state.hyper, rng, drops=True),
            update,
        )
        for program in programs:
            jax.block_until_ready(program())
        rounds = [[seconds(program) for program in programs] for _ in range(ROUNDS)]
    forward, loss, plain, dropped, full = map(statistics.median, zip(*rounds, strict=True))
    ends = [*(accumulate * end for end in (forward, forward + loss, plain, dropped)), full]
    ends = np.minimum(np.maximum.accumulate(ends), full)
    return dict(zip(PARTS, np.diff(ends, prepend=0).tolist(), strict=True))


def tables(bench: TrainBench) -> tuple[rich.table.Table, ...]:
    """What a person reads: the whole, then by batch shape, then by part of a step."""
    whole = result_table(
        'training',
        ('', 'value'),
        [
            ('steps', f'{bench.steps}'),
            ('real target tokens/s', f'{bench.tokens_per_second:,.0f}'),
            ('padding', f'{bench.padding:.1%} (of an epoch {bench.epoch_padding:.1%})'),
            ('waiting for data', f'{bench.data_wait:.2%}'),
            (
                'step in the loop, bare',
                f'{1e3 * bench.loop_seconds:.1f} ms, {1e3 * bench.bare_seconds:.1f} ms',
            ),
            ('loop over bare', f'{bench.loop_over_bare:.3f}'),
            ('matrix products, peak', f'{1e-9 * bench.peak_flops:,.1f} GFLOP/s'),
            ('share of that peak', f'{bench.peak_share:.1%}'),
            ('compilation', f'{bench.compile_seconds:.1f} s for {len(bench.shapes)} shapes'),
            ('temporary memory, at most', f'{bench.temporary_bytes / 2**20:,.1f} MiB per device'),
        ],
    )
    shapes = result_table(
        'by batch shape',
        ('rows', 'length', 'steps', 'ms per step', 'GFLOP', 'of the peak', 'compile s', 'MiB'),
        [
            (
                f'{shape.rows:,}',
                f'{shape.length:,}',
                f'{shape.steps}',
                f'{1e3 * shape.seconds:.1f}',
                f'{1e-9 * shape.flops:,.2f}',
                f'{shape.peak_share:.1%}',
                f'{shape.compile_seconds:.1f}',
                f'{shape.temporary_bytes / 2**20:,.1f}',
            )
            for shape in bench.shapes
        ],
    )
    whole_step = sum(bench.parts.values())
    parts = result_table(
        'where a step of {} rows of {} goes'.format(*bench.parts_shape),
        ('part', 'ms', 'share'),
        [
            (name, f'{1e3 * part:.1f}', f'{part / whole_step:.1%}')
            for name, part in bench.parts.items()
        ],
    )
    return whole, shapes, parts


class _NoSignals:
    """There is nothing to save: a signal may end the process at once."""

    def received(self, step: int) -> int:
        return 0


def _compile(program: TrainProgram, shape: Shape, log: Log) -> tuple[float, int]:
    """(seconds to compile the step for a batch shape, its temporary bytes per device); then takes
    one such step.
    """
    batch = program.place(jax.tree.map(np.asarray, dummy_batch(program.model.architecture, *shape)))
    start = time.perf_counter()
    compiled = program.train_step.lower(program.abstract, batch).compile()
    taken = time.perf_counter() - start
    jax.block_until_ready(program.train_step(program.init_state(), batch))
    log(f'compiled {shape} in {taken:.1f} s')
    return taken, compiled.memory_analysis().temp_size_in_bytes


def _bare(program: TrainProgram, batches: list[Batch]) -> np.ndarray:
    """Seconds of each step when its batch lies on the devices and nothing else is to be done."""
    placed = [program.place(batch) for batch in batches]
    state = jax.block_until_ready((program.init_state(), placed))[0]
    taken = []
    for batch in placed:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program.train_step(state, batch))
        taken.append(time.perf_counter() - start)
    return np.array(taken)


def _loop(
    components: Components, data: Data, program: TrainProgram, workdir: Workdir
) -> tuple[float, float]:
    """(seconds of the training loop as a run has it, of these waiting for data)."""

    # The loop's own lines would be of no use here: the bar is all that is seen of it.
    def quiet(line: str) -> None:
        pass

    run = TrainingRun(components.config, data, workdir, quiet)
    trainer = Trainer(
        components, run, program, Checkpoints(workdir.checkpoints_path, keep=1), quiet
    )
    trainer.start(workdir.tokenizer_path)
    trainer.iterator = TimedIterator(trainer.iterator)
    trainer.saved = components.config.train.steps  # The last step counts as saved.
    taken = seconds(lambda: (trainer.run(_NoSignals()), trainer.state))
    trainer.close()
    if run.record.failed:
        raise run.record.error
    return taken, trainer.iterator.waited


def _shape_times(
    program: TrainProgram, shape: Shape, compiled: tuple[float, int], peak: float, taken: np.ndarray
) -> ShapeTimes:
    flops = 3 * costs.forward_flops(program.model, program.abstract.params, *shape)
    median = float(np.median(taken)) if len(taken) else 0.0
    return ShapeTimes(
        *shape, len(taken), median, flops, flops / median / peak if median else 0.0, *compiled
    )

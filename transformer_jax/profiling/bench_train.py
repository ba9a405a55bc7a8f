"""How fast a config trains on this machine, and which part of a step takes how long.

The command is `transformer-jax bench train`. What is compared runs alternately in one process,
since the speed of a machine drifts: bare steps, the training loop, bare steps again. Seconds are
wall-clock, whatever else the machine does; its load average at the start is in the result. The
parts of a step are measured on the batch shape that takes most of the time, see `step_parts`.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from transformer_jax import config as config_lib
from transformer_jax.batch import Batch
from transformer_jax.config import Components
from transformer_jax.data import Data, load_data
from transformer_jax.data.batching import padded_rows
from transformer_jax.efficiency.flops import forward_flops, model_flops
from transformer_jax.efficiency.meter import Meter
from transformer_jax.efficiency.profile import Profiler
from transformer_jax.efficiency.timing import (
    TimedIterator,
    matmul_peak,
    peak_flops,
    seconds,
    temporary_bytes,
)
from transformer_jax.models import dummy_batch
from transformer_jax.profiling.bench_train_result import Shape, ShapeTimes, TrainBench
from transformer_jax.profiling.step_parts import time_step_parts
from transformer_jax.schema import CheckpointConfig, EvaluateConfig, ExperimentConfig
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.files import temporary_directory
from transformer_jax.storage.provenance import describe_machine
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import TrainProgram, make_program
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.training_run import TrainingRun

Log = Callable[[str], None]


def bench_train(config: ExperimentConfig, steps: int, log: Log, matmul_size: int = 0) -> TrainBench:
    """Time `steps` steps on the config's own data in one process.

    Every batch shape is compiled before the timing starts.

    Args:
        config: the experiment; here it neither evaluates nor saves.
        steps: how many steps of the loop, from the first of the run; as many as an epoch has take
            in all of its batches.
        log: receives remarks.
        matmul_size: see `matmul_peak`.

    Raises:
        ConfigError, DataError: as training would.
    """
    machine = describe_machine()
    config = _steps_alone(config, steps)
    with temporary_directory() as directory:
        workdir = Workdir(directory)
        components = config_lib.resolve(config)
        data = load_data(components.pipeline, workdir.tokenizer_path, log, ('train',))
        program = make_program(components)
        shapes = [(padded_rows(n, program.rows_multiple), length) for n, length in data.shapes]
        compiled = {shape: _compile(program, shape, log) for shape in shapes}
        rows = program.partitioner.all_rows, program.rows_multiple
        batches = list(itertools.islice(data.train_iterator(*rows), steps))
        peak = matmul_peak(config.model.dtype, matmul_size)
        log(f'{steps} steps: bare, in the loop, and bare again')
        before = _time_bare_steps(program, batches)
        loop_seconds, waited = _time_loop(components, data, program, workdir)
        bare = (before + _time_bare_steps(program, batches)) / 2
    times = _shape_times(program, compiled, peak, batches, bare)
    slowest = max(times, key=lambda shape: shape.steps * shape.seconds)
    parts_shape = slowest.rows, slowest.length
    parts_batch = next(batch for batch in batches if batch.shape == parts_shape)
    log(f'parts of a step of {parts_shape}')
    tokens = sum(int(batch.weights_BT.sum()) for batch in batches)
    return TrainBench(
        machine=machine,
        steps=steps,
        tokens=tokens,
        tokens_per_second=tokens / loop_seconds,
        padding=_padding(batches),
        epoch_padding=1 - data.plan.fill,
        data_wait=waited / loop_seconds,
        loop_seconds=loop_seconds / steps,
        bare_seconds=float(bare.mean()),
        loop_over_bare=loop_seconds / float(bare.sum()),
        peak_flops=peak,
        peak_share=sum(shape.steps * shape.flops for shape in times) / float(bare.sum()) / peak,
        mfu=_mfu(config, program, batches, float(bare.sum())),
        compile_seconds=sum(shape.compile_seconds for shape in times),
        temporary_bytes=max(shape.temporary_bytes for shape in times),
        shapes=times,
        parts_shape=parts_shape,
        parts=time_step_parts(config, program, parts_batch),
    )


def _steps_alone(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    """Return the config with so many steps, and without evaluations and checkpoints."""
    return config_lib.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps),
        evaluate=EvaluateConfig(),
        checkpoint=CheckpointConfig(every=0),
    )


def _shape_times(
    program: TrainProgram,
    compiled: dict[Shape, tuple[float, int]],
    peak: float,
    batches: Sequence[Batch],
    bare: np.ndarray,
) -> tuple[ShapeTimes, ...]:
    """Collect the times of each batch shape; `bare`: the seconds of a bare step on each batch."""
    times = []
    for shape, (compile_seconds, needed_bytes) in compiled.items():
        taken = bare[[batch.shape == shape for batch in batches]]
        median = float(np.median(taken)) if len(taken) else 0.0
        flops = 3 * forward_flops(program.model, program.abstract.params, *shape)
        times.append(
            ShapeTimes(
                rows=shape[0],
                length=shape[1],
                steps=len(taken),
                seconds=median,
                flops=flops,
                peak_share=flops / median / peak if median else 0.0,
                compile_seconds=compile_seconds,
                temporary_bytes=needed_bytes,
            )
        )
    return tuple(times)


def _mfu(
    config: ExperimentConfig, program: TrainProgram, batches: Sequence[Batch], taken: float
) -> float | None:
    peak, architecture = peak_flops(config.model.dtype), program.model.architecture
    counts = (
        model_flops(architecture, length) * rows for rows, length in (b.shape for b in batches)
    )
    return sum(counts) / taken / peak if peak else None


def _padding(batches: Sequence[Batch]) -> float:
    """Return the share of padding in the tokens of batches, source and target."""
    segments = [
        side
        for batch in batches
        for side in (batch.source_segments_BS, batch.segments_BT)
        if side is not None
    ]
    return 1 - sum(map(np.count_nonzero, segments)) / sum(side.size for side in segments)


class _NoSignals(StopSignals):
    """Signals as the trainer asks for them; it has nothing to save, so it need not hear of any."""

    def hold(self) -> None:
        """See StopSignals."""

    def received(self, step: int) -> int:
        """See StopSignals."""
        return 0

    def saved_by(self, save: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """See StopSignals."""
        return contextlib.nullcontext()


def _compile(program: TrainProgram, shape: Shape, log: Log) -> tuple[float, int]:
    """Compile the step for a batch shape and run it once.

    Returns:
        (seconds to compile, temporary bytes per device)
    """
    dummy = dummy_batch(program.model.architecture, *shape)
    batch = program.place_whole(jax.tree.map(np.asarray, dummy))
    start = time.perf_counter()
    compiled = program.train_step.lower(program.abstract, batch).compile()
    taken = time.perf_counter() - start
    jax.block_until_ready(program.train_step(program.init_state(), batch))
    log(f'compiled {shape} in {taken:.1f} s')
    return taken, temporary_bytes(compiled)


def _time_bare_steps(program: TrainProgram, batches: Sequence[Batch]) -> np.ndarray:
    """Measure the seconds of each step with its batch on the devices and nothing else to do."""
    placed = [program.place_whole(batch) for batch in batches]
    state = jax.block_until_ready((program.init_state(), placed))[0]
    taken = []
    for batch in placed:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program.train_step(state, batch))
        taken.append(time.perf_counter() - start)
    return np.array(taken)


def _time_loop(
    components: Components, data: Data, program: TrainProgram, workdir: Workdir
) -> tuple[float, float]:
    """Measure the training loop of a run: (seconds of all steps, seconds of waiting for data)."""

    # Only the progress bar is shown: the lines that the loop logs are not needed here.
    def quiet(line: str) -> None:
        pass

    run = TrainingRun(components.config, data, workdir, quiet)
    checkpoints = Checkpoints(workdir.checkpoints_path, keep=1)
    meter = Meter(components.architecture, workdir.times_path)
    profiler = Profiler(None, workdir.profile_path, quiet, meter)
    trainer = Trainer(components, run, program, checkpoints, _NoSignals(), quiet, profiler)
    trainer.start(workdir.tokenizer_path)
    for _, length in data.shapes:
        model_flops(components.architecture, length)  # Counted once, before the clock runs.
    iterator = TimedIterator(trainer.iterator)
    trainer.iterator = iterator
    trainer.saved = components.config.train.steps  # So that the last step is not saved.
    taken = seconds(lambda: (trainer.run(), trainer.state))
    trainer.close()
    if run.record.error is not None:
        raise run.record.error
    return taken, iterator.waited

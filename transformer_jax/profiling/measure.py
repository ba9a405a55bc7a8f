"""The size of a config, and the time and memory of its training step, measured on this machine."""

import collections
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from transformer_jax.batch import Batch
from transformer_jax.config import Components
from transformer_jax.data import Data, load_data
from transformer_jax.data.batching import padded_rows
from transformer_jax.efficiency.flops import forward_flops, portable
from transformer_jax.efficiency.time_spent import TimeSpent, read_stretches
from transformer_jax.efficiency.timing import seconds
from transformer_jax.models import build_model
from transformer_jax.partitioning.processes import from_primary
from transformer_jax.profiling import flops as costs
from transformer_jax.profiling.state_size import config_state
from transformer_jax.storage.files import temporary_directory
from transformer_jax.storage.metrics_writer import read_metrics
from transformer_jax.training.programs import TrainProgram, make_program
from transformer_jax.training.train_state import init_state

# Timed steps of each batch shape: at least MIN_STEPS, then until ENOUGH_S seconds or MAX_STEPS.
MIN_STEPS, ENOUGH_S, MAX_STEPS = 3, 1.0, 50
COUNTED_STEPS = 200  # steps of an epoch that are read to count how often each batch shape occurs


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """What can be counted without running anything.

    Attributes:
        params: all parameters.
        non_embedding_params: see `flops.non_embedding_params`.
        flops: forward, for each target token, see `flops.flops_per_token`.
        state_bytes: what decoding keeps of one sequence, see `state_size`; None where the model
            does not decode.
        state_length: tokens of that sequence, the longest row of `data.batching`; None likewise.
    """

    params: int
    non_embedding_params: int
    flops: int
    state_bytes: int | None
    state_length: int | None


@dataclasses.dataclass(frozen=True)
class StepMeasurement:
    """The training step on real batches; each batch shape has the weight of how often it occurs.

    Attributes:
        step_flops: the mean of the FLOPs, forward and backward.
        step_seconds: the mean of the time.
        memory_bytes: per device, arguments and temporary arrays, of the shape that needs most.
        step_spread: how far apart the quartiles of single steps are, as a share of their median;
            the mean over shapes. On a machine with nothing else to do it is a few percent.
    """

    step_flops: float
    step_seconds: float
    memory_bytes: int
    step_spread: float = 0.0


def model_size(components: Components) -> ModelSize:
    """Count parameters and FLOPs, without a device."""
    params = jax.eval_shape(
        functools.partial(init_state, components, build_model(components.architecture))
    ).params
    state = config_state(components)
    return ModelSize(
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        costs.non_embedding_params(components),
        round(costs.flops_per_token(components)),
        state.bytes if state else None,
        state.length if state else None,
    )


def measure_step(components: Components, tokenizer: epath.Path | None = None) -> StepMeasurement:
    """Compile the training step for each batch shape and time some steps; writes no files.

    Args:
        components: of a run, which is measured alone even if it belongs to a group of seeds.
        tokenizer: the directory of the run's tokenizer; None: train one.

    Raises:
        UserError: as training would.
    """
    with temporary_directory() as directory:
        data = load_data(components.pipeline, tokenizer or directory, lambda line: None, ('train',))
    program = make_program(components)
    counts = collections.Counter(
        (planned.rows, planned.length)
        for planned in map(data.plan.step, range(min(COUNTED_STEPS, data.steps_per_epoch)))
    )
    batches = _one_batch_per_shape(data, program, len(counts))
    traced = build_model(portable(components.architecture))
    state, flops, times, spread, memory = program.init_state(), 0.0, 0.0, 0.0, 0
    for (planned_rows, length), count in counts.items():
        rows, share = padded_rows(planned_rows, program.rows_multiple), count / counts.total()
        batch = program.place_whole(batches[rows, length])
        compiled = program.train_step.lower(program.abstract, batch).compile()
        needed = compiled.memory_analysis()
        memory = max(memory, needed.argument_size_in_bytes + needed.temp_size_in_bytes)
        state, taken = _time_steps(compiled, state, batch)
        times += share * statistics.median(taken)
        spread += share * relative_spread(taken)
        flops += share * 3 * forward_flops(traced, program.abstract.params, rows, length)
    return StepMeasurement(flops, times, memory, spread)


def _one_batch_per_shape(
    data: Data, program: TrainProgram, shapes: int
) -> dict[tuple[int, int], Batch]:
    """Return the first batch of each shape, whole, until there are `shapes` of them."""
    batches = {}
    rows = program.partitioner.all_rows, program.rows_multiple
    for batch in itertools.islice(data.train_iterator(*rows), COUNTED_STEPS):
        batches.setdefault(batch.shape, batch)
        if len(batches) == shapes:
            break
    return batches


def _time_steps(compiled: Callable, state: Any, batch: Batch) -> tuple[Any, list[float]]:
    """Take steps, each of which consumes the state of the one before.

    Returns:
        (the last state, the seconds of each step)
    """

    def update() -> Any:
        nonlocal current
        current, _ = compiled(current, batch)
        return current

    current = state
    seconds(update)  # The first step is slower, so it does not count.
    taken = []

    def lacks() -> bool:
        return len(taken) < MIN_STEPS or (sum(taken) < ENOUGH_S and len(taken) < MAX_STEPS)

    while from_primary(lacks):  # The clocks of several processes differ.
        taken.append(seconds(update))
    return current, taken


def relative_spread(seconds_taken: Sequence[float]) -> float:
    """Return the distance between the quartiles of some times, as a share of their median."""
    low, median, high = statistics.quantiles(seconds_taken, n=4, method='inclusive')
    return (high - low) / median


def logged_mfu(path: epath.Path) -> float | None:
    """Return the median MFU of the lines of a run's metrics.jsonl; None where it has none."""
    found = [event['mfu'] for event in read_metrics(path) if 'mfu' in event]
    return statistics.median(found) if found else None


def logged_goodput(path: epath.Path) -> float | None:
    """Return the goodput over all starts that a times.jsonl records; None where it has none."""
    stretches = read_stretches(path)
    return TimeSpent(stretches).goodput if stretches else None


def logged_seconds(path: epath.Path) -> float:
    """Sum the seconds in a run's metrics.jsonl, evaluations included.

    A run of a group of seeds logs its share of the seconds of each step.
    """
    return sum(event.get('seconds', 0.0) for event in read_metrics(path))

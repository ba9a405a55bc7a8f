"""The size of a config, and the time and memory of its training step, measured on this machine."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from transformer_jax.batch import Batch
from transformer_jax.config import Components
from transformer_jax.data import load_data
from transformer_jax.data.batching import padded_rows
from transformer_jax.models import build_model
from transformer_jax.profiling import flops as costs
from transformer_jax.profiling.timing import seconds
from transformer_jax.training.programs import make_program
from transformer_jax.training.train_state import init_state

# Timed steps of each batch shape: at least MIN_STEPS, then until ENOUGH_S seconds or MAX_STEPS.
MIN_STEPS, ENOUGH_S, MAX_STEPS = 3, 1.0, 50
COUNTED_STEPS = 200  # steps of an epoch that are read to count how often each batch shape occurs


@dataclasses.dataclass(frozen=True)
class Size:
    """What can be counted without running anything.

    Attributes:
        params: all parameters.
        non_embedding_params: see `flops.non_embedding_params`.
        flops: forward, for each target token, see `flops.flops_per_token`.
    """

    params: int
    non_embedding_params: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """Some steps on real batches; means over the batch shapes as often as they come."""

    step_flops: float
    step_seconds: float
    memory_bytes: (
        int  # per device, of the shape that needs most: what the step is given and what it needs
    )


def size(components: Components) -> Size:
    """Count parameters and FLOPs, without a device."""
    params = jax.eval_shape(
        functools.partial(init_state, components, build_model(components.architecture))
    ).params
    return Size(
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        costs.non_embedding_params(components),
        round(costs.flops_per_token(components)),
    )


def trial(components: Components, tokenizer: epath.Path | None = None) -> Trial:
    """Compiles the training step for each batch shape and takes some; leaves nothing behind.

    Args:
        components: of a run, which is tried alone.
        tokenizer: where that of the run is; without, it is learned.

    Raises:
        UserError: whatever training would refuse.
    """
    with tempfile.TemporaryDirectory() as directory:
        data = load_data(
            components.pipeline, tokenizer or epath.Path(directory), lambda line: None, ('train',)
        )
    program = make_program(components)
    counts = collections.Counter(
        (planned.rows, planned.length)
        for planned in map(data.plan.step, range(min(COUNTED_STEPS, data.steps_per_epoch)))
    )
    batches: dict[tuple[int, int], Any] = {}
    for batch in itertools.islice(
        data.train_iterator(program.partitioner.local_rows, program.rows_multiple), COUNTED_STEPS
    ):
        batches.setdefault(batch.shape, batch)
        if len(batches) == len(counts):
            break
    traced = build_model(costs.portable(components.architecture))
    state, flops, times, memory = program.init_state(), 0.0, 0.0, 0
    for (planned_rows, length), count in counts.items():
        rows, share = padded_rows(planned_rows, program.rows_multiple), count / counts.total()
        batch = program.place(batches[rows, length])
        step_ = program.train_step.lower(program.abstract, batch).compile()
        needed = step_.memory_analysis()
        memory = max(memory, needed.argument_size_in_bytes + needed.temp_size_in_bytes)
        state, taken = _timed(step_, state, batch)
        times += share * taken
        flops += share * 3 * costs.forward_flops(traced, program.abstract.params, rows, length)
    return Trial(flops, times, memory)


def _timed(compiled: Callable, state: Any, batch: Batch) -> tuple[Any, float]:
    """Takes steps, each of which consumes the state of the one before; (the last state, seconds of
    a step).
    """

    def update() -> Any:
        nonlocal current
        current, _ = compiled(current, batch)
        return current

    current = state
    seconds(update)  # the first is slower
    taken = []
    while len(taken) < MIN_STEPS or (sum(taken) < ENOUGH_S and len(taken) < MAX_STEPS):
        taken.append(seconds(update))
    return current, statistics.median(taken)


def logged(path: epath.Path) -> float:
    """The seconds that a run's metrics.jsonl tells of: of steps side by side its share of each, and
    evaluations.
    """
    return sum(
        event.get('seconds', 0.0) for event in map(json.loads, path.read_text().splitlines())
    )

"""What a config costs on this machine: its size, its memory, and the time of its training step, tried out."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import statistics
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath

from transformer_jax import costs, step
from transformer_jax.config import ExperimentConfig
from transformer_jax.data import load_data
from transformer_jax.data.batching import padded_rows
from transformer_jax.models import build
from transformer_jax.parallel import Parallel
from transformer_jax.timing import seconds

TRIED = 3  # steps of each batch shape that are timed
LOOKED_AT = 200  # steps of an epoch, for how often each batch shape comes


@dataclasses.dataclass(frozen=True)
class Size:
    """What the config alone tells."""

    params: int
    non_embedding_params: int
    flops: int  # forward, per target token, see `costs`


@dataclasses.dataclass(frozen=True)
class Trial:
    """Some steps on real batches; means over the batch shapes as often as they come."""

    step_flops: float
    step_seconds: float


def size(config: ExperimentConfig) -> Size:
    """Parameters and FLOPs, counted without a device."""
    params = jax.eval_shape(functools.partial(step.init_state, config, build(config))).params
    return Size(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)), costs.non_embedding_params(config),
                round(costs.flops_per_token(config)))


def memory_bytes(config: ExperimentConfig) -> int:
    """Bytes per device of the compiled training step on its largest batch: what it is given and what it needs."""
    parallel = Parallel(config, build(config))
    rows, length = max(costs.batch_shapes(config), key=math.prod)
    batch = step.dummy_batch(padded_rows(rows, parallel.rows_multiple), length, config.model.kind)
    batch = parallel.put_train(jax.tree.map(np.asarray, batch))
    memory = parallel.train_step.lower(parallel.abstract, batch).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def trial(config: ExperimentConfig) -> Trial:
    """Takes a few steps of each batch shape; leaves nothing behind.

    Raises:
        UserError: whatever training would refuse.
    """
    with tempfile.TemporaryDirectory() as directory:
        data = load_data(config, epath.Path(directory), lambda line: None, ('train',))
    parallel = Parallel(config, build(config))
    batches: dict[tuple[int, int], Any] = {}
    counts: collections.Counter = collections.Counter()
    for number in range(min(LOOKED_AT, data.steps_per_epoch)):
        planned = data.plan.step(number)
        counts[planned.rows, planned.length] += 1
    for batch in itertools.islice(data.train_iterator(parallel.local_rows, parallel.rows_multiple), LOOKED_AT):
        batches.setdefault((batch.targets_BT if batch.source_BS is None else batch.source_BS).shape, batch)
        if len(batches) == len(counts):
            break
    traced = build(dataclasses.replace(config, model=costs.PortableConfig(**dataclasses.asdict(config.model))))
    state, flops, times = parallel.init_state(), 0.0, 0.0
    for (rows, length), count in counts.items():
        rows, share = padded_rows(rows, parallel.rows_multiple), count / counts.total()
        batch, taken = parallel.put_train(batches[rows, length]), []
        for _ in range(1 + TRIED):
            def update(batch=batch):
                nonlocal state  # The step consumes the one it is given.
                state, _ = parallel.train_step(state, batch)
                return state
            taken.append(seconds(update))
        times += share * statistics.median(taken[1:])
        flops += share * 3 * costs.forward_flops(traced, parallel.abstract.params, rows, length)
    return Trial(flops, times)


def logged(path: epath.Path, together: int = 1) -> tuple[float | None, float]:
    """(seconds of a step, the median; seconds in all) of what a run's metrics.jsonl tells.

    A step's seconds are None where fewer than two lines of training tell them: the first has compiled. Of runs that
    were trained `together` each has its share of the seconds in all.
    """
    steps, spent, last = [], 0.0, 0
    for event in map(json.loads, path.read_text().splitlines()):
        if event['split'] == 'train':
            steps.append(1 / event['steps_per_second'])
            spent += (event['step'] - last) / event['steps_per_second'] / together
            last = event['step']
        else:
            spent += event.get('seconds', 0.0)
    return statistics.median(steps[1:]) if len(steps) > 1 else None, spent

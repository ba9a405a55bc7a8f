"""The cost of seeds side by side: a step of all seeds in one program, and a step of each alone.

    PYTHONPATH=. python experiments/seed_groups/cost.py [SEEDS] [--config.KEY=VALUE …]

Trains configs/number_words.py:en-de with rows of 24 tokens in one process: as
`train.num_seeds=SEEDS` does (default 5), and seed by seed with the program that all of them share,
in alternating rounds. It prints one JSON object: seconds of compiling, the median seconds of a step
of all seeds, and the ratio of each round. Start-up (imports, data, compilation) is not in it: a
group pays it once, single runs once each; with a compilation cache they share the compiling.
"""

import ast
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time

import jax

from configs.number_words import get_config
from transformer_jax.config import from_config_dict, resolve
from transformer_jax.data import load_data
from transformer_jax.host_memory import keep_freed_memory
from transformer_jax.storage.provenance import describe_machine
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import SeedGroupProgram
from transformer_jax.training.seed_groups import seed_configs

ROUNDS, STEPS = 8, 1


def value_of(text: str) -> object:
    """Read a number or a tuple; other text stays text."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def main(seeds: int, overrides: dict[str, object]) -> None:
    """Measure both ways and print one JSON object."""
    keep_freed_memory()
    machine = describe_machine()
    config = get_config('en-de')
    config.data.batching = 'buckets(lengths=(24,))'
    config.train.num_seeds = seeds
    config.update_from_flattened_dict(overrides)
    config = from_config_dict(config)
    members = seed_configs(config)
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(
            resolve(config).pipeline, Workdir(folder).tokenizer_path, lambda line: None, ('train',)
        )
    orders = [data.reordered(member.train.seed) for member in members]
    together = SeedGroupProgram(resolve(config), members)
    one = together.single
    rows = together.partitioner.local_rows, together.rows_multiple
    stacked = list(itertools.islice(orders[0].stacked_iterator(orders[1:], *rows), STEPS))
    alone = [
        list(
            itertools.islice(
                order.train_iterator(one.partitioner.local_rows, one.rows_multiple), STEPS
            )
        )
        for order in orders
    ]
    live = together.place_live([True] * seeds)
    state, states = together.init_state(), [one.init_state(member.train.seed) for member in members]

    def group() -> None:
        nonlocal state
        for batch in stacked:
            state, metrics = together.train_step(state, together.place(batch), live)
        jax.block_until_ready((state, metrics))

    def each() -> None:
        for index, batches in enumerate(alone):
            for batch in batches:
                states[index], metrics = one.train_step(states[index], one.place(batch))
            jax.block_until_ready((states[index], metrics))

    def seconds(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first = {'alone': seconds(each), 'together': seconds(group)}
    times = [(seconds(each), seconds(group)) for _ in range(ROUNDS)]
    steps = {
        name: statistics.median(column) / STEPS
        for name, column in zip(first, zip(*times, strict=True), strict=True)
    }
    ratios = [after / before for before, after in times]
    print(
        json.dumps(
            {
                'machine': machine,
                'seeds': seeds,
                'rows': list(alone[0][0].targets_BT.shape),
                'compile_seconds': {name: first[name] - steps[name] * STEPS for name in first},
                'step_seconds_of_all_seeds': steps,
                'ratio': statistics.median(ratios),
                'ratio_range': [min(ratios), max(ratios)],
            },
            indent=1,
        )
    )


if __name__ == '__main__':
    given = (
        argument.removeprefix('--config.').split('=', 1)
        for argument in sys.argv[1:]
        if '=' in argument
    )
    keys = {key: value_of(value) for key, value in given}
    counts = [int(argument) for argument in sys.argv[1:] if '=' not in argument]
    main(*(counts or [5]), keys)

"""The command `evaluate`: scores on a split, or on each length by itself."""

import json

from absl import flags

from transformer_jax.cli.flags import (
    Flags,
    define_decoding,
    define_json,
    log,
    open_trained,
    whole_numbers,
)


def define_evaluate(values: Flags) -> None:
    """Define the flags of `evaluate`."""
    define_decoding(values)
    flags.DEFINE_enum('split', 'test', ['validation', 'test'], 'What to score.', flag_values=values)
    flags.DEFINE_list(
        'lengths',
        [],
        'Score each of these lengths by itself; they may be beyond those of training.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'out',
        '',
        'The picture of --lengths; by default lengths-SPLIT.png in the workdir.',
        flag_values=values,
    )
    define_json(values)


def run_evaluate(values: Flags) -> None:
    """Score a trained model on a split and print the scores."""
    if values.lengths:
        _evaluate_lengths(values)
        return
    from transformer_jax.evaluation.evaluator import table

    result = open_trained(values, splits=(values.split,)).evaluate(values.split)
    print(json.dumps(result) if values.json else table(result))


def _evaluate_lengths(values: Flags) -> None:
    from transformer_jax.evaluation import by_length

    lengths = whole_numbers(values, 'lengths')
    trained = open_trained(values)
    rows = by_length.by_length(trained, values.split, lengths)
    print(json.dumps(rows) if values.json else by_length.table(rows))
    path = values.out or trained.workdir.path / f'lengths-{values.split}.png'
    log(f'wrote {by_length.draw(rows, trained.data.batching.row_lengths()[-1], path)}')

"""The command `evaluate`: scores on a split, or on each length by itself."""

from absl import flags
from etils import epath

from transformer_jax.cli.flags import (
    Flags,
    define_decoding,
    define_json,
    define_moved_data,
    given_decoding,
    log,
    open_trained,
    whole_numbers,
)
from transformer_jax.errors import ConfigError
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.processes import write_once


def define_evaluate(values: Flags) -> None:
    """Define the flags of `evaluate`."""
    define_decoding(values)
    define_moved_data(values)
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
    from transformer_jax.display.evaluations import evaluation_table
    from transformer_jax.inference.requirements import require_decoding

    trained = open_trained(values, splits=(values.split,))
    require_decoding(trained, given_decoding(values))
    found = trained.measure(values.split)
    # Printed first: what was computed is not lost where it cannot be written.
    print(to_json(found.scores) if values.json else evaluation_table(found.scores), flush=True)
    trained.write_evaluation(found)


def _evaluate_lengths(values: Flags) -> None:
    from transformer_jax.display.evaluations import draw_lengths, lengths_table
    from transformer_jax.display.figures import check_figure
    from transformer_jax.evaluation.by_length import by_length

    lengths = whole_numbers(values, 'lengths')
    if given := given_decoding(values):
        raise ConfigError(
            f'--{next(iter(given))} has no effect on --lengths, which decodes nothing'
        )
    if values.out:
        check_figure(epath.Path(values.out))
    trained = open_trained(values)
    trained.require_same_data([values.split])
    rows = by_length(trained.evaluator, trained.params, values.split, lengths)
    print(to_json(rows) if values.json else lengths_table(rows), flush=True)
    path = values.out or trained.workdir.path / f'lengths-{values.split}.png'
    longest = trained.data.batching.row_lengths()[-1]
    write_once(lambda: log(f'wrote {draw_lengths(rows, longest, path)}'))

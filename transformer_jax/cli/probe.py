"""The command `probe`: its flags, and how it is run."""

import json
import sys

from absl import flags

from transformer_jax.errors import ConfigError

Flags = flags.FlagValues


def define_probe(values: Flags) -> None:
    """The flags of `probe`."""
    flags.DEFINE_string('workdir', '', 'The directory that holds all of a run.', flag_values=values)
    flags.DEFINE_string(
        'checkpoint',
        '',
        'best, last, avg:N or a step; by default the best, or the last where none was evaluated.',
        flag_values=values,
    )
    flags.DEFINE_bool(
        'all_checkpoints',
        False,
        'Every checkpoint that there is (checkpoint.keep says how many).',
        flag_values=values,
    )
    flags.DEFINE_enum(
        'split', 'validation', ['validation', 'test'], 'What to read.', flag_values=values
    )
    flags.DEFINE_integer(
        'batches',
        4,
        'How many of its batches, from short rows to long ones.',
        1,
        flag_values=values,
    )
    flags.DEFINE_bool('json', False, 'Print what probes.json gets.', flag_values=values)
    flags.DEFINE_string(
        'out', '', 'A picture; by default probes.png in the workdir.', flag_values=values
    )


def run_probe(values: Flags) -> None:
    """Probes, prints the numbers, and writes probes.json and a picture."""
    if not values.workdir:
        raise ConfigError('--workdir is missing')
    if values.checkpoint and values.all_checkpoints:
        raise ConfigError(
            f'--checkpoint={values.checkpoint} is one of --all_checkpoints: give either'
        )

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    from transformer_jax.evaluation.evaluator import Trained
    from transformer_jax.inference import probes
    from transformer_jax.profiling import timing

    trained = Trained(values.workdir, values.checkpoint, log, {}, (values.split,))
    result = probes.probe(trained, values.split, values.batches, values.all_checkpoints)
    if values.json:
        print(json.dumps(result))
    else:
        timing.console().print(probes.table(result))
    folder = trained.workdir.path
    log(f'wrote {probes.save(result, folder)}')
    log(f'wrote {probes.draw(result, values.out or folder / "probes.png")}')

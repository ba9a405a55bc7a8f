"""What the commands share: their rows, common flags, and how flags are read."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from transformer_jax.errors import ConfigError

if TYPE_CHECKING:
    from transformer_jax.inference.trained_run import TrainedRun
    from transformer_jax.schema import ExperimentConfig

Flags = flags.FlagValues


class Command(NamedTuple):
    """One command, a row of COMMANDS."""

    help: str
    define: Callable[[Flags], None]
    run: Callable[[Flags], None]
    example: str  # a command line
    argument: str = ''  # the flag that an argument without dashes sets


def print_remark(message: str) -> None:
    """Print a remark to standard error, since standard output is for results."""
    print(message, file=sys.stderr, flush=True)


def log(message: str) -> None:
    """Print a remark to standard error, from process 0 alone."""
    if jax.process_index() == 0:
        print_remark(message)


def define_config(values: Flags) -> None:
    """Define --config, which takes a file, and --config.KEY=VALUE."""
    config_flags.DEFINE_config_file(
        'config',
        None,
        'The experiment: FILE.py[:ARG]; override with --config.KEY=VALUE.',
        flag_values=values,
    )


def define_workdir(values: Flags) -> None:
    """Define the flag --workdir, which names one run."""
    flags.DEFINE_string(
        'workdir', '', 'The directory that holds all files of a run.', flag_values=values
    )


def define_trained(values: Flags) -> None:
    """Define --workdir, --checkpoint, --mesh and the processes, for commands that open a run."""
    define_workdir(values)
    flags.DEFINE_string(
        'checkpoint',
        '',
        'Takes best, last, avg:N or a step; by default the best, or the last if none was '
        'evaluated.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'mesh',
        '',
        "Devices of each mesh axis, as fsdp=4,tensor=2; by default the run's own parallel.mesh "
        'where it fits the devices here, else all on data.',
        flag_values=values,
    )
    define_processes(values)


def define_changed_data(values: Flags) -> None:
    """Define the flag --allow_changed_data."""
    flags.DEFINE_bool(
        'allow_changed_data',
        False,
        'Go on although the data is not that of the checkpoint, and say so.',
        flag_values=values,
    )


def define_moved_data(values: Flags) -> None:
    """Define --source_dir and --allow_changed_data, for commands that read a split."""
    flags.DEFINE_string(
        'source_dir', '', 'Where the data lies now; replaces data.source_dir.', flag_values=values
    )
    define_changed_data(values)


def define_beam(values: Flags) -> None:
    """Define the flag --beam, a key of beam search."""
    flags.DEFINE_integer(
        'beam', None, 'Beam search; replaces decode.beam; 1: greedy.', 1, flag_values=values
    )


def define_decoding(values: Flags) -> None:
    """Define what `define_trained` does, --beam and --length_penalty."""
    define_trained(values)
    define_beam(values)
    flags.DEFINE_float(
        'length_penalty',
        None,
        'Beam search; replaces decode.length_penalty.',
        flag_values=values,
    )


def define_processes(values: Flags) -> None:
    """Define --distributed, --coordinator, --num_processes and --process_id."""
    flags.DEFINE_bool(
        'distributed',
        False,
        "Join the other processes that the cluster's environment names (SLURM, TPU, …).",
        flag_values=values,
    )
    flags.DEFINE_string(
        'coordinator',
        '',
        'Join other processes through HOST:PORT of process 0.',
        flag_values=values,
    )
    flags.DEFINE_integer(
        'num_processes', 1, 'How many processes, with --coordinator.', 1, flag_values=values
    )
    flags.DEFINE_integer(
        'process_id',
        0,
        'The number of this process from 0, with --coordinator.',
        0,
        flag_values=values,
    )


def define_json(values: Flags) -> None:
    """Define the flag --json, which prints an object."""
    flags.DEFINE_bool('json', False, 'Print one JSON object.', flag_values=values)


def read_config(values: Flags) -> 'ExperimentConfig':
    """Return the experiment of --config.

    Raises:
        ConfigError: it is missing, or its file does not return a ConfigDict with the right keys.
    """
    from transformer_jax.config import from_config_dict

    if not values['config'].present:
        raise ConfigError(
            '--config is missing: give a file of configs/, as in '
            '--config=configs/number_words.py:en-de'
        )
    if not isinstance(values.config, ml_collections.ConfigDict):
        raise ConfigError(
            f'--config: get_config returned {type(values.config).__name__}, not a ConfigDict'
        )
    return from_config_dict(values.config)


def required(values: Flags, name: str) -> Any:
    """Return the value of a flag that must be given; raises ConfigError if it is not."""
    if not values[name].value:
        raise ConfigError(f'--{name} is missing')
    return values[name].value


def whole_numbers(values: Flags, name: str) -> list[int]:
    """Return the positive whole numbers of a list flag; raises ConfigError if it has others."""
    texts: list[str] = values[name].value or []
    if not all(text.isdecimal() and int(text) for text in texts):
        raise ConfigError(f'--{name}={",".join(texts)}: whole numbers, separated by commas')
    return [int(text) for text in texts]


def given_decoding(
    values: Flags, names: tuple[str, ...] = ('beam', 'length_penalty')
) -> dict[str, Any]:
    """Return the values of the flags, of those that replace keys of `decode`, that are given."""
    return {name: values[name].value for name in names if values[name].value is not None}


def open_trained(
    values: Flags,
    replaced: tuple[str, ...] = ('beam', 'length_penalty'),
    splits: tuple[str, ...] = (),
) -> 'TrainedRun':
    """Open the run of --workdir at --checkpoint.

    Args:
        values: the flags of the command.
        replaced: flags that replace the decode.… keys of the same names where they are given.
        splits: the splits of the data to load.
    """
    from transformer_jax.inference.trained_run import TrainedRun

    given = given_decoding(values, replaced)
    moved: dict[str, Any] = {
        name: values[name].value for name in ('source_dir', 'allow_changed_data') if name in values
    }
    workdir = required(values, 'workdir')
    return TrainedRun(workdir, values.checkpoint, log, given, splits, mesh=values.mesh, **moved)

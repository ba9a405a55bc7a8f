"""The command `train`."""

from absl import flags

from transformer_jax.cli.flags import (
    Flags,
    define_changed_data,
    define_config,
    define_workdir,
    log,
    read_config,
    required,
)
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.joining import join, join_cluster


def define_train(values: Flags) -> None:
    """Define the flags of `train`."""
    define_config(values)
    define_workdir(values)
    define_changed_data(values)
    flags.DEFINE_string(
        'profile',
        '',
        'START:STOP: trace the steps after START up to STOP, and print the ten operations that '
        'took most time.',
        flag_values=values,
    )
    flags.DEFINE_list(
        'trackers',
        [],
        'Send the numbers of the run to these too: wandb, mlflow, aim, trackio, or a class of your '
        'own, as in my_trackers.Mine.',
        flag_values=values,
    )
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


def join_processes(values: Flags) -> None:
    """Join the other processes of the run, where the flags name any.

    Raises:
        ConfigError: flags that do not fit together, or processes that cannot be joined.
    """
    if values.distributed and values.coordinator:
        raise ConfigError('--distributed finds the other processes itself: leave out --coordinator')
    if values.distributed:
        join_cluster()
    elif values.coordinator:
        join(values.coordinator, values.num_processes, values.process_id)
    elif values['num_processes'].present or values['process_id'].present:
        raise ConfigError('--num_processes and --process_id need --coordinator=HOST:PORT')


def run_train(values: Flags) -> None:
    """Train, or resume the run of the workdir, and print the best evaluation."""
    # First: the others hear of what is wrong here.
    join_processes(values)
    config, workdir = read_config(values), required(values, 'workdir')
    from transformer_jax.efficiency.profile import Window
    from transformer_jax.training.recording import Recording
    from transformer_jax.training.train import train

    profile = Window.parse(values.profile) if values['profile'].present else None
    recording = Recording(profile, tuple(dict.fromkeys(values.trackers)))
    best = train(config, workdir, log, values.allow_changed_data, recording)
    log(
        f'done: {workdir}'
        + (f'; best {best["metric"]} {best["value"]:.4f} at step {best["step"]}' if best else '')
    )

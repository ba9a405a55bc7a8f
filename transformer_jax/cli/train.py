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


def define_train(values: Flags) -> None:
    """Define the flags of `train`."""
    define_config(values)
    define_workdir(values)
    define_changed_data(values)
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


def run_train(values: Flags) -> None:
    """Train, or resume the run of the workdir, and print the best evaluation."""
    config, workdir = read_config(values), required(values, 'workdir')
    from transformer_jax.training.train import train

    best = train(config, workdir, log, values.allow_changed_data)
    log(
        f'done: {workdir}'
        + (f'; best {best["metric"]} {best["value"]:.4f} at step {best["step"]}' if best else '')
    )

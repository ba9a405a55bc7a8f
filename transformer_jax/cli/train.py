"""The command `train`."""

from transformer_jax.cli.flags import (
    Flags,
    define_changed_data,
    define_config,
    define_processes,
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
    define_processes(values)


def run_train(values: Flags) -> None:
    """Train, or resume the run of the workdir, and print the best evaluation."""
    config, workdir = read_config(values), required(values, 'workdir')
    from transformer_jax.training.train import train

    best = train(config, workdir, log, values.allow_changed_data)
    log(
        f'done: {workdir}'
        + (f'; best {best["metric"]} {best["value"]:.4f} at step {best["step"]}' if best else '')
    )

"""The command `train`."""

from absl import flags

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


def run_train(values: Flags) -> None:
    """Train, or resume the run of the workdir, and print the best evaluation."""
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

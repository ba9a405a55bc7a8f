"""The command `inspect`: the cost of a config, or the state of a workdir."""

from absl import flags

from transformer_jax.cli.flags import Flags, define_config, define_workdir, read_config


def define_inspect(values: Flags) -> None:
    """Define the flags of `inspect`."""
    define_config(values)
    define_workdir(values)
    flags.DEFINE_integer(
        'devices',
        None,
        'Devices for parallel.mesh; by default those of this machine.',
        1,
        1_000_000,
        flag_values=values,
    )


def run_inspect(values: Flags) -> None:
    """Print the report of a workdir if one is given, else that of the config."""
    from transformer_jax.profiling import inspect

    if values.workdir:
        inspect.inspect_workdir(values.workdir)
    else:
        inspect.inspect_config(read_config(values), values.devices)

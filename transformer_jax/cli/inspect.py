"""The command `inspect`: the cost of a config, its plan, or the state of a workdir."""

import jax
from absl import flags

from transformer_jax.cli.flags import (
    Flags,
    define_config,
    define_json,
    define_workdir,
    log,
    read_config,
)
from transformer_jax.errors import ConfigError

PLANNED = ('train', 'evaluate', 'decode')
OF_PLANS = ('command', 'price', 'json')  # flags that mean something with --topology alone


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
    flags.DEFINE_string(
        'topology',
        '',
        'Compile for accelerators that are not here: v5e:4x4, 2*v5e:4x4, v4:2x2x1, h100:8.',
        flag_values=values,
    )
    flags.DEFINE_enum(
        'command', 'train', PLANNED, 'What is compiled for --topology.', flag_values=values
    )
    flags.DEFINE_float(
        'price', None, 'US dollars for an hour of one chip of --topology.', flag_values=values
    )
    define_json(values)


def run_inspect(values: Flags) -> None:
    """Print the plan for a topology, or the report of a workdir, or that of the config."""
    from transformer_jax.profiling import inspect

    if values.topology:
        _run_plan(values)
        return
    given = [name for name in OF_PLANS if values[name].present]
    if given:
        raise ConfigError(f'--{given[0]} belongs to a plan: give --topology=v5e:4x4 too')
    if values.workdir:
        inspect.inspect_workdir(values.workdir)
    else:
        inspect.inspect_config(read_config(values), values.devices)


def _run_plan(values: Flags) -> None:
    """Print the plan of the config for --topology."""
    from transformer_jax.partitioning.topologies import compute_on_the_cpu
    from transformer_jax.profiling.plan import make_plan
    from transformer_jax.profiling.plan_tables import print_plan

    for name in ('workdir', 'devices'):
        if values[name].present:
            raise ConfigError(f'--topology and --{name} exclude one another')
    price = values.price
    if price is not None and not 0 < price < float('inf'):
        raise ConfigError(f'--price={price}: more than 0 US dollars for an hour of one chip')
    # Reading the configuration starts JAX's backend.
    compute_on_the_cpu()
    # The time to compile is a part of the plan, so nothing may come from the cache.
    jax.config.update('jax_enable_compilation_cache', False)
    plan = make_plan(read_config(values), values.topology, values.command, price or 0.0, log)
    print_plan(plan, values.json)

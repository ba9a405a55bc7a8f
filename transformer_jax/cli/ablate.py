"""The command `ablate`: its flags, and how it is run."""

import sys

from absl import flags
from ml_collections import config_flags

from transformer_jax.config import default_config
from transformer_jax.errors import ConfigError

Flags = flags.FlagValues


def define_ablate(values: Flags) -> None:
    """The flags of `ablate`."""
    flags.DEFINE_string(
        'experiment', '', 'FILE.py[:SCALE], also without --experiment=.', flag_values=values
    )
    config_flags.DEFINE_config_dict(
        'config',
        default_config(),
        'Written --config.KEY=VALUE: changes the base of all variants.',
        flag_values=values,
    )
    flags.DEFINE_string('root', '', 'The directory that holds all runs.', flag_values=values)
    flags.DEFINE_integer(
        'seeds', None, 'How many; by default as the experiment says.', 1, flag_values=values
    )
    flags.DEFINE_list('only', [], 'These variants alone, divided by commas.', flag_values=values)
    flags.DEFINE_string(
        'shard', '1/1', 'i/n: the i-th of n parts of the runs, for job arrays.', flag_values=values
    )
    flags.DEFINE_integer(
        'replicas',
        0,
        'How many seeds of a variant may be trained in one program; 0: all. Only where '
        'its batches have one shape.',
        0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        'dry_run',
        False,
        'Only print the plan, with the time of some steps; write nothing.',
        flag_values=values,
    )


def run_ablate(values: Flags) -> None:
    """Runs what is missing, or prints the plan."""
    for name in ('experiment', 'root'):
        if not values[name].value:
            raise ConfigError(
                f'--{name} is missing, as in: transformer-jax ablate experiments/demo/number_words.py '
                '--root=runs/demo_ablation'
            )

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    from transformer_jax.ablation import experiment, plan
    from transformer_jax.ablation import runner as ablate
    from transformer_jax.profiling import timing

    asked = experiment.load(values.experiment).with_base(
        config_flags.get_override_values(values['config'])
    )
    plan = plan.Plan(asked, values.experiment, values.root, values.seeds or 0)
    plan.narrow(values.only, values.shard)
    if values.dry_run:
        timing.console().print(ablate.dry_run(plan, log))
    else:
        ablate.ablate(plan, log, values.replicas)

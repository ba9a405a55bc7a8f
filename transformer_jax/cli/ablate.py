"""The command `ablate`: train the variants of an experiment with several seeds."""

from absl import flags
from ml_collections import config_flags

from transformer_jax.cli.flags import Flags, define_processes, log
from transformer_jax.errors import ConfigError


def define_ablate(values: Flags) -> None:
    """Define the flags of `ablate`."""
    from transformer_jax.config import default_config

    flags.DEFINE_string(
        'experiment',
        '',
        'The experiment: FILE.py[:SCALE]; --experiment= may be left out.',
        flag_values=values,
    )
    config_flags.DEFINE_config_dict(
        'config',
        default_config(),
        'Written --config.KEY=VALUE: changes the base of all variants.',
        flag_values=values,
    )
    flags.DEFINE_string('root', '', 'The directory that holds all runs.', flag_values=values)
    flags.DEFINE_list('only', [], 'Only these variants, separated by commas.', flag_values=values)
    flags.DEFINE_string(
        'part',
        '0/1',
        'Written i/n: a part of the runs, for job arrays; i counts from 0, up to n - 1.',
        flag_values=values,
    )
    flags.DEFINE_bool(
        'dry_run',
        False,
        'Only print the plan, with the time of a few steps; write nothing.',
        flag_values=values,
    )
    _define_seeds(values)
    define_processes(values)


def _define_seeds(values: Flags) -> None:
    """Define the flags that say how many seeds are trained, and how."""
    flags.DEFINE_integer(
        'seeds',
        None,
        'How many seeds; by default the number in the experiment.',
        1,
        10_000,
        flag_values=values,
    )
    flags.DEFINE_integer(
        'seeds_per_program',
        0,
        'How many seeds of a variant may be trained in one program; 0: all. More than one only if '
        'all batches of the variant have one shape.',
        0,
        10_000,
        flag_values=values,
    )
    flags.DEFINE_bool(
        'pilot',
        False,
        'Train --seeds seeds (by default 3), and say how many decide each claim and what they '
        'cost; no verdicts are taken yet.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'budget',
        '',
        'For all runs, such as 2h, 45min or 90s: a pilot is run, then as many seeds as decide all '
        'claims, or as the budget pays for.',
        flag_values=values,
    )


def run_ablate(values: Flags) -> None:
    """Train what is missing of an experiment, or print the plan."""
    for name in ('experiment', 'root'):
        if not values[name].value:
            raise ConfigError(
                f'--{name} is missing, as in: transformer-jax ablate '
                'experiments/demo/number_words.py --root=runs/demo_ablation'
            )
    from transformer_jax.ablation import load_experiment, runner
    from transformer_jax.ablation.durations import parse_duration
    from transformer_jax.ablation.pilot_table import pilot_table
    from transformer_jax.ablation.plan import Plan
    from transformer_jax.display.tables import output_console

    overrides = config_flags.get_override_values(values['config'])
    chosen = load_experiment(values.experiment)
    budget = parse_duration(values.budget, '--budget') if values.budget else None
    pilot = values.pilot or budget is not None

    def make_plan(seeds: int, pilot: bool) -> Plan:
        plan = Plan(chosen, values.experiment, values.root, seeds, overrides, pilot)
        plan.narrow(values.only, values.part)
        return plan

    plan = make_plan(values.seeds or 0, pilot)
    if values.dry_run:
        output_console().print(runner.dry_run(plan, log))
        return
    runner.ablate(plan, log, values.seeds_per_program)
    if pilot:
        output_console().print(pilot_table(plan.plan_seeds(budget)))
    if budget is not None:
        runner.ablate(make_plan(0, False), log, values.seeds_per_program)

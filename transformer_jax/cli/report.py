"""The command `report`: its flags, and how it is run."""

import sys
from pathlib import Path

from absl import flags

from transformer_jax.errors import ConfigError

Flags = flags.FlagValues


def define_report(values: Flags) -> None:
    """The flags of `report`."""
    flags.DEFINE_string(
        'results',
        '',
        'The root of an ablation, or its results.json (which tells no curves), also '
        'without --results=.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'out',
        '',
        'Where to write; by default report/ in the root, or a folder beside the file that '
        'has its name.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'readme',
        '',
        'Write no report, but the tables between <!-- begin report: FILE --> and '
        '<!-- end report --> of this README, which lies beside the file.',
        flag_values=values,
    )


def run_report(values: Flags) -> None:
    """Writes a report, or a README's tables."""
    if not values.results:
        raise ConfigError('--results is missing, as in: transformer-jax report runs/demo_ablation')
    from transformer_jax.report.readme import update
    from transformer_jax.report.write import write_report
    from transformer_jax.storage.files import absolute_path

    if values.readme:
        files = [update(Path(values.readme), Path(values.results))]
    else:
        path = absolute_path(values.results)
        beside = path / 'report' if path.is_dir() else path.with_suffix('')
        files = write_report(path, absolute_path(values.out) if values.out else beside)
    for file in files:
        print(f'wrote {file}', file=sys.stderr, flush=True)

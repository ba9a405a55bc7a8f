"""The command `report`: the results of an ablation as tables and figures."""

from pathlib import Path

from absl import flags

from transformer_jax.cli.flags import Flags, print_remark
from transformer_jax.errors import ConfigError


def define_report(values: Flags) -> None:
    """Define the flags of `report`."""
    flags.DEFINE_string(
        'results',
        '',
        'The root of an ablation, or its results.json (which has no curves); --results= may be '
        'left out.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'out',
        '',
        'Where to write; by default report/ in the root, or a folder next to the file and with '
        'its name.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'readme',
        '',
        'Write no report; replace the tables between <!-- begin report: FILE --> and '
        '<!-- end report --> in this README, which must be in the same folder as the file.',
        flag_values=values,
    )


def run_report(values: Flags) -> None:
    """Write a report, or the tables of a README."""
    if not values.results:
        raise ConfigError('--results is missing, as in: transformer-jax report runs/demo_ablation')
    from transformer_jax.report.readme import update_readme
    from transformer_jax.report.write import write_report
    from transformer_jax.storage.paths import absolute_path

    if values.readme:
        files = [update_readme(Path(values.readme), Path(values.results))]
    else:
        path = absolute_path(values.results)
        default = path / 'report' if path.is_dir() else path.with_suffix('')
        files = write_report(path, absolute_path(values.out) if values.out else default)
    for file in files:
        print_remark(f'wrote {file}')

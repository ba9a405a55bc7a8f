"""The command `probe`: measurements of every attention head."""

from absl import flags
from etils import epath

from transformer_jax.cli.flags import (
    Flags,
    define_moved_data,
    define_trained,
    log,
    required,
)
from transformer_jax.errors import ConfigError
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.processes import write_once


def define_probe(values: Flags) -> None:
    """Define the flags of `probe`."""
    define_trained(values)
    define_moved_data(values)
    flags.DEFINE_bool(
        'all_checkpoints',
        False,
        'Probe every checkpoint that exists (checkpoint.keep and .average say how many).',
        flag_values=values,
    )
    flags.DEFINE_enum(
        'split',
        'validation',
        ['validation', 'test'],
        'The split that is read.',
        flag_values=values,
    )
    flags.DEFINE_integer(
        'batches',
        4,
        'How many batches of the split, from short rows to long ones.',
        1,
        flag_values=values,
    )
    flags.DEFINE_bool('json', False, 'Print the contents of probes.json.', flag_values=values)
    flags.DEFINE_string(
        'out', '', 'The picture; by default probes.png in the workdir.', flag_values=values
    )


def run_probe(values: Flags) -> None:
    """Probe the heads, print the numbers, and write probes.json and a picture."""
    workdir = required(values, 'workdir')
    if values.checkpoint and values.all_checkpoints:
        raise ConfigError(
            f'--checkpoint={values.checkpoint} is one of --all_checkpoints: give either'
        )
    from transformer_jax.display.figures import check_figure
    from transformer_jax.display.tables import output_console
    from transformer_jax.inference import probe_display, probes
    from transformer_jax.inference.trained_run import TrainedRun

    if values.out:
        check_figure(epath.Path(values.out))
    # The table shows the newest of all checkpoints.
    checkpoint = 'last' if values.all_checkpoints else values.checkpoint
    trained = TrainedRun(
        workdir,
        checkpoint,
        log,
        {},
        (values.split,),
        values.source_dir,
        values.allow_changed_data,
        values.mesh,
    )
    result = probes.probe(trained, values.split, values.batches, values.all_checkpoints)
    if values.json:
        print(to_json(result), flush=True)
    else:
        output_console().print(probe_display.probe_table(result))
    folder = trained.workdir.path

    def write() -> None:
        log(f'wrote {probes.write_probes(result, folder)}')
        log(f'wrote {probe_display.draw_probes(result, values.out or folder / "probes.png")}')

    write_once(write)

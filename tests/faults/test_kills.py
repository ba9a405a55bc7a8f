"""A run that SIGKILL ends at any moment, also while it starts again, ends as if it had not been.

Each case names the calls before which the process kills itself: one for each start. Then the same
command, in this process, ends with the same bits and the same records as an undisturbed run.
"""

import signal

import jax
import pytest
from helpers.support import experiment, fingerprint, finish, flags, quiet, recorded, start

from transformer_jax.training.train import train

RUN = {'train__steps': 12, 'checkpoint__every': 3, 'checkpoint__keep': 2, 'evaluate__every': 6}

# A train command that kills itself before the call number `count` of a function.
KILLED = """
import importlib, os, signal, sys
where, count = sys.argv.pop(1), int(sys.argv.pop(1))
module, _, path = where.partition(':')
*parents, name = path.split('.')
place = importlib.import_module('transformer_jax.' + module)
for parent in parents:
    place = getattr(place, parent)
function, calls = getattr(place, name), []
def call(*arguments, **options):
    calls.append(name)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)
setattr(place, name, call)
from transformer_jax.cli import main
sys.exit(main())
"""
RARE = pytest.mark.rare
# The calls before which the first start, the second, … are killed: (function, how often called).
KILLS = {
    'before config.json': [('storage.workdir:write_text', 1)],
    'before run.json': [('storage.workdir:write_text', 2)],
    'before the data': [('training.train:load_data', 1)],
    'in the tokenizer': [('data.tokenizers.base:write_bytes', 2)],
    'before the parameters': [('training.programs:TrainProgram.init_state', 1)],
    'before the first step': [('training.programs:TrainProgram.place', 1)],
    'before the first checkpoint': [('storage.checkpoints:Checkpoints.save', 1)],
    'as arrays are written': [('storage.checkpoints:Checkpoints._finish', 2)],
    'before meta.json': [('storage.checkpoints:write_text', 2)],
    'before the manifest': [('storage.manifest:write', 1)],
    'before an old step goes': [('storage.checkpoint_folders:delete_file', 1)],
    'as an old step goes': [('storage.checkpoint_folders:delete_directory', 1)],
    'between two lines': [('storage.metrics_writer:append_line', 5)],
    'in an evaluation': [('evaluation.evaluator:Evaluator.translate', 1)],
    'before the samples': [('training.training_run:TrainingRun.write_samples', 2)],
    'before the scores': [('training.training_run:TrainingRun.take_scores', 2)],
    'before the curves': [('training.training_run:TrainingRun.draw_curves', 1)],
    'before the end is recorded': [('storage.workdir:write_text', 3)],
    'in a step, then in the restore': [
        ('training.programs:TrainProgram.place', 8),
        ('storage.checkpoints:Checkpoints.restore', 1),
    ],
    'in a save, then as the record is cut, then in the save of the same step': [
        ('storage.manifest:write', 2),
        ('storage.metrics_writer:truncate_after', 1),
        ('storage.manifest:write', 1),
    ],
}
OFTEN = {'as arrays are written', 'as an old step goes', 'before the scores'}


@pytest.mark.fault('SIGKILL')
@pytest.mark.parametrize(
    'kills',
    [
        pytest.param(kills, id=moment, marks=pytest.mark.slow if moment in OFTEN else RARE)
        for moment, kills in KILLS.items()
    ],
)
def test_a_killed_run_ends_with_the_same_bits(whole, tmp_path, kills):
    for where, count in kills:
        command = 'train', f'--workdir={tmp_path}', *flags(**RUN)
        process = start(where, str(count), *command, devices=jax.device_count(), code=KILLED)
        finish(process, -signal.SIGKILL)
    train(experiment(**RUN), tmp_path, quiet)
    assert fingerprint(tmp_path) == fingerprint(whole)
    assert recorded(tmp_path) == recorded(whole)
    kept = {path.name for path in (whole / 'checkpoints').iterdir()}
    assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == kept
    # Nothing else is left of the starts that were killed.
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}

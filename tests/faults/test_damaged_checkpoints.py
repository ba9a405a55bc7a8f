"""A damaged file of a checkpoint is named; what reads the newest goes on from the one before.

Each case spoils one file of the newest checkpoint of a finished run. Evaluation takes the step
before, with a warning; the damaged step is refused when it is asked for; the same command of
training makes the step again, with the same bits.
"""

import shutil

import pytest
from helpers.support import experiment, fingerprint, quiet

from transformer_jax.errors import UserError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.training.train import train

FILES = [
    'MANIFEST.json',
    'meta.json',
    'state/_CHECKPOINT_METADATA',
    'state/_METADATA',
    'state/_sharding',
    'state/array_metadatas/process_0',
    'state/manifest.ocdbt',
    'state/d/*',
    'state/ocdbt.process_0/manifest.ocdbt',
    'state/ocdbt.process_0/d/*',
]


def change_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    'emptied': lambda path: path.write_bytes(b''),
    'halved': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    'missing': lambda path: path.unlink(),
    'a bit': change_bit,
    'longer': lambda path: path.write_bytes(path.read_bytes() + b'\0'),
    'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run with the checkpoints 1 and 2, its configuration, and its fingerprint."""
    workdir = tmp_path_factory.mktemp('finished')
    config = experiment(train__steps=2, checkpoint__every=1, evaluate__every=0)
    train(config, workdir, quiet)
    return workdir, config, fingerprint(workdir)


# The others are rare: each case trains a step.
OFTEN = ('halved',)


@pytest.mark.fault('damaged checkpoint files')
@pytest.mark.parametrize(
    'damage',
    [
        pytest.param(damage, marks=pytest.mark.slow if damage in OFTEN else pytest.mark.rare)
        for damage in DAMAGES
    ],
)
@pytest.mark.parametrize('name', FILES)
def test_the_step_before_is_taken(finished, name, damage, tmp_path, caplog):
    run, config, sound = finished
    workdir = shutil.copytree(run, tmp_path / 'run')
    path = sorted((workdir / 'checkpoints' / '2').glob(name))[0]
    DAMAGES[damage](path)
    torn = path.name == 'MANIFEST.json' and damage == 'missing'  # as one that was never completed

    assert TrainedRun(workdir, 'last', quiet, {}).steps == (1,)
    assert torn or path.name in caplog.text
    with pytest.raises(UserError) as refused:
        TrainedRun(workdir, '2', quiet, {})
    line = str(refused.value)
    assert ('there is no step 2' if torn else path.name) in line
    assert '\n' not in line
    train(config, workdir, quiet)
    assert fingerprint(workdir) == sound

"""What others leave in a folder of checkpoints neither damages one nor stops a run."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.checkpoints import Checkpoints

STATE = {'params': {'x': jnp.arange(4.0)}}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, STATE, {'best': None})
        checkpoints.wait()


@pytest.fixture
def folder(tmp_path) -> Path:
    save(Checkpoints(tmp_path / 'checkpoints', keep=3), 1, 2)
    return tmp_path / 'checkpoints'


@pytest.mark.parametrize(
    'name',
    [
        '2/.DS_Store',
        '2/._meta.json',
        '2/.nfs000000000a1b2c3d00000001',
        '2/state/.nfs000000000a1b2c3d00000001',
        '2/state/d/.DS_Store',
        '2/Thumbs.db',
        '2/state/desktop.ini',
        '2/.ipynb_checkpoints/meta-checkpoint.json',
        '2/@eaDir/meta.json',
        '2/.directory',
        '.DS_Store',
        'notes.txt',
        '.snapshot/1/meta.json',
        'lost+found/x',
        '2 copy/meta.json',
        '02/meta.json',
    ],
)
def test_a_file_of_others_is_ignored_and_kept(name, folder):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('x')
    checkpoints = Checkpoints(folder, keep=3)
    step, *_ = checkpoints.restore(jax.eval_shape(lambda: STATE))
    assert step == 2
    save(checkpoints, 3)
    assert checkpoints.valid_steps() == [1, 2, 3]
    assert path.read_text() == 'x'


@pytest.mark.parametrize('name', ['2/state/extra', '2/notes.txt', '2/state/MANIFEST.json'])
def test_a_file_that_could_be_one_of_ours_is_damage(name, folder):
    (folder / name).write_text('x')
    with pytest.raises(WorkdirError, match=r'is not in MANIFEST\.json'):
        Checkpoints(folder, keep=3).restore(jax.eval_shape(lambda: STATE), 2)


@pytest.mark.parametrize('call', ['rmtree', 'unlink'])
@pytest.mark.parametrize('number', [1, 13, 16, 39])  # EPERM, EACCES, EBUSY, ENOTEMPTY
def test_an_old_step_that_cannot_be_removed_is_a_warning(call, number, folder, monkeypatch, caplog):
    remove = getattr(type(epath.Path(folder)), call)

    def fails(path, *arguments, **options):
        if str(path).startswith(str(folder / '1')):
            raise OSError(number, os.strerror(number), str(path))
        return remove(path, *arguments, **options)

    checkpoints = Checkpoints(folder, keep=2)
    monkeypatch.setattr(type(epath.Path(folder)), call, fails)
    save(checkpoints, 3)
    assert checkpoints.valid_steps()[-2:] == [2, 3]
    assert f'cannot remove the old checkpoint {folder}/1' in caplog.text
    save(checkpoints, 4)  # Which tries again, and goes on.
    assert checkpoints.valid_steps()[-1] == 4


def test_a_damaged_older_step_does_not_stop_retention(folder):
    (folder / '2' / manifest.NAME).write_text('[' * 100_000)
    checkpoints = Checkpoints(folder, keep=1)
    save(checkpoints, 3)
    assert checkpoints.valid_steps() == [3]

"""A run deletes its old checkpoints while another program reads them: that is no damage."""

import shutil

import jax.numpy as jnp
import pytest

from transformer_jax.errors import WorkdirError
from transformer_jax.storage import checkpoint_folders, checkpoints, manifest
from transformer_jax.storage.checkpoints import Checkpoints

STATE = {'params': {'w': jnp.arange(4.0)}}
ABSTRACT = {'w': STATE['params']['w']}


@pytest.fixture
def saved(tmp_path):
    made = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        made.save(step, STATE, {'best': None})
    made.wait()
    return Checkpoints(tmp_path, keep=3, read_only=True)


# The function before whose call the step is deleted, as its run does it.
MOMENTS = [
    (manifest, '_recorded'),
    (manifest, '_digests'),
    (checkpoint_folders, 'require_step'),
    (checkpoints, 'check_same_arrays'),
]


@pytest.mark.parametrize(('place', 'name'), MOMENTS)
def test_the_line_says_that_it_was_deleted(saved, monkeypatch, place, name):
    function = getattr(place, name)

    def delete_and_call(*arguments):
        shutil.rmtree(saved.path(1), ignore_errors=True)
        return function(*arguments)

    monkeypatch.setattr(place, name, delete_and_call)
    with pytest.raises(WorkdirError) as error:
        saved.params(ABSTRACT, [1])
    assert f'{saved.path(1)} has just been deleted, as a run deletes' in str(error.value)
    assert 'damaged' not in str(error.value)


def test_a_file_that_is_missing_is_damage(saved):
    (saved.path(1) / 'meta.json').unlink()
    with pytest.raises(WorkdirError, match=r'checkpoint .*/1 is damaged: meta.json is missing'):
        saved.params(ABSTRACT, [1])

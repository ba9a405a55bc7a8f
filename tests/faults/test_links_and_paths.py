"""Links among the files of a run, and names of workdirs that not every library can write."""

import json
import os

import pytest
from etils import epath
from helpers.support import experiment, quiet

from transformer_jax.errors import ConfigError
from transformer_jax.storage import manifest
from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.storage.files import delete_directory
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train import train


def make_step(path) -> None:
    path.mkdir(parents=True)
    record = {'step': int(path.name), 'meta': {'best': None}, 'arrays': {}}
    (path / 'meta.json').write_text(json.dumps(record))
    manifest.write(path)


@pytest.mark.parametrize('torn', [False, True])
def test_retention_removes_the_link_to_a_checkpoint_alone(tmp_path, torn):
    elsewhere, checkpoints = tmp_path / 'elsewhere' / '1', tmp_path / 'run' / 'checkpoints'
    make_step(elsewhere)
    make_step(checkpoints / '2')
    (checkpoints / '1').symlink_to(elsewhere)
    if torn:
        (elsewhere / manifest.NAME).unlink()
    before = sorted(path.name for path in elsewhere.iterdir())
    folders = CheckpointFolders(checkpoints, keep=1)
    folders.remove_steps_not_kept()
    folders.make_room(3)
    assert sorted(path.name for path in checkpoints.iterdir()) == ['2', '3']
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_a_link_to_nothing_is_removed(tmp_path):
    (tmp_path / '1').symlink_to(tmp_path / 'nowhere')
    CheckpointFolders(tmp_path, keep=1).make_room(1)
    assert (tmp_path / '1').is_dir()


def test_deleting_a_link_leaves_the_folder(tmp_path):
    (tmp_path / 'vocabulary').mkdir()
    (tmp_path / 'vocabulary' / 'file').touch()
    (tmp_path / 'tokenizer').symlink_to(tmp_path / 'vocabulary')
    delete_directory(epath.Path(tmp_path / 'tokenizer'))
    assert [path.name for path in tmp_path.iterdir()] == ['vocabulary']
    assert (tmp_path / 'vocabulary' / 'file').exists()


# Bytes of a name that are no UTF-8, or that the locale does not decode, as Python holds them.
NAMES = ['b\udcff', '\udcc3\udca9', 'a/\udcff/b']


@pytest.mark.parametrize('name', NAMES)
def test_a_workdir_that_is_not_utf8_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(ConfigError, match=r'^--workdir=.*\\udc.* is not UTF-8 .*LC_ALL') as error:
        train(experiment(), tmp_path / name, quiet)
    assert '\n' not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_current_folder_that_is_not_utf8_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'b\udcff').mkdir()
    monkeypatch.chdir(tmp_path / 'b\udcff')
    with pytest.raises(ConfigError, match='is not UTF-8'):
        train(experiment(), 'run', quiet)


@pytest.mark.parametrize('name', ['größe', '名', 'a b', "it's"])
def test_a_workdir_of_any_other_name_opens(tmp_path, name):
    with Workdir(tmp_path / name).open_for_training({}):
        pass

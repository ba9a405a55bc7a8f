"""The page on the workdir names every file that the code writes there."""

from pathlib import Path

import pytest

from transformer_jax.ablation import choices, results
from transformer_jax.storage import checkpoint_folders, manifest, seed_group_file
from transformer_jax.storage.workdir import Workdir

PAGE = (Path(__file__).parents[2] / 'docs' / 'reference' / 'workdir.md').read_text()


def file_names(folder):
    """Yield the names of all files of a run, of a group of seeds, and of an ablation."""
    paths = vars(Workdir(folder)).items()
    yield from [path.name for name, path in paths if name.endswith('_path')]
    yield from [checkpoint_folders.META, checkpoint_folders.DAMAGED, manifest.NAME]
    yield from [seed_group_file.NAME, seed_group_file.LOCK]
    yield from [results.EXPERIMENT, results.RESULT, results.FAILURE, results.SENTENCES]
    yield from [results.RESULTS, choices.TUNING]


@pytest.fixture
def names(tmp_path):
    return sorted(set(file_names(tmp_path / 'run')))


def test_every_file_is_named(names):
    assert len(names) > 15
    assert [name for name in names if name not in PAGE] == []

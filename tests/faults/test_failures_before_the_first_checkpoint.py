"""A start that failed before its first checkpoint does not bind the next one."""

import dataclasses
import shutil

import pytest
from helpers.support import experiment, quiet

from transformer_jax.errors import ConfigError, DataError, Diverged, Stopped, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train import train
from transformer_jax.training.trainer import Trainer

CONFIG = {'train': {'steps': 10, 'seed': 0}, 'model': {'d_model': 8}}
OTHER = {'train': {'steps': 10, 'seed': 0}, 'model': {'d_model': 16}}


def add_checkpoint(workdir: Workdir) -> None:
    step = workdir.checkpoints_path / '4'
    step.mkdir(parents=True)
    (step / 'meta.json').write_text('{}')
    manifest.write(step)


def start(path, config, end=None, checkpoint=False) -> None:
    workdir = Workdir(path)
    with workdir.open_for_training(config):
        if checkpoint:
            add_checkpoint(workdir)
        if end is not None:
            raise end


@pytest.mark.parametrize(
    'end',
    [
        RuntimeError('RESOURCE_EXHAUSTED: out of memory'),
        KeyError('bleu'),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(1),
        OSError(28, 'No space left on device'),
        Diverged('step 1: loss nan'),
        ConfigError('decode.beam'),
        DataError('no such file'),
        WorkdirError('checkpoint 4 was not saved'),
    ],
    ids=lambda end: type(end).__name__,
)
def test_a_failure_without_a_checkpoint_does_not_bind(end, tmp_path):
    with pytest.raises(type(end)):
        start(tmp_path, CONFIG, end)
    (tmp_path / 'tokenizer').mkdir()
    (tmp_path / 'checkpoints' / '4').mkdir(parents=True)  # A save that was cut short.
    first = Workdir(tmp_path).identity()
    start(tmp_path, OTHER)
    assert Workdir(tmp_path).read_config() == OTHER
    assert not (tmp_path / 'tokenizer').exists()
    assert Workdir(tmp_path).identity().run_id != first.run_id


@pytest.mark.parametrize(
    ('end', 'checkpoint'),
    [
        (None, True),
        (None, False),  # It is done, and someone deleted its checkpoints: its metrics remain.
        (Stopped(15, 'stopped by SIGTERM'), True),
        (Stopped(15, 'stopped by SIGTERM'), False),
        (RuntimeError(), True),
        (KeyboardInterrupt(), True),
        (Diverged('step 9'), True),
    ],
)
def test_a_start_that_kept_its_state_binds(end, checkpoint, tmp_path):
    if end is None:
        start(tmp_path, CONFIG, end, checkpoint)
    else:
        with pytest.raises(type(end)):
            start(tmp_path, CONFIG, end, checkpoint)
    with pytest.raises(ConfigError, match=r'another configuration .model.d_model: 8 -> 16'):
        start(tmp_path, OTHER)


def test_a_killed_start_does_not_bind(tmp_path):
    """SIGKILL leaves a record without an end."""
    block = Workdir(tmp_path / 'run').open_for_training(CONFIG)
    block.__enter__()
    shutil.copytree(tmp_path / 'run', tmp_path / 'killed')
    block.__exit__(None, None, None)
    start(tmp_path / 'killed', OTHER)
    assert Workdir(tmp_path / 'killed').read_config() == OTHER
    with pytest.raises(ConfigError, match='another configuration'):  # It ended well.
        start(tmp_path / 'run', OTHER)


@pytest.mark.parametrize(('first', 'second'), [(1, 2), (2, 1), (2, 3)])
def test_the_number_of_seeds_may_be_corrected(first, second, tmp_path, monkeypatch):
    """So may the vocabulary, which the first start learned already."""

    def fails(self):
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

    config = experiment(train__num_seeds=first, data__vocab_size=80)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'run', fails)
        with pytest.raises(RuntimeError):
            train(config, tmp_path, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'run', lambda self: None)
        corrected = experiment(train__num_seeds=second, train__seed=1)
        train(corrected, tmp_path, quiet)
    found = Workdir(tmp_path).read_config()
    assert found['train'] == dataclasses.asdict(corrected.train)
    in_group = [bool(Workdir(tmp_path / str(seed)).seed_group) for seed in range(1, second + 1)]
    assert in_group == [second > 1] * second

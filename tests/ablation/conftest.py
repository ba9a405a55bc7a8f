"""Fakes of training and scoring that cost nothing."""

import dataclasses

import pytest
from helpers.tiny_ablation import write_checkpoint, write_result, write_run

from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation import train_seeds as rows
from transformer_jax.errors import Diverged
from transformer_jax.training import seed_groups
from transformer_jax.training.training_run import Record


def _name(path):
    """Return the name of a run or group: 'base/0', of a try 'base/tries/NAME'."""
    start = -3 if path.parts[-2] == 'tries' else -2
    return '/'.join(path.parts[start:])


@pytest.fixture
def pretend(monkeypatch):
    """Replace training and scoring by fakes that cost nothing.

    Returns a dictionary: runs that are keys of it raise its values, and 'trained' lists the runs
    and groups that did not raise. In a group only a run that diverges fails alone; an error of the
    group itself is raised after a checkpoint.
    """
    errors, trained = {}, []

    def train(config, path, log):
        if error := errors.get(name := _name(path)):
            raise error
        seed_groups.release_member(path)
        write_run(config, path)
        write_checkpoint(path, 4, record=dataclasses.asdict(Record()))
        log('step 4/4')
        trained.append(name)

    def train_group(configs, group, log):
        failed = [errors.get(_name(path)) for path in group.member_paths]
        group.path.mkdir(exist_ok=True)
        seed_groups.begin_group(group)
        for config, path in zip(configs, group.member_paths, strict=True):
            write_run(config, path)
        records = [Record(failed=str(error) if error else '') for error in failed]
        for error in failed:
            if error and not isinstance(error, Diverged):
                raise error
        late = errors.get(name := _name(group.path))
        write_checkpoint(
            group.path, 2 if late else 4, records=list(map(dataclasses.asdict, records))
        )
        if late:
            raise late
        trained.append(name)
        return records

    monkeypatch.setattr(rows, 'train', train)
    monkeypatch.setattr(rows, 'train_group', train_group)
    monkeypatch.setattr(score_lib, 'score', lambda run, metrics, log: write_result(run))
    monkeypatch.setattr(seed_groups, 'can_share', lambda config: False)
    errors['trained'] = trained
    return errors


@pytest.fixture
def shared(pretend, monkeypatch):
    """Pretend as `pretend` does, and let seeds share programs."""
    monkeypatch.setattr(seed_groups, 'can_share', lambda config: True)
    return pretend

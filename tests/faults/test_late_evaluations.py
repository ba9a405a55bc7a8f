"""An evaluation that a signal cut short is made by the next start, and recorded once."""

import json
import os
import signal

import pytest
from helpers.support import events, experiment, fingerprint, quiet

from transformer_jax.errors import Stopped
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.programs import TrainProgram
from transformer_jax.training.seed_groups import newest_record
from transformer_jax.training.train import train

RUN = {'train__steps': 8, 'checkpoint__every': 0, 'evaluate__every': 4}
# Nothing gets better: the second evaluation ends the run.
PATIENT = {
    'train__steps': 8,
    'checkpoint__every': 0,
    'evaluate__every': 2,
    'evaluate__patience': 1,
    'optim__learning_rate': 0.0,
}


def cut(config, workdir, count: int = 1) -> None:
    """Train until SIGTERM comes within an evaluation, the `count`-th of this start."""
    translate, calls = Evaluator.translate, []

    def then_translate(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return translate(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, 'translate', then_translate)
        with pytest.raises(Stopped, match=r'SIGTERM after step 4, which is saved'):
            train(config, workdir, quiet)


def evaluated(workdir) -> list[int]:
    return [event['step'] for event in events(workdir, 'validation')]


def forbid(monkeypatch, target, name: str) -> None:
    def never(*arguments, **options):
        raise AssertionError(f'{name} was called')

    monkeypatch.setattr(target, name, never)


@pytest.mark.slow
@pytest.mark.fault('signals')
@pytest.mark.parametrize('seeds', [1, 2])
def test_patience_that_a_late_evaluation_uses_up_ends_the_run_for_good(
    tmp_path, monkeypatch, seeds
):
    config = experiment(train__num_seeds=seeds, **PATIENT)
    folders = [tmp_path] if seeds == 1 else [tmp_path / '0', tmp_path / '1']
    cut(config, tmp_path, 1 + seeds)
    train(config, tmp_path, quiet)
    assert [evaluated(folder) for folder in folders] == [[2, 4]] * seeds
    forbid(monkeypatch, Evaluator, 'evaluate')
    forbid(monkeypatch, TrainProgram, 'place')
    lines = [(folder / 'metrics.jsonl').read_text() for folder in folders]
    for _ in range(2):
        train(config, tmp_path, quiet)
    assert [(folder / 'metrics.jsonl').read_text() for folder in folders] == lines
    for folder in folders:
        step, record = newest_record(Workdir(folder), config.evaluate)
        assert (step, record.live, record.best['step']) == (4, False, 2)


@pytest.mark.slow
@pytest.mark.fault('signals')
def test_a_late_evaluation_is_made_once(tmp_path, monkeypatch):
    config = experiment(**RUN)
    train(config, tmp_path / 'whole', quiet)
    workdir = tmp_path / 'run'
    cut(config, workdir)
    cut(config, workdir)  # Also the start that makes it up can be stopped.
    ends = [start['exit'] for start in json.loads((workdir / 'run.json').read_text())]
    assert [end.partition(':')[0] for end in ends] == ['Stopped', 'Stopped']
    assert evaluated(workdir) == []
    with monkeypatch.context() as patch:
        forbid(patch, TrainProgram, 'place')  # It fails before the next checkpoint.
        with pytest.raises(AssertionError):
            train(config, workdir, quiet)
    assert evaluated(workdir) == [4]
    train(config, workdir, quiet)
    assert evaluated(workdir) == [4, 8]
    assert fingerprint(workdir) == fingerprint(tmp_path / 'whole')
    both = [newest_record(Workdir(path), config.evaluate) for path in (workdir, tmp_path / 'whole')]
    assert both[0] == both[1]

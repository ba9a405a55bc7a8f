"""Tuning with trained tries: side by side as alone, the right choice, and after kills."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.kills import every_kill
from helpers.support import quiet
from helpers.tiny_ablation import VARIANTS, table, write_result

from transformer_jax.ablation import Metric
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import ablate
from transformer_jax.ablation.tries import make_tries
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.training.train import train

RATE = 'optim.learning_rate'
RATES = (1e-4, 3e-2, 0.2)
TUNE = {RATE: RATES}
TWO = {'base': {}, 'one head': VARIANTS['one head']}


def plan(root, variants=TWO, **changes) -> Plan:
    experiment = table(variants, (Metric('loss'),), **changes)
    return Plan(dataclasses.replace(experiment, tune=TUNE), 'table.py', root, seeds=1)


def train_alone(trial, path) -> float:
    """Train a try alone in another folder; return its validation loss."""
    train(trial.config, path, quiet)
    run = TrainedRun(path, '', quiet, {}, ('validation',))
    return run.evaluate('validation').scores['loss']


@pytest.mark.slow
def test_tries_side_by_side_are_as_alone_and_the_best_is_chosen(tmp_path):
    root, steps = tmp_path / 'root', {'train.steps': 8, 'checkpoint.every': 8}
    untuned = plan(root, **steps)
    ablate(plan(root, **steps), quiet)
    loaded = load_results(root)
    assert not loaded['missing']
    for setting in untuned.settings:
        tries = make_tries(setting, untuned.tune, root)
        choice = json.loads((root / setting.folder / 'tuning.json').read_text())
        scores = [each['score'] for each in choice['tries']]
        if setting.folder == 'base':
            scores_alone = [train_alone(each, tmp_path / each.workdir.name) for each in tries]
            np.testing.assert_allclose(scores, scores_alone, rtol=1e-4)
        assert choice['chosen'] == {RATE: RATES[int(np.argmin(scores))]}
        assert [len(each['runs']) for each in choice['tries']] == [1, 1, 1]
        assert all(run['wall_seconds'] > 0 for each in choice['tries'] for run in each['runs'])
        # They shared a program, and no try has seen the test split.
        [group] = json.loads((root / setting.folder / 'tries/seed_groups.json').read_text())[
            'groups'
        ].values()
        assert group['members'] == [each.workdir.name for each in tries]
        for each in tries:
            result = json.loads((each.workdir / 'result.json').read_text())
            assert [*result['scores']] == ['validation loss']
        config = json.loads((root / setting.folder / '0/config.json').read_text())
        assert config['optim']['learning_rate'] == choice['chosen'][RATE]
        assert config['train']['seed'] == 0


def test_a_kill_at_any_time_changes_nothing(shared, tmp_path, monkeypatch):
    def score(trial, metrics, log):
        rate = trial.setting.config.optim.learning_rate
        write_result(trial, scores={'test loss': 1.0, 'validation loss': abs(rate - 3e-2)})

    monkeypatch.setattr(score_lib, 'score', score)
    variants = {'base': {}}

    def check(count):
        copy = tmp_path / f'root-{count}'
        ablate(plan(copy, variants), quiet)
        assert not load_results(copy)['missing']
        choice = json.loads((copy / 'base/tuning.json').read_text())
        assert choice['chosen'] == {RATE: 3e-2}
        assert [each['score'] is None for each in choice['tries']] == [False] * 3
        shutil.rmtree(copy)

    kills = every_kill(
        lambda count: ablate(plan(tmp_path / f'root-{count}', variants), quiet), check
    )
    assert kills >= 5

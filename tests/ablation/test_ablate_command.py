"""The command `ablate`: wrong arguments, overrides, and that a killed ablation continues."""

import json
import signal
from pathlib import Path

import pytest
from helpers.support import finish, start, wait_until

from transformer_jax.ablation import runner as ablate_lib

DEMO = str(Path(__file__).parents[2] / 'experiments' / 'demo' / 'number_words.py')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--experiment is missing, as in: transformer-jax ablate experiments/'),
        ([DEMO], '--root is missing'),
        (['nope.py', '--root=r'], 'nope.py: there is no such file; name one of experiments/'),
        ([DEMO, '--root=r', '--seeds=0'], '--seeds=0'),
        ([DEMO, '--root=r', '--part=2/2'], '--part=2/2: it takes i/n'),
        ([DEMO, '--root=r', '--only=bsae'], "--only=bsae: no such variant; did you mean 'base'?"),
        ([DEMO, '--root=r', '--dry-rum'], "unknown flag --dry_rum: did you mean 'dry_run'?"),
        ([DEMO, '--root=r', 'more'], "unexpected argument 'more'"),
        ([f'{DEMO}:huge', '--root=r'], "there is no scale 'huge'"),
        (
            [DEMO, '--root=r', '--config=x.py'],
            '--config=x.py: write --config.KEY=…, the experiment has a config',
        ),
        (
            [DEMO, '--root=r', '--config.train.step=3'],
            '--config.train.step: unknown configuration key; did you mean',
        ),
        (
            [DEMO, '--root=r', '--config.train.steps=x'],
            '--config.train.steps=x: not a whole number',
        ),
        (
            [DEMO, '--root=r', '--config.model.d_model=30'],
            'variants that cannot be:\n  base: model.d_model=30',
        ),
    ],
)
def test_wrong_commands(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output, errors = call('ablate', *arguments)
    assert (code, output) == (2, '')
    assert message in errors
    assert 'Traceback' not in errors
    assert not list(tmp_path.iterdir())


def test_keys_of_the_base_are_set_on_the_command_line(call, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(ablate_lib, 'ablate', lambda plan_, log, most: made.append(plan_))
    keys = '--config.data.source_dir=a/b', '--config.model.dropout=0.3'
    assert call('ablate', DEMO, f'--root={tmp_path}', *keys)[0] == 0
    configs = {name: row.config for row in made[0].settings for name in row.variants}
    assert {config.data.source_dir for config in configs.values()} == {'a/b'}
    assert (configs['base'].model.dropout, configs['no dropout'].model.dropout) == (0.3, 0.0)


def outcome(root) -> list:
    """Return what must not depend on how often a run was killed: all but times."""
    content = json.loads((root / 'results.json').read_text())
    assert not content['missing']
    times = ('step_seconds', 'step_spread', 'wall_seconds', 'mfu', 'goodput', 'date', 'commit')
    told = [
        {key: value for key, value in run.items() if key not in times} for run in content['runs']
    ]
    sentences = [
        (root / run['folder'] / str(run['seed']) / 'sentences.json').read_text()
        for run in content['runs']
    ]
    return [content['experiment'], told, sentences]


def done_runs(root) -> int:
    return len(list(root.glob('*/*/result.json')))


@pytest.mark.rare
def test_an_ablation_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finish(start('ablate', DEMO, f'--root={whole}'))
    command = ['ablate', DEMO, f'--root={killed}']
    for count in (2, 7):  # in the middle of the run that follows, between its checkpoints
        process = start(*command)
        wait_until(
            lambda count=count: (
                done_runs(killed) >= count
                and any(
                    path.read_text().count('\n') >= 2
                    for path in killed.glob('*/*/metrics.jsonl')
                    if not (path.parent / 'result.json').exists()
                )
            ),
            process,
        )
        process.kill()
        finish(process, -signal.SIGKILL)
        assert count <= done_runs(killed) < 12
    finish(start(*command))
    assert outcome(killed) == outcome(whole)
    assert len(outcome(whole)[1]) == 12

"""Commands in two processes: the results of one process, printed and written once."""

import json
import signal

import pytest
from helpers.support import (
    CONFIG_FILE,
    TINY,
    events,
    experiment,
    fingerprint,
    finish,
    flags,
    quiet,
    start,
    start_pair,
    start_two,
    wait_until,
)

from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.training.train import train

pytestmark = pytest.mark.slow
LINES = 'seven\ntwenty-four\n\none hundred and two\n'
TABLE = f"""
import runpy
from transformer_jax.ablation import Experiment, Metric

def get_experiment(scale='small'):
    base = runpy.run_path({str(CONFIG_FILE)!r})['get_config']('en-de')
    base.update_from_flattened_dict({TINY | {'train.steps': 2, 'model.dropout': 0.0}!r})
    variants = {{'base': {{}}, 'one head': {{'model.num_heads': 1}}}}
    return Experiment('a claim', base, variants, (Metric('loss'), Metric('bleu')), seeds=1)
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('two') / 'run'
    train(experiment(model__dropout=0.0), path, quiet)
    return path


def both(*arguments: str, stdin: str = '') -> str:
    """The standard output of process 0; process 1 prints nothing."""
    processes = start_two(*arguments)
    for process in processes:
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
    output, nothing = map(finish, processes)
    assert nothing == ''
    return output


def test_two_processes_translate_as_one(workdir):
    trained = TrainedRun(workdir, 'last', quiet, {})
    expected = trained.evaluator.translate(trained.params, LINES.splitlines())
    assert both('translate', f'--workdir={workdir}', stdin=LINES).splitlines() == expected


def test_two_processes_evaluate_as_one(workdir):
    before = TrainedRun(workdir, 'last', quiet, {}).measure('test').scores
    # The mesh fsdp=2 spans both processes: neither has a whole parameter.
    scores = json.loads(both('evaluate', f'--workdir={workdir}', '--json', '--mesh=fsdp=2'))
    assert scores['loss'] == pytest.approx(before['loss'], rel=1e-5)
    assert [scores[name] for name in ('bleu', 'chrf', 'tokens')] == [
        before[name] for name in ('bleu', 'chrf', 'tokens')
    ]
    [written] = json.loads((workdir / 'evaluations.json').read_text())
    assert written == scores


@pytest.mark.rare
def test_two_processes_ablate_as_one(tmp_path):
    table = tmp_path / 'table.py'
    table.write_text(TABLE)
    both('ablate', str(table), f'--root={tmp_path / "two"}')
    finish(start('ablate', str(table), f'--root={tmp_path / "one"}'))
    two, one = (
        json.loads((tmp_path / name / 'results.json').read_text())['runs']
        for name in ('two', 'one')
    )
    assert [run['folder'] for run in two] == [run['folder'] for run in one]
    for found, expected in zip(two, one, strict=True):
        assert found['params'] == expected['params']
        assert found['scores'] == pytest.approx(expected['scores'], rel=1e-4)


@pytest.mark.fault('two processes')
def test_a_dead_process_ends_the_other(workdir):
    first, second = start_two('translate', f'--workdir={workdir}')
    first.stdin.write('seven\n')
    first.stdin.flush()
    assert first.stdout.readline()  # Both are at work, and wait for more.
    first.kill()
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 5, errors
    assert 'process 0 of 2 is gone: restart all of them' in errors
    first.communicate()


@pytest.mark.fault('two processes')
@pytest.mark.rare
def test_killed_as_two_and_continued_as_one_is_undisturbed(tmp_path):
    """SIGKILL of one of two; then one process with as many devices: the same bits."""
    keys = flags(train__steps=60, checkpoint__every=4, model__dropout=0.0)
    finish(start('train', f'--workdir={tmp_path / "whole"}', *keys, devices=2))
    run = tmp_path / 'run'
    processes = start_pair(run, keys)
    wait_until(lambda: len(events(run, 'train')) > 10, processes[0])
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(timeout=120) == 5
    assert 0 < len(events(run, 'train')) < 60
    finish(start('train', f'--workdir={run}', *keys, devices=2))
    assert [event['step'] for event in events(run, 'train')] == list(range(1, 61))
    assert fingerprint(run) == fingerprint(tmp_path / 'whole')

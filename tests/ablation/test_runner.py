"""The runner: what fails alone, what is left to others, how it stops; and the dry run."""

import json
import os
import re
import signal

import pytest
from helpers.support import quiet
from helpers.tiny_ablation import names, plan

from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.durations import duration
from transformer_jax.ablation.runner import Unfinished, ablate, dry_run
from transformer_jax.config import resolve
from transformer_jax.errors import Busy, DataError, Diverged, Stopped
from transformer_jax.profiling import measure
from transformer_jax.storage.locks import lock


def test_a_failure_does_not_stop_the_others_and_goes_away(pretend, tmp_path):
    pretend |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    assert str(unfinished.value).split('\n  ') == [
        '2 of 6 runs are not done:',
        'base/1: step 3: loss nan',
        'one-head/0: ZeroDivisionError: oh',
    ]
    assert unfinished.value.exit_code == 1  # the program itself failed
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [(run['folder'], run['seed']) for run in results['runs']] == [
        ('base', 0),
        ('one-head', 1),
        ('no-dropout', 0),
        ('no-dropout', 1),
    ]
    assert results['missing'] == [
        {'folder': 'base', 'seed': 1, 'why': 'failed: step 3: loss nan'},
        {'folder': 'one-head', 'seed': 0, 'why': 'failed: ZeroDivisionError: oh'},
    ]
    assert 'in train' in json.loads((tmp_path / 'one-head/0/failure.json').read_text())['traceback']
    del pretend['base/1'], pretend['one-head/0'], pretend['trained'][:]
    ablate(plan(tmp_path), quiet)
    assert pretend['trained'] == ['base/1', 'one-head/0']  # sound results are kept
    ablate(plan(tmp_path), quiet)
    assert pretend['trained'] == ['base/1', 'one-head/0']


@pytest.mark.parametrize(
    ('error', 'code'),
    [(Diverged('nan'), 4), (DataError('no file'), 2), (MemoryError(), 2), (OSError(), 1)],
)
def test_the_exit_code_is_that_of_the_failures(pretend, tmp_path, error, code):
    pretend |= {'base/0': error, 'base/1': error}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    assert unfinished.value.exit_code == code


def test_a_run_that_another_process_has_is_left_to_it(pretend, tmp_path):
    made = plan(tmp_path)
    made.trials[0].workdir.mkdir(parents=True)
    pretend |= {'one-head/1': Busy('in use by process 7')}  # trained by the command `train`
    with lock(made.trials[0].workdir / 'ablate.lock'), pytest.raises(Unfinished) as unfinished:
        ablate(made, quiet)
    assert re.search(
        '2 of 6 .*\n  base/0: .* is in use by .*\n  one-head/1: in use', str(unfinished.value)
    )
    assert unfinished.value.exit_code == 3
    assert names(made.trials)[1:3] == pretend['trained'][:2]
    assert not (tmp_path / 'one-head/1/failure.json').exists()


def test_what_another_process_did_meanwhile_is_not_done_again(pretend, tmp_path, monkeypatch):
    made = plan(tmp_path, only=('base',))
    lacks, asked = made.lacks, []

    def once(run):
        asked.append(run)
        return 'not run' if len(asked) <= 2 else lacks(run)

    ablate(plan(tmp_path, only=('base',)), quiet)
    monkeypatch.setattr(made, 'lacks', once)
    ablate(made, quiet)
    assert pretend['trained'] == ['base/0', 'base/1']


def test_a_signal_stops_at_once_and_the_same_command_goes_on(pretend, tmp_path, monkeypatch):
    def interrupted(run, metrics, log):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(score_lib, 'score', interrupted)
    with pytest.raises(
        Stopped, match=r'stopped by SIGTERM; the same command continues \(0 of 6 runs are done\)'
    ) as stop:
        ablate(plan(tmp_path), quiet)
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert pretend['trained'] == ['base/0']
    assert len(json.loads((tmp_path / 'results.json').read_text())['missing']) == 6
    assert not (tmp_path / 'base/0/failure.json').exists()


@pytest.mark.slow
def test_a_dry_run_measures_and_writes_nothing(tmp_path):
    lines = []
    shown = dry_run(plan(tmp_path / 'root', only=('base',)), lines.append)
    assert not (tmp_path / 'root').exists()
    columns = {str(column.header): [*map(str, column.cells)] for column in shown.columns}
    assert (columns['seeds'], columns['to do'], columns['variants']) == (
        ['0 1'],
        ['2'],
        ['base, two heads'],
    )
    assert float(columns['ms per step'][0]) > 0
    size = measure.model_size(resolve(plan(tmp_path / 'root').settings[0].config))
    assert columns['parameters'] == [f'{size.params:,}']
    assert '2 of 2 runs to do' in str(shown.title)


def test_a_dry_run_tells_what_cannot_be_read(tmp_path):
    with pytest.raises(Unfinished, match='base/0: ') as unfinished:
        dry_run(
            plan(
                tmp_path,
                {'base': {}},
                **{'data.task': 'parallel_text', 'data.source_dir': str(tmp_path)},
            ),
            quiet,
        )
    assert unfinished.value.exit_code == 2


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59, 60, 3599, 5400)] == [
        '0 s',
        '59 s',
        '1 min',
        '60 min',
        '1.5 h',
    ]

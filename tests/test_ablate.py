"""Ablations: what is run, once and in whatever pieces; what fails alone; and that a plan never mixes two versions."""

import functools
import json
import os
import re
import runpy
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from support import CONFIG_FILE, TINY, experiment, finish, quiet, start, wait_until
from test_cli import call  # noqa: F401

from transformer_jax import ablate as ablate_lib
from transformer_jax import config as config_lib
from transformer_jax import measure, replicas, rows, storage
from transformer_jax.ablate import Unfinished, ablate, dry_run, duration
from transformer_jax.board import Board
from transformer_jax.data import load_data
from transformer_jax.errors import Busy, ConfigError, DataError, Diverged, Stopped, WorkdirError
from transformer_jax.experiment import Experiment, Metric
from transformer_jax.plan import Plan
from transformer_jax.results import load_results
from transformer_jax.runs import Record
from transformer_jax.signals import StopSignals
from transformer_jax.storage import lock

METRICS = (Metric('exact_match'), Metric('loss', 'validation', 'last'))
VARIANTS = {'base': {}, 'one head': {'model.num_heads': 1}, 'two heads': {'model.num_heads': 2},
            'no dropout': {'model.dropout': 0.0}}


def table(variants=VARIANTS, metrics=METRICS, **changes) -> Experiment:
    """A tiny experiment; in TINY there are two heads."""
    base = runpy.run_path(str(CONFIG_FILE))['get_config']('en-de')
    base.update_from_flattened_dict(TINY | {'train.steps': 4, 'checkpoint.every': 2} | changes)
    return Experiment('a claim', base, variants, metrics, seeds=2)


def plan(root, *args, only=(), shard='1/1', seeds=0, **changes) -> Plan:
    made = Plan(table(*args, **changes), 'table.py', root, seeds)
    made.narrow(only, shard)
    return made


def names(runs) -> list[str]:
    return [run.name for run in runs]


# --- What is to be run -----------------------------------------------------------------------------------------------

EVERYTHING = ['base/0', 'base/1', 'one-head/0', 'one-head/1', 'no-dropout/0', 'no-dropout/1']


def test_equal_configs_share_their_runs(tmp_path):
    made = plan(tmp_path)
    assert names(made.runs) == EVERYTHING
    assert made.rows[0].variants == ('base', 'two heads')
    assert [run.config.train.seed for run in made.runs[:2]] == [0, 1]
    assert made.record['variants']['two heads']['folder'] == 'base'
    assert 'two heads: the same config as base, run once' in ablate_lib.summary(made, 6)


def test_seeds_count_up_from_the_base(tmp_path):
    assert [run.seed for run in plan(tmp_path, seeds=3, **{'train.seed': 5}).runs][:3] == [5, 6, 7]


def test_only_and_shards_divide_the_runs(tmp_path):
    assert names(plan(tmp_path, only=('two heads', 'no dropout')).runs) == EVERYTHING[:2] + EVERYTHING[4:]
    parts = [names(plan(tmp_path, shard=f'{i}/4').runs) for i in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part) == sorted(EVERYTHING)
    assert parts == [EVERYTHING[:1], EVERYTHING[1:3], EVERYTHING[3:4], EVERYTHING[4:]]  # neighbours


@pytest.mark.parametrize('shard', ['3/2', '0/2', 'x', '1', '1/0', '-1/2', '1/2/3', ''])
def test_shards_that_are_none(tmp_path, shard):
    with pytest.raises(ConfigError, match=re.escape(f'--shard={shard}: it takes i/n')):
        plan(tmp_path, shard=shard)


def test_only_knows_the_variants(tmp_path):
    with pytest.raises(ConfigError, match="--only=one haed: no such variant; did you mean 'one head'"):
        plan(tmp_path, only=('one haed',))


def test_the_seeds_are_those_of_ablate(tmp_path):
    with pytest.raises(ConfigError, match=r'base: train\.replicas=2: the seeds are those of ablate, and --replicas'):
        plan(tmp_path, {'base': {}}, **{'train.replicas': 2})


@pytest.mark.parametrize(('metric', 'changes', 'message'), [
    (Metric('blue'), {}, 'base: test blue: data.task=.* is scored by loss, accuracy, .* bleu, chrf, exact_match'),
    (Metric('loss', checkpoint='best'), {}, r'base: test loss: evaluate\.every=0 finds no best checkpoint'),
    (Metric('loss', checkpoint='avg:3'), {}, r'checkpoint\.average=1 keeps too few for avg:3'),
    (Metric('loss', length=20), {}, 'is scored by accuracy, exact_match'),
    (Metric('accuracy', length=40), {'model.position': 'learned(max_len=32)'}, 'read 32 tokens at most'),
])
def test_metrics_that_cannot_be_measured_are_refused_before_anything_runs(tmp_path, metric, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path / 'root', VARIANTS, (metric,), **changes)
    assert not (tmp_path / 'root').exists()


# --- Roots -----------------------------------------------------------------------------------------------------------

def test_another_version_of_an_experiment_is_refused_with_its_keys(tmp_path):
    plan(tmp_path).write()
    with pytest.raises(ConfigError, match='another version') as refusal:
        plan(tmp_path, VARIANTS | {'no dropout': {'model.dropout': 0.2}}, **{'train.steps': 5})
    lines = str(refusal.value).split('\n  ')[1:]
    assert lines == ['base: train.steps: 4 -> 5', 'no dropout: model.dropout: 0.0 -> 0.2; train.steps: 4 -> 5',
                     'one head: train.steps: 4 -> 5', 'two heads: train.steps: 4 -> 5']
    changed = {'checkpoint.keep': 2, 'parallel.mode': 'pmap'}  # no number depends on these
    assert names(plan(tmp_path, **changed).runs) == EVERYTHING


def test_variants_seeds_and_metrics_may_come_and_go(tmp_path):
    plan(tmp_path, seeds=3).write()
    variants = {'new': {'model.d_ff': 8}, 'also base': {}, 'one head': VARIANTS['one head']}
    made = plan(tmp_path, variants, (Metric('bleu'),), seeds=1)
    assert made.record['seeds'] == [0, 1, 2]
    assert names(made.runs) == ['new/0', 'base/0', 'one-head/0']  # a config keeps its folder under another name
    made.write()
    assert load_results(tmp_path)['experiment'] == made.record
    with pytest.raises(ConfigError, match="'base' would share the folder 'base' with 'also base'"):
        plan(tmp_path, variants | {'base': {'model.d_ff': 9}})


def test_a_root_that_cannot_be_one(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WorkdirError, match='is a file: choose a directory'):
        plan(tmp_path / 'file')
    with pytest.raises(WorkdirError, match=r'cannot write .*file/root'):
        plan(tmp_path / 'file' / 'root').write()
    (tmp_path / 'experiment.json').write_text('{"variants": 3}')
    with pytest.raises(WorkdirError, match='does not describe an experiment'):
        plan(tmp_path)
    with pytest.raises(ConfigError, match=r'has no experiment\.json'):
        load_results(tmp_path / 'file' / '..' / '..')


# --- Runs that fail, stop, or are elsewhere, without training ---------------------------------------------------------

def write_result(run, **changes) -> None:
    """A sound result.json of a run that was never trained."""
    result = {'scores': {'test exact_match': 0.5, 'validation loss': 1.0}, 'seed': run.seed, 'params': 1,
              'non_embedding_params': 1, 'flops': 1, 'step_seconds': None, 'memory_bytes': None, 'wall_seconds': 1.0,
              'steps': 4, 'step': 4, 'machine': {}, 'commit': None, 'date': '2026-11-22'}
    (run.workdir / 'result.json').write_text(json.dumps(result | changes))


@pytest.fixture
def pretend(monkeypatch):
    """Runs cost nothing, and those named in the dictionary that is returned raise; `trained` lists the others.

    In a group only a run that diverges fails alone.
    """
    errors, trained = {}, []

    def train_group(configs, path, log, folders):
        records = [Record() for _ in configs]
        for index, (config, folder, record) in enumerate(zip(configs, folders, records, strict=True)):
            error = errors.get(f'{path.parent.name}/{config.train.seed}')
            if error and (len(configs) == 1 or not isinstance(error, Diverged)):
                raise error
            record.failed = str(error) if error else ''
            workdir = storage.absolute(path / folder)
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
            if len(configs) > 1:
                path.mkdir(exist_ok=True)
                (path / 'replicas.json').write_text(json.dumps({'folders': folders}))
                (workdir / 'replica.json').write_text(json.dumps({'group': f'../{path.name}', 'index': index}))
        log('step 4/4')
        trained.append(f'{path.parent.name}/{path.name}')
        return records
    monkeypatch.setattr(rows, 'train_group', train_group)
    monkeypatch.setattr(rows, 'score', lambda run, metrics, log: write_result(run))
    monkeypatch.setattr(replicas, 'can_share', lambda config: False)
    errors['trained'] = trained
    return errors


def test_a_failure_does_not_stop_the_others_and_goes_away(pretend, tmp_path):
    pretend |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    assert str(unfinished.value).split('\n  ') == [
        '2 of 6 runs are not done:', 'base/1: step 3: loss nan', 'one-head/0: ZeroDivisionError: oh']
    assert unfinished.value.exit_code == 1  # a program that failed
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [(run['folder'], run['seed']) for run in results['runs']] == [
        ('base', 0), ('one-head', 1), ('no-dropout', 0), ('no-dropout', 1)]
    assert results['missing'] == [{'folder': 'base', 'seed': 1, 'why': 'failed: step 3: loss nan'},
                                  {'folder': 'one-head', 'seed': 0, 'why': 'failed: ZeroDivisionError: oh'}]
    assert 'in train' in json.loads((tmp_path / 'one-head/0/failure.json').read_text())['traceback']
    del pretend['base/1'], pretend['one-head/0'], pretend['trained'][:]
    ablate(plan(tmp_path), quiet)
    assert pretend['trained'] == ['base/1', 'one-head/0']  # what is done is not done again
    ablate(plan(tmp_path), quiet)
    assert pretend['trained'] == ['base/1', 'one-head/0']


@pytest.mark.parametrize(('error', 'code'), [(Diverged('nan'), 4), (DataError('no file'), 2), (MemoryError(), 1)])
def test_the_exit_code_is_that_of_the_failures(pretend, tmp_path, error, code):
    pretend |= {'base/0': error, 'base/1': error}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    assert unfinished.value.exit_code == code


def test_a_run_that_another_process_has_is_left_to_it(pretend, tmp_path):
    made = plan(tmp_path)
    made.runs[0].workdir.mkdir(parents=True)
    pretend |= {'one-head/1': Busy('in use by process 7')}  # trained by hand
    with lock(made.runs[0].workdir / 'ablate.lock'), pytest.raises(Unfinished) as unfinished:
        ablate(made, quiet)
    assert re.search('2 of 6 .*\n  base/0: .* is in use by .*\n  one-head/1: in use', str(unfinished.value))
    assert unfinished.value.exit_code == 3
    assert names(made.runs)[1:3] == pretend['trained'][:2]
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
    monkeypatch.setattr(rows, 'score', interrupted)
    with pytest.raises(Stopped, match=r'stopped by SIGTERM; the same command goes on \(0 of 6 runs are done\)') as stop:
        ablate(plan(tmp_path), quiet)
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert pretend['trained'] == ['base/0']
    assert len(json.loads((tmp_path / 'results.json').read_text())['missing']) == 6
    assert not (tmp_path / 'base/0/failure.json').exists()


def test_the_table_on_a_terminal(tmp_path):
    made, lines = plan(tmp_path), []
    board = Board(made, set(made.runs[1:]), lines.append)
    board.say(made.runs[1:2], 'step 2')
    board.states[made.runs[2]] = 'failed'
    made.runs[1].workdir.mkdir(parents=True)
    (made.runs[1].workdir / 'metrics.jsonl').write_text(json.dumps(
        {'step': 2, 'split': 'train', 'loss': 3.25, 'steps_per_second': 0.01}) + '\n')
    rows_ = zip(*(column.cells for column in board.table().columns), strict=True)
    assert list(rows_) == [
        ('base, two heads', '1/2', 'training seed 1', '2/4', '3.2500', '3.3'),
        ('one head', '0/2', '1 failed', '', '', ''), ('no dropout', '0/2', '', '', '', '')]
    board.say(made.runs[4:], 'both')
    assert next(cells for cells in zip(*(column.cells for column in board.table().columns), strict=True)
                if cells[0] == 'no dropout')[2] == 'training seed 0, 1'
    assert lines == ['base/1: step 2', 'no-dropout/0-1: both']


def test_the_seeds_of_a_row_share_a_program(pretend, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, 'can_share', lambda config: True)
    pretend |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished, match='3 of 6 runs are not done:\n  base/1: step 3: loss nan\n  one-head/0: Zero'):
        ablate(plan(tmp_path), quiet)
    assert pretend['trained'] == ['base/0-1', 'no-dropout/0-1']
    assert json.loads((tmp_path / 'base/1/failure.json').read_text())['error'] == 'step 3: loss nan'
    assert {run['why'] for run in load_results(tmp_path)['missing'][1:]} == {'failed: ZeroDivisionError: oh'}


def test_so_many_seeds_share_a_program(pretend, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, 'can_share', lambda config: True)
    ablate(plan(tmp_path, {'base': {}}, seeds=5), quiet, most=2)
    assert pretend['trained'] == ['base/0-1', 'base/2-3', 'base/4']


def test_what_was_begun_goes_on_as_it_was(pretend, tmp_path, monkeypatch):
    """A group whole, also where one of it was not asked for; a run that was alone, alone."""
    ablate(plan(tmp_path, {'base': {}}, seeds=1), quiet)
    monkeypatch.setattr(replicas, 'can_share', lambda config: True)
    (tmp_path / 'base/0/metrics.jsonl').touch()
    ablate(plan(tmp_path, {'base': {}}, seeds=3), quiet)
    assert pretend['trained'] == ['base/0', 'base/1-2']
    for seed in (0, 1):
        (tmp_path / f'base/{seed}/result.json').unlink()
    pretend['trained'].clear()
    ablate(plan(tmp_path, {'base': {}}, seeds=2), quiet)
    assert pretend['trained'] == ['base/1-2', 'base/0']
    (tmp_path / 'base/1/result.json').unlink()
    shutil.rmtree(tmp_path / 'base/1-2')
    with pytest.raises(Unfinished, match=r'base/1: .* was trained beside other runs in .*/base/1-2, which is gone'):
        ablate(plan(tmp_path, {'base': {}}), quiet)


def test_shards_meet_in_the_root(pretend, tmp_path):
    for shard in ('1/2', '2/2'):
        ablate(plan(tmp_path, shard=shard), quiet)
    assert not json.loads((tmp_path / 'results.json').read_text())['missing']
    assert sorted(pretend['trained']) == sorted(EVERYTHING)


# --- Results are read strictly ----------------------------------------------------------------------------------------

@pytest.fixture
def done(pretend, tmp_path):
    """(root, its runs), all done."""
    made = plan(tmp_path)
    ablate(made, quiet)
    return tmp_path, made.runs


def test_a_results_file_stands_for_its_root(done):
    root, _ = done
    assert load_results(root / 'results.json') == load_results(root) == json.loads((root / 'results.json').read_text())
    assert len(load_results(root)['runs']) == 6
    assert max(map(len, (root / 'results.json').read_text().splitlines())) > 1000  # a run is a line


@pytest.mark.parametrize(('damage', 'why'), [
    (lambda run: write_result(run, scores={'test exact_match': 0.5}), 'its validation loss is not measured'),
    (lambda run: write_result(run, scores={'test exact_match': 'nan', 'validation loss': 1}),
     'its test exact_match is nan'),
    (lambda run: write_result(run, seed=7), 'damaged: result.json is of seed 7'),
    (lambda run: (run.workdir / 'result.json').write_text('{"scores": {}}'), 'damaged: result.json lacks seed, params'),
    (lambda run: (run.workdir / 'result.json').write_text('{"scores'), 'damaged: Unterminated string'),
    (lambda run: (run.workdir / 'result.json').write_text('[]'), 'damaged: result.json lacks'),
    (lambda run: (run.workdir / 'config.json').unlink(), 'damaged: '),
    (lambda run: (run.workdir / 'result.json').unlink(), 'not run'),
    (lambda run: (run.workdir / 'config.json').write_text(json.dumps(config_lib.to_dict(experiment()))),
     'of another version of the experiment: model.num_heads: 2 -> 1; train.steps: 12 -> 4'),
])
def test_what_is_damaged_is_missing(done, damage, why):
    root, runs = done
    damage(runs[3])
    found = load_results(root)
    assert [(run['folder'], run['seed']) for run in found['runs']] == [
        (run.row.folder, run.seed) for run in runs if run is not runs[3]]
    [missing] = found['missing']
    assert (missing['folder'], missing['seed']) == ('one-head', 1)
    assert missing['why'].startswith(why)
    assert plan(root).lacks(runs[3]) == missing['why']


def test_lengths_that_were_binned_otherwise_are_measured_again(done):
    root, runs = done
    metrics = (Metric('accuracy', length=12), Metric('accuracy', length=24))
    write_result(runs[0], scores={str(metric): 1.0 for metric in metrics}, lengths={'test': [12, 24]})
    assert not plan(root, VARIANTS, metrics).lacks(runs[0])
    assert plan(root, VARIANTS, metrics[1:]).lacks(runs[0]) == 'test was measured at other lengths'


def test_a_run_on_its_way_says_how_far_it_is(done):
    root, runs = done
    (runs[0].workdir / 'result.json').unlink()
    (runs[0].workdir / 'metrics.jsonl').write_text('{"step": 3, "split": "train"}\n{"step": 4, "spl')
    assert load_results(root)['missing'][0]['why'] == 'not finished: at step 3 of 4'


@pytest.mark.parametrize('content', ['[]', '{', '{"runs": []}', '{"runs": [], "experiment": {"variants": {}}}'])
def test_files_that_are_no_results(tmp_path, content):
    (tmp_path / 'results.json').write_text(content)
    with pytest.raises(WorkdirError, match=r'results\.json'):
        load_results(tmp_path / 'results.json')
    with pytest.raises(ConfigError, match='there is no such root'):
        load_results(tmp_path / 'none')


def test_a_results_file_lacks_what_it_does_not_list(done):
    root, _ = done
    content = json.loads((root / 'results.json').read_text())
    del content['runs'][0], content['runs'][0]['scores']['validation loss']
    (root / 'results.json').write_text(json.dumps(content))
    found = load_results(root / 'results.json')
    assert [entry['why'] for entry in found['missing']] == [
        'not in results.json', 'its validation loss is not measured']
    assert len(found['runs']) == 4


# --- Real runs -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    """(root, log) of one variant with one seed, trained."""
    root, lines = tmp_path_factory.mktemp('root'), []
    ablate(plan(root, {'base': {}}, seeds=1), lines.append)
    return root, lines


def test_a_result_tells_quality_and_cost(real):
    root, lines = real
    [run] = load_results(root)['runs']
    evaluations = json.loads((root / 'base/0/evaluations.json').read_text())
    assert run['scores'] == {
        'test exact_match': evaluations[0]['exact_match'], 'validation loss': evaluations[1]['loss']}
    assert run['params'] > run['non_embedding_params'] > 1000
    assert run['memory_bytes'] > 12 * run['params']  # Adam's state and the gradient
    assert run['flops'] > run['params']
    assert (run['steps'], run['step'], run['folder']) == (4, 4, 'base')
    assert 0 < run['step_seconds'] < run['wall_seconds']
    assert 'host' not in run['machine']
    assert lines[-1].startswith('1 of 1 runs done')
    assert any(line.startswith('base/0: step 4/4: loss') for line in lines)


def test_seeds_side_by_side_are_the_runs_alone(real, tmp_path):
    stopped = functools.partial(plan, tmp_path, {'base': {}}, seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, 'received', lambda self, now: signal.SIGTERM * (now == 3))
        with pytest.raises(Stopped):
            ablate(stopped(), quiet)
    lines = []
    ablate(plan(tmp_path, {'base': {}}, seeds=3), lines.append)
    assert 'base/0-1: resumed after step 3' in lines
    alone, found = load_results(real[0])['runs'][0], load_results(tmp_path)['runs']
    assert [run['side_by_side'] for run in found] == [2, 2, 1]
    assert all(0 < run['step_seconds'] < run['wall_seconds'] for run in found)
    for label, score in alone['scores'].items():
        assert found[0]['scores'][label] == pytest.approx(score, abs=1e-4)
    losses = {run['scores']['validation loss'] for run in found}
    assert len(losses) == 3
    assert {key: found[0][key] for key in ('params', 'flops', 'memory_bytes', 'step')} == {
        key: alone[key] for key in ('params', 'flops', 'memory_bytes', 'step')}


def test_the_time_of_a_step_is_a_metric(real, monkeypatch):
    root, _ = real
    made = plan(root, {'base': {}}, (*METRICS, Metric('step_seconds')), seeds=1)
    assert made.lacks(made.runs[0]) == 'its step_seconds is not measured'
    monkeypatch.setattr(rows, 'Trained', None)  # nothing is evaluated again
    rows.score(made.runs[0], made.experiment.metrics, quiet)
    result = json.loads((root / 'base/0/result.json').read_text())
    assert result['scores']['step_seconds'] == result['step_seconds'] > 0
    assert not made.lacks(made.runs[0])


def test_what_is_timed_is_trained_alone(pretend, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, 'can_share', lambda config: True)
    monkeypatch.setattr(rows, 'score', lambda run, metrics, log: write_result(run, scores={'step_seconds': 0.1}))
    ablate(plan(tmp_path, {'base': {}}, (Metric('step_seconds'),)), quiet)
    assert pretend['trained'] == ['base/0', 'base/1']


def test_a_new_metric_is_scored_without_training(real, monkeypatch):
    root, _ = real
    before = (root / 'base/0/metrics.jsonl').read_text(), load_results(root)['runs'][0]['scores']
    metrics = (*METRICS, Metric('bleu'), Metric('accuracy', 'validation', length=12), Metric('accuracy', length=24))
    made = plan(root, {'base': {}}, metrics, seeds=1)
    assert 'bleu is not measured' in made.lacks(made.runs[0])
    ablate(made, quiet)
    [run] = load_results(root)['runs']
    assert before == ((root / 'base/0/metrics.jsonl').read_text(), {
        label: run['scores'][label] for label in before[1]})
    assert 0 <= run['scores']['validation accuracy at 12'] <= 1
    assert run['lengths'] == {'validation': [12], 'test': [24]}
    hypotheses = (root / 'base/0' / run['examples']['test bleu']).read_text().splitlines()
    sentences = json.loads((root / 'base/0/sentences.json').read_text())
    assert len(sentences['test bleu']) == len(sentences['test exact_match']) == len(hypotheses) == 20
    totals = np.array(sentences['test bleu']).sum(0).tolist()
    bleu = BLEU.compute_bleu(totals[:4], totals[4:8], totals[8], totals[9], smooth_method='exp')
    assert bleu.score == pytest.approx(run['scores']['test bleu'])
    assert np.mean(sentences['test exact_match']) == run['scores']['test exact_match']


def test_a_dry_run_measures_and_writes_nothing(tmp_path):
    lines = []
    shown = dry_run(plan(tmp_path / 'root', only=('base',)), lines.append)
    assert not (tmp_path / 'root').exists()
    columns = {column.header: list(column.cells) for column in shown.columns}
    assert (columns['seeds'], columns['to do'], columns['variants']) == (['0 1'], ['2'], ['base, two heads'])
    assert float(columns['ms per step'][0]) > 0
    size = measure.size(plan(tmp_path / 'root').rows[0].config)
    assert columns['parameters'] == [f'{size.params:,}']
    assert '2 of 2 runs to do' in shown.title


def test_a_dry_run_tells_what_cannot_be_read(tmp_path):
    with pytest.raises(Unfinished, match='base/0: ') as unfinished:
        dry_run(plan(tmp_path, {'base': {}}, **{
            'data.task': 'parallel_text', 'data.source_dir': str(tmp_path)}), quiet)
    assert unfinished.value.exit_code == 2


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59, 60, 3599, 5400)] == ['0 s', '59 s', '1 min', '60 min', '1.5 h']


def test_examples_of_packed_rows_are_told_apart():
    """Against a loop over rows and segments; which tokens are right is drawn, since the model knows nothing."""
    task = 'mqar(vocab_size=16, pairs=2, length=8, held_out=30)'
    config = experiment(**{'data.task': task, 'data.vocab_size': 20, 'model.kind': 'decoder_only',
                           'data.batching': 'packed(length=32)', 'evaluate.batch_tokens': 96})
    data = load_data(config, Path('none'), quiet, ('train', 'validation'))
    right, by_hand, plan_ = np.random.default_rng(0).random((20, 3, 32)) < 0.7, {}, data.evaluation('validation')[0]
    batches = list(data.eval_batches('validation', 1, lambda count: (0, count)))
    predicted = [np.where(right[number], batch.targets_BT, 0) for number, batch in enumerate(batches)]
    for number, batch in enumerate(batches):
        numbers = iter(plan_.step(number).examples)
        for row in range(len(batch.targets_BT)):
            for segment in range(1, batch.segments_BT[row].max() + 1):
                places = (batch.segments_BT[row] == segment) & (batch.weights_BT[row] > 0)
                by_hand[int(next(numbers))] = right[number][row][places].all()
    trained = SimpleNamespace(data=data, params=None, evaluator=SimpleNamespace(
        predictions=lambda params, split: zip(batches, predicted, strict=True)))
    found = rows._right(trained, 'validation')
    assert len(batches) > 1
    assert 0 < found.sum() < 30
    assert found.tolist() == [by_hand[number] for number in range(30)]


# --- The command -----------------------------------------------------------------------------------------------------

DEMO = str(Path(__file__).parent.parent / 'experiments' / 'demo' / 'number_words.py')


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], '--experiment is missing, as in: transformer-jax ablate experiments/'),
    ([DEMO], '--root is missing'),
    (['nope.py', '--root=r'], 'nope.py: there is no such file; name one of experiments/'),
    ([DEMO, '--root=r', '--seeds=0'], '--seeds=0'),
    ([DEMO, '--root=r', '--shard=3/2'], '--shard=3/2: it takes i/n'),
    ([DEMO, '--root=r', '--only=bsae'], "--only=bsae: no such variant; did you mean 'base'?"),
    ([DEMO, '--root=r', '--dry-rum'], "unknown flag --dry_rum: did you mean 'dry_run'?"),
    ([DEMO, '--root=r', 'more'], "unexpected argument 'more'"),
    ([f'{DEMO}:huge', '--root=r'], "there is no scale 'huge'"),
])
def test_wrong_commands(call, arguments, message, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, output, errors = call('ablate', *arguments)
    assert (code, output) == (2, '')
    assert message in errors
    assert 'Traceback' not in errors
    assert not list(tmp_path.iterdir())


def outcome(root) -> list:
    """What must not depend on how often a run was killed: all but times."""
    content = json.loads((root / 'results.json').read_text())
    assert not content['missing']
    times = ('step_seconds', 'wall_seconds', 'date', 'commit')
    told = [{key: value for key, value in run.items() if key not in times} for run in content['runs']]
    sentences = [(root / run['folder'] / str(run['seed']) / 'sentences.json').read_text() for run in content['runs']]
    return [content['experiment'], told, sentences]


def done_runs(root) -> int:
    return len(list(root.glob('*/*/result.json')))


@pytest.mark.slow
def test_an_ablation_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    finish(start('ablate', DEMO, f'--root={whole}'))
    command = ['ablate', DEMO, f'--root={killed}']
    for count in (2, 7):  # in the middle of the run that follows, between its checkpoints
        process = start(*command)
        wait_until(lambda count=count: done_runs(killed) >= count and any(
            path.read_text().count('\n') >= 2 for path in killed.glob('*/*/metrics.jsonl')
            if not (path.parent / 'result.json').exists()), process)
        process.kill()
        finish(process, -signal.SIGKILL)
        assert count <= done_runs(killed) < 12
    finish(start(*command))
    assert outcome(killed) == outcome(whole)
    assert len(outcome(whole)[1]) == 12

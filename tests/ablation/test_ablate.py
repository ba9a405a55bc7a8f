"""Ablations: what is run, once and in whatever pieces; what fails alone; and that a plan never
mixes two versions.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import runpy
import shutil
import signal
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.support import CONFIG_FILE, TINY, experiment, finish, quiet, start, wait_until
from sacrebleu.metrics import BLEU

from transformer_jax import config as config_lib
from transformer_jax.ablation import Experiment, Metric
from transformer_jax.ablation import runner as ablate_lib
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation import train_seeds as rows
from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.results import differences, load_results
from transformer_jax.ablation.runner import Unfinished, ablate, dry_run, duration
from transformer_jax.config import resolve
from transformer_jax.data.tokenizers import BytePairs
from transformer_jax.errors import Busy, ConfigError, DataError, Diverged, Stopped, WorkdirError
from transformer_jax.profiling import measure
from transformer_jax.storage import files as storage
from transformer_jax.storage import manifest
from transformer_jax.storage.locks import lock
from transformer_jax.storage.seed_group_file import read_groups
from transformer_jax.training import programs, seed_groups
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.training_run import REMEDY, Record

METRICS = (Metric('exact_match'), Metric('loss', 'validation', 'last'))
VARIANTS = {
    'base': {},
    'one head': {'model.num_heads': 1},
    'two heads': {'model.num_heads': 2},
    'no dropout': {'model.dropout': 0.0},
}
BASE = {'base': {}}


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


# --- What is to be run ----------------------------------------------------------------------------

EVERYTHING = ['base/0', 'base/1', 'one-head/0', 'one-head/1', 'no-dropout/0', 'no-dropout/1']


def test_equal_configs_share_their_runs(tmp_path):
    made = plan(tmp_path)
    assert names(made.trials) == EVERYTHING
    assert made.settings[0].variants == ('base', 'two heads')
    assert [run.config.train.seed for run in made.trials[:2]] == [0, 1]
    assert made.record['variants']['two heads']['folder'] == 'base'
    assert 'two heads: the same config as base, run once' in ablate_lib.summary(made, 6)


def test_seeds_count_up_from_the_base(tmp_path):
    assert [run.seed for run in plan(tmp_path, seeds=3, **{'train.seed': 5}).trials][:3] == [
        5,
        6,
        7,
    ]


def test_only_and_shards_divide_the_runs(tmp_path):
    assert (
        names(plan(tmp_path, only=('two heads', 'no dropout')).trials)
        == EVERYTHING[:2] + EVERYTHING[4:]
    )
    parts = [names(plan(tmp_path, shard=f'{i}/4').trials) for i in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part) == sorted(EVERYTHING)
    assert parts == [EVERYTHING[:1], EVERYTHING[1:3], EVERYTHING[3:4], EVERYTHING[4:]]  # neighbours


@pytest.mark.parametrize('shard', ['3/2', '0/2', 'x', '1', '1/0', '-1/2', '1/2/3', ''])
def test_shards_that_are_none(tmp_path, shard):
    with pytest.raises(ConfigError, match=re.escape(f'--shard={shard}: it takes i/n')):
        plan(tmp_path, shard=shard)


def test_only_knows_the_variants(tmp_path):
    with pytest.raises(
        ConfigError, match="--only=one haed: no such variant; did you mean 'one head'"
    ):
        plan(tmp_path, only=('one haed',))


def test_the_seeds_are_those_of_ablate(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r'base: train\.num_seeds=2: the seeds are those of ablate, and --seeds_per_program',
    ):
        plan(tmp_path, {'base': {}}, **{'train.num_seeds': 2})


@pytest.mark.parametrize(
    ('metric', 'changes', 'message'),
    [
        (
            Metric('blue'),
            {},
            'base: test blue: data.task=.* is scored by loss, accuracy, .* bleu, chrf, exact_match',
        ),
        (
            Metric('loss', checkpoint='best'),
            {},
            r'base: test loss: evaluate\.every=0 finds no best checkpoint',
        ),
        (Metric('loss', checkpoint='avg:3'), {}, r'checkpoint\.average=1 keeps too few for avg:3'),
        (Metric('loss', length=20), {}, 'is scored by accuracy, exact_match'),
        (
            Metric('accuracy', length=40),
            {'model.position': 'learned(max_len=32)'},
            'read 32 tokens at most',
        ),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused_before_anything_runs(
    tmp_path, metric, changes, message
):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path / 'root', VARIANTS, (metric,), **changes)
    assert not (tmp_path / 'root').exists()


# --- Roots ----------------------------------------------------------------------------------------


def test_another_version_of_an_experiment_is_refused_with_its_keys(tmp_path):
    plan(tmp_path).write()
    with pytest.raises(ConfigError, match='another version') as refusal:
        plan(tmp_path, VARIANTS | {'no dropout': {'model.dropout': 0.2}}, **{'train.steps': 5})
    lines = str(refusal.value).split('\n  ')[1:]
    assert lines == [
        'base: train.steps: 4 -> 5',
        'no dropout: model.dropout: 0.0 -> 0.2; train.steps: 4 -> 5',
        'one head: train.steps: 4 -> 5',
        'two heads: train.steps: 4 -> 5',
    ]
    changed = {'checkpoint.keep': 2, 'parallel.mode': 'pmap'}  # no number depends on these
    assert names(plan(tmp_path, **changed).trials) == EVERYTHING
    assert differences(
        {'data.prefetch': 1, 'data.prefetched': 1}, {'data.prefetch': 2, 'data.prefetched': 2}
    ) == ['data.prefetched: 1 -> 2']  # a key whole, as for a workdir


def test_variants_seeds_and_metrics_may_come_and_go(tmp_path):
    plan(tmp_path, seeds=3).write()
    variants = {'new': {'model.d_ff': 8}, 'also base': {}, 'one head': VARIANTS['one head']}
    made = plan(tmp_path, variants, (Metric('bleu'),), seeds=1)
    assert made.record['seeds'] == [0, 1, 2]
    assert names(made.trials) == [
        'new/0',
        'base/0',
        'one-head/0',
    ]  # a config keeps its folder under another name
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
    (tmp_path / 'experiment.json').write_text(
        json.dumps(plan(tmp_path / 'new').record | {'reference': 'nonesuch'})
    )
    with pytest.raises(WorkdirError, match='does not describe an experiment'):
        plan(tmp_path)
    with pytest.raises(ConfigError, match=r'has no experiment\.json'):
        load_results(tmp_path / 'file' / '..' / '..')


# --- Runs that fail, stop, or are elsewhere, without training -------------------------------------


def write_result(run, **changes) -> None:
    """A sound result.json of a run that was never trained."""
    result = {
        'scores': {'test exact_match': 0.5, 'validation loss': 1.0},
        'seed': run.seed,
        'params': 1,
        'non_embedding_params': 1,
        'flops': 1,
        'step_seconds': None,
        'memory_bytes': None,
        'wall_seconds': 1.0,
        'steps': 4,
        'step': 4,
        'machine': {},
        'commit': None,
        'date': '2026-11-22',
    }
    (run.workdir / 'result.json').write_text(json.dumps(result | changes))


def write_run(config, path) -> None:
    """Write the files that training leaves in the folder of a run."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'config.json').write_text(json.dumps(config_lib.to_dict(config)))
    (path / 'metrics.jsonl').touch()


def write_checkpoint(path, step, **meta) -> None:
    """A checkpoint without a state: what says how far a run or a group is."""
    folder = path / 'checkpoints' / str(step)
    folder.mkdir(parents=True)
    (folder / 'meta.json').write_text(json.dumps({'step': step, 'meta': meta}))
    manifest.write(folder)


@pytest.fixture
def pretend(monkeypatch):
    """Runs cost nothing, and those named in the dictionary that is returned raise; `trained` lists
    the others.

    In a group only a run that diverges fails alone, and what a group itself raises it does after
    a checkpoint.
    """
    errors, trained = {}, []

    def train(config, path, log):
        if error := errors.get(name := f'{path.parent.name}/{path.name}'):
            raise error
        seed_groups.release_member(path)
        write_run(config, path)
        write_checkpoint(path, 4, record=dataclasses.asdict(Record()))
        log('step 4/4')
        trained.append(name)

    def train_group(configs, group, log):
        row = group.parent.name
        failed = [errors.get(f'{row}/{config.train.seed}') for config in configs]
        group.path.mkdir(exist_ok=True)
        seed_groups.begin_group(group)
        for config, path in zip(configs, group.member_paths, strict=True):
            write_run(config, path)
        records = [Record(failed=str(error) if error else '') for error in failed]
        for error in failed:
            if error and not isinstance(error, Diverged):
                raise error
        late = errors.get(name := f'{row}/{group.name}')
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
    """As `pretend`, and seeds share programs."""
    monkeypatch.setattr(seed_groups, 'can_share', lambda config: True)
    return pretend


def test_a_failure_does_not_stop_the_others_and_goes_away(pretend, tmp_path):
    pretend |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    assert str(unfinished.value).split('\n  ') == [
        '2 of 6 runs are not done:',
        'base/1: step 3: loss nan',
        'one-head/0: ZeroDivisionError: oh',
    ]
    assert unfinished.value.exit_code == 1  # a program that failed
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
    assert pretend['trained'] == ['base/1', 'one-head/0']  # what is done is not done again
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
    pretend |= {'one-head/1': Busy('in use by process 7')}  # trained by hand
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


def test_the_table_on_a_terminal(tmp_path):
    made, lines = plan(tmp_path), []
    live_table = LiveTable(made, set(made.trials[1:]), lines.append)
    live_table.set_remark(made.trials[1:2], 'step 2')
    live_table.states[made.trials[2]] = 'failed'
    made.trials[1].workdir.mkdir(parents=True)
    (made.trials[1].workdir / 'metrics.jsonl').write_text(
        json.dumps({'step': 2, 'split': 'train', 'loss': 3.25, 'steps_per_second': 0.01}) + '\n'
    )
    rows_ = zip(*(column.cells for column in live_table.table().columns), strict=True)
    assert list(rows_) == [
        ('base, two heads', '1/2', 'training seed 1', '2/4', '3.2500', '3.3'),
        ('one head', '0/2', '1 failed', '', '', ''),
        ('no dropout', '0/2', '', '', '', ''),
    ]
    live_table.set_remark(made.trials[4:], 'both')
    assert (
        next(
            cells
            for cells in zip(*(column.cells for column in live_table.table().columns), strict=True)
            if cells[0] == 'no dropout'
        )[2]
        == 'training seed 0, 1'
    )
    assert lines == ['base/1: step 2', 'no-dropout/0-1: both']
    for run, at in zip(made.trials[4:], (2, 3), strict=True):
        run.workdir.mkdir(parents=True)
        (run.workdir / 'metrics.jsonl').write_text(
            json.dumps({'step': at, 'split': 'train', 'loss': 'nan', 'steps_per_second': 0.01})
            + '\n'
        )
    assert [list(column.cells)[2] for column in live_table.table().columns][2:] == [
        'training seed 0, 1',
        '3/4',
        'nan',
        '1.7',
    ]  # the furthest


# --- Groups of seeds, without training ------------------------------------------------------------


def unscored(root, *seeds) -> None:
    for seed in seeds:
        (root / f'base/{seed}/result.json').unlink()


def entry(*members) -> str:
    """Return the content of a seed_groups.json with the group 0-1."""
    groups = {'0-1': {'members': list(members), 'released': []}}
    return json.dumps({'version': 1, 'groups': groups})


def done_seeds(root) -> list[int]:
    return [run['seed'] for run in load_results(root)['runs']]


def test_the_seeds_of_a_row_share_a_program(shared, tmp_path):
    shared |= {'base/1': Diverged('step 3: loss nan'), 'one-head/0': ZeroDivisionError('oh')}
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    oh = 'ZeroDivisionError: oh; --seeds_per_program=N trains fewer seeds in one program'
    assert str(unfinished.value).split('\n  ') == [
        '3 of 6 runs are not done:',
        f'base/1: step 3: loss nan; {REMEDY}',
        f'one-head/0, one-head/1: {oh}',
    ]
    assert shared['trained'] == ['base/0-1', 'no-dropout/0-1']
    assert json.loads((tmp_path / 'base/1/failure.json').read_text()) == {
        'error': f'step 3: loss nan; {REMEDY}'
    }
    assert (
        'in train_group'
        in json.loads((tmp_path / 'one-head/1/failure.json').read_text())['traceback']
    )


def test_so_many_seeds_share_a_program(shared, tmp_path):
    ablate(plan(tmp_path, BASE, seeds=5), quiet, most=2)
    assert shared['trained'] == ['base/0-1', 'base/2-3', 'base/4']


def test_the_name_of_a_group_tells_its_seeds():
    assert seed_groups.group_name([0, 1, 5]) == '0-1-5'
    many = [
        range(100),
        [*range(50), *range(51, 101)],
        [*range(50), *range(51, 99), 100],
        range(1, 100),
    ]
    found = [seed_groups.group_name(list(seeds)) for seeds in many]
    assert len(set(found)) == len(many)
    assert all(re.fullmatch('[01]-to-(99|100)-[0-9a-f]{16}', name) for name in found)


def test_what_was_begun_goes_on_as_it_was(shared, tmp_path, monkeypatch):
    """A group whole, whatever --seeds_per_program says now; a run that was alone, alone."""
    (tmp_path / 'base/0').mkdir(parents=True)
    (tmp_path / 'base/0/metrics.jsonl').touch()
    shared['base/1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    del shared['base/1-2'], shared['trained'][:]
    ablate(plan(tmp_path, BASE, seeds=3), quiet, most=1)
    assert shared['trained'] == ['base/1-2']
    assert done_seeds(tmp_path) == [0, 1, 2]
    unscored(tmp_path, 1)
    shutil.rmtree(tmp_path / 'base/1-2')
    with pytest.raises(
        Unfinished,
        match=r'base/1: .* was trained together with other runs in .*/base/1-2, which is gone',
    ):
        ablate(plan(tmp_path, BASE), quiet)


@pytest.mark.parametrize('most', [0, 1])
def test_a_group_without_a_checkpoint_does_not_bind(shared, tmp_path, most):
    shared['base/1'] = MemoryError('of the device')
    oh = 'base/2: of the device: take smaller batches .*; --seeds_per_program=N trains fewer '
    with pytest.raises(Unfinished, match=oh) as unfinished:
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert unfinished.value.exit_code == 2
    with (
        lock(storage.absolute_path(tmp_path) / 'base/0-1-2/lock'),
        pytest.raises(Unfinished) as unfinished,
    ):
        ablate(
            plan(tmp_path, BASE, seeds=4), quiet, most
        )  # who trains it there has no checkpoint yet
    assert re.search(
        '3 of 4 .*\n  base/0, base/1, base/2: .*0-1-2 is in use by', str(unfinished.value)
    )
    assert shared['trained'] == ['base/3']
    (tmp_path / 'base/1/metrics.jsonl').unlink()  # The process was killed before it wrote that.
    del shared['base/1'], shared['trained'][:]
    ablate(plan(tmp_path, BASE, seeds=2), quiet, most)
    assert shared['trained'] == (['base/0', 'base/1'] if most else ['base/0-1'])
    assert list(read_groups(storage.absolute_path(tmp_path) / 'base')) == ([] if most else ['0-1'])
    assert not (tmp_path / 'base/2/metrics.jsonl').exists()


def test_a_group_that_has_a_checkpoint_says_how_to_part_with_it(shared, tmp_path):
    shared['base/0-1'] = MemoryError('of the device')
    with pytest.raises(Unfinished, match=r'one program, once .*/base/0-1 and its runs are deleted'):
        ablate(plan(tmp_path, BASE), quiet)
    del shared['base/0-1']
    for folder in ('0-1', '0', '1'):
        shutil.rmtree(tmp_path / 'base' / folder)
    ablate(plan(tmp_path, BASE), quiet, most=1)
    assert shared['trained'] == ['base/0', 'base/1']
    assert not read_groups(storage.absolute_path(tmp_path) / 'base')


def test_a_failure_keeps_nothing_of_the_run_alive(pretend, tmp_path, monkeypatch):
    arrays = []

    def out_of_memory(config, path, log):
        assert not any(array() is not None for array in arrays)
        array = np.zeros(3)
        arrays.append(weakref.ref(array))
        raise MemoryError

    monkeypatch.setattr(rows, 'train', out_of_memory)
    with pytest.raises(Unfinished):
        ablate(plan(tmp_path), quiet)
    assert len(arrays) == 6


def test_what_has_ended_is_not_opened_for_training(shared, tmp_path):
    shared['base/1'] = Diverged('step 3: loss nan')
    with pytest.raises(Unfinished, match='1 of 4 runs'):
        ablate(plan(tmp_path, BASE | {'one head': VARIANTS['one head']}), quiet)
    unscored(tmp_path, 0)
    shared['trained'].clear()
    with (
        lock(storage.absolute_path(tmp_path) / 'base/0-1/lock'),
        pytest.raises(Unfinished) as unfinished,
    ):
        ablate(plan(tmp_path, BASE), quiet)
    assert (
        str(unfinished.value) == f'1 of 2 runs are not done:\n  base/1: step 3: loss nan; {REMEDY}'
    )
    assert (shared['trained'], done_seeds(tmp_path)) == ([], [0])


def test_a_run_of_another_configuration_is_opened_and_refused(pretend, tmp_path, monkeypatch):
    ablate(plan(tmp_path, BASE), quiet)
    unscored(tmp_path, 0)
    write_run(
        plan(tmp_path / 'other', BASE, **{'train.steps': 3}).trials[0].config, tmp_path / 'base/0'
    )
    monkeypatch.undo()
    with pytest.raises(
        Unfinished, match=r'base/0: .* with another configuration \(train.steps: 3 -> 4\)'
    ):
        ablate(plan(tmp_path, BASE), quiet)


def test_a_run_that_was_deleted_is_done_again_alone(shared, tmp_path):
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    unscored(tmp_path, 0)
    shutil.rmtree(tmp_path / 'base/1')
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert shared['trained'] == ['base/0-1-2', 'base/1']
    assert done_seeds(tmp_path) == [0, 1, 2]
    unscored(tmp_path, 0, 1)
    ablate(plan(tmp_path, BASE, seeds=3), quiet)
    assert shared['trained'] == ['base/0-1-2', 'base/1']
    for seed in (0, 1, 2):
        shutil.rmtree(tmp_path / f'base/{seed}')
    ablate(plan(tmp_path, BASE, seeds=3), quiet)  # not slices of the old group
    assert shared['trained'][2:] == ['base/0', 'base/1', 'base/2']


def test_a_deleted_member_of_a_group_that_goes_on_comes_back(shared, tmp_path):
    shared['base/0-1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    shutil.rmtree(tmp_path / 'base/1')
    del shared['base/0-1-2']
    found = [
        run.seed
        for run, failure in rows.train_seeds(
            plan(tmp_path, BASE).trials, 0, lambda runs, line: None
        )
    ]
    assert (found, shared['trained']) == ([0, 1, 2], ['base/0-1-2'])  # each once


def test_one_that_ended_early_is_told_once(shared, tmp_path):
    shared |= {'base/0': Diverged('nan'), 'base/0-1': Stopped(signal.SIGTERM, 'stopped')}
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE), quiet)
    del shared['base/0-1']
    found = list(rows.train_seeds(plan(tmp_path, BASE).trials, 0, lambda runs, line: None))
    assert [(run.seed, failure and failure.exit_code) for run, failure in found] == [
        (0, 4),
        (1, None),
    ]


@pytest.mark.parametrize('held', [False, True])
def test_who_goes_on_with_a_group_scores_all_of_it(shared, tmp_path, held):
    shared['base/0-1-2'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path, BASE, seeds=3), quiet)
    del shared['base/0-1-2']
    shared['base/1'] = Diverged('nan')  # nobody asked for it here
    lines = []
    with (
        lock(storage.absolute_path(tmp_path) / 'base/2/ablate.lock')
        if held
        else contextlib.nullcontext()
    ):
        ablate(plan(tmp_path, BASE, seeds=3, shard='1/3'), lines.append)
    assert shared['trained'] == ['base/0-1-2']
    assert done_seeds(tmp_path) == ([0] if held else [0, 2])
    assert lines[-1].startswith('1 of 1 runs done')
    with pytest.raises(Unfinished, match=r'1 of 1 .*\n  base/1: nan'):
        ablate(plan(tmp_path, BASE, seeds=3, shard='2/3'), quiet)
    ablate(plan(tmp_path, BASE, seeds=3, shard='3/3'), quiet)
    assert (shared['trained'], done_seeds(tmp_path)) == (['base/0-1-2'], [0, 2])


@pytest.mark.parametrize(
    'content', ['{', '[]', '{"version": 1}', entry('x', '0', '1'), entry('00', '0', '1')]
)
def test_a_damaged_group_fails_its_row_alone(shared, tmp_path, content):
    shared['base/0-1'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped):
        ablate(plan(tmp_path), quiet)
    (tmp_path / 'base/seed_groups.json').write_text(content)
    del shared['base/0-1']
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    first, line = str(unfinished.value).split('\n')
    assert (first, unfinished.value.exit_code) == ('2 of 6 runs are not done:', 3)
    assert re.match('  base/0, base/1: .*base/seed_groups.json (is damaged|lists)', line)
    assert shared['trained'] == ['one-head/0-1', 'no-dropout/0-1']


def test_a_signal_that_came_too_late_for_training_stops_the_ablation(
    pretend, tmp_path, monkeypatch
):
    def signalled(config, path, log):
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rows, 'train', signalled)
    with pytest.raises(Stopped, match=r'stopped by SIGTERM; the same command continues \(0 of 6'):
        ablate(plan(tmp_path), quiet)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)  # Python's own handler: what is done is done


def test_shards_meet_in_the_root(pretend, tmp_path):
    for shard in ('1/2', '2/2'):
        ablate(plan(tmp_path, shard=shard), quiet)
    assert not json.loads((tmp_path / 'results.json').read_text())['missing']
    assert sorted(pretend['trained']) == sorted(EVERYTHING)


# --- Results are read strictly --------------------------------------------------------------------


@pytest.fixture
def done(pretend, tmp_path):
    """(root, its runs), all done."""
    made = plan(tmp_path)
    ablate(made, quiet)
    return tmp_path, made.trials


def test_a_results_file_stands_for_its_root(done):
    root, _ = done
    assert (
        load_results(root / 'results.json')
        == load_results(root)
        == json.loads((root / 'results.json').read_text())
    )
    assert len(load_results(root)['runs']) == 6
    assert max(map(len, (root / 'results.json').read_text().splitlines())) > 1000  # a run is a line


@pytest.mark.parametrize(
    ('damage', 'why'),
    [
        (
            lambda run: write_result(run, scores={'test exact_match': 0.5}),
            'its validation loss is not measured',
        ),
        (
            lambda run: write_result(run, scores={'test exact_match': 'nan', 'validation loss': 1}),
            'its test exact_match is nan',
        ),
        (lambda run: write_result(run, seed=7), 'damaged: result.json is of seed 7'),
        (lambda run: write_result(run, lengths=[]), 'damaged: lengths of result.json is no object'),
        (
            lambda run: (run.workdir / 'result.json').write_text('{"scores": {}}'),
            'damaged: result.json lacks seed, params',
        ),
        (
            lambda run: (run.workdir / 'result.json').write_text('{"scores'),
            'damaged: Unterminated string',
        ),
        (lambda run: (run.workdir / 'result.json').write_text('[]'), 'damaged: result.json lacks'),
        (lambda run: (run.workdir / 'config.json').unlink(), 'damaged: '),
        (lambda run: (run.workdir / 'result.json').unlink(), 'not run'),
        (
            lambda run: (run.workdir / 'config.json').write_text(
                json.dumps(config_lib.to_dict(experiment()))
            ),
            'of another version of the experiment: model.num_heads: 2 -> 1; train.steps: 12 -> 4',
        ),
    ],
)
def test_what_is_damaged_is_missing(done, damage, why):
    root, runs = done
    damage(runs[3])
    found = load_results(root)
    assert [(run['folder'], run['seed']) for run in found['runs']] == [
        (run.setting.folder, run.seed) for run in runs if run is not runs[3]
    ]
    [missing] = found['missing']
    assert (missing['folder'], missing['seed']) == ('one-head', 1)
    assert missing['why'].startswith(why)
    assert plan(root).lacks(runs[3]) == missing['why']


def test_lengths_that_were_binned_otherwise_are_measured_again(done):
    root, runs = done
    metrics = (Metric('accuracy', length=12), Metric('accuracy', length=24))
    write_result(
        runs[0], scores={str(metric): 1.0 for metric in metrics}, lengths={'test': [12, 24]}
    )
    assert not plan(root, VARIANTS, metrics).lacks(runs[0])
    assert plan(root, VARIANTS, metrics[1:]).lacks(runs[0]) == 'test was measured at other lengths'


def test_a_run_on_its_way_says_how_far_it_is(done):
    root, runs = done
    (runs[0].workdir / 'result.json').unlink()
    (runs[0].workdir / 'metrics.jsonl').write_text(
        '{"step": 3, "split": "train"}\n{"step": 4, "spl'
    )
    assert load_results(root)['missing'][0]['why'] == 'not finished: at step 3 of 4'


@pytest.mark.parametrize(
    'content', ['[]', '{', '{"runs": []}', '{"runs": [], "experiment": {"variants": {}}}']
)
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
        'not in results.json',
        'its validation loss is not measured',
    ]
    assert len(found['runs']) == 4


# --- Real runs ------------------------------------------------------------------------------------


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
        'test exact_match': evaluations[0]['exact_match'],
        'validation loss': evaluations[1]['loss'],
    }
    assert run['params'] > run['non_embedding_params'] > 1000
    assert run['memory_bytes'] > 12 * run['params']  # Adam's state and the gradient
    assert run['flops'] > run['params']
    assert (run['steps'], run['step'], run['folder']) == (4, 4, 'base')
    assert 0 < run['step_seconds'] < run['wall_seconds']
    assert 'host' not in run['machine']
    assert lines[-1].startswith('1 of 1 runs done')
    assert any(line.startswith('base/0: step 4/4: loss') for line in lines)


@pytest.mark.slow
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
    for run in found:
        events = list(
            map(
                json.loads,
                (tmp_path / f'base/{run["seed"]}/metrics.jsonl').read_text().splitlines(),
            )
        )
        shares = [
            event['seconds'] * event['steps_per_second'] for event in events
        ]  # a line is a step
        assert shares == pytest.approx(4 * [1 / run['side_by_side']])
        assert run['wall_seconds'] == sum(event['seconds'] for event in events)
    assert len({run['step_seconds'] for run in found}) == 1  # of the row
    for label, score in alone['scores'].items():
        assert found[0]['scores'][label] == pytest.approx(score, abs=1e-4)
    losses = {run['scores']['validation loss'] for run in found}
    assert len(losses) == 3
    assert {key: found[0][key] for key in ('params', 'flops', 'memory_bytes', 'step')} == {
        key: alone[key] for key in ('params', 'flops', 'memory_bytes', 'step')
    }


def test_the_time_of_a_step_is_a_metric(real, monkeypatch):
    root, _ = real
    made = plan(root, {'base': {}}, (*METRICS, Metric('step_seconds')), seeds=1)
    assert made.lacks(made.trials[0]) == 'its step_seconds is not measured'
    monkeypatch.setattr(score_lib, 'TrainedRun', None)  # nothing is evaluated again
    score_lib.score(made.trials[0], made.experiment.metrics, quiet)
    result = json.loads((root / 'base/0/result.json').read_text())
    assert result['scores']['step_seconds'] == result['step_seconds'] > 0
    assert not made.lacks(made.trials[0])


def test_a_row_is_tried_once_and_a_timed_run_every_time(real, tmp_path, monkeypatch):
    root, tried = shutil.copytree(real[0], tmp_path / 'root'), []

    def trial(components, tokenizer):
        tried.append(components.config.train.seed)
        assert (tokenizer / 'tokenizer.json').exists()
        return measure.StepMeasurement(1.0, 0.25 * len(tried), 3)

    monkeypatch.setattr(measure, 'measure_step', trial)
    monkeypatch.setattr(score_lib, '_tried', {})
    monkeypatch.setattr(score_lib, 'TrainedRun', None)
    made = plan(root, BASE, seeds=1)
    for metrics, times in (
        (METRICS, 1),
        (METRICS, 1),
        ((*METRICS, Metric('step_seconds')), 2),
        ((Metric('step_seconds'),), 3),
    ):
        score_lib.score(made.trials[0], metrics, quiet)
        assert len(tried) == times
        result = json.loads((root / 'base/0/result.json').read_text())
        assert (result['step_seconds'], result['memory_bytes']) == (0.25 * times, 3)
    assert result['scores']['step_seconds'] == 0.75


@pytest.mark.parametrize(
    ('clock', 'median'), [([9, 0.2, 0.3, 0.1, 0.5, 7], 0.25), ([9, *51 * [1e-3], 7], 1e-3)]
)
def test_a_trial_compiles_once_and_times_until_it_is_enough(
    real, tmp_path, monkeypatch, clock, median
):
    traced, left = [], list(clock)

    def counted(*args):
        traced.append(args)
        return original(*args)

    def seconds(function):
        jax.block_until_ready(function())
        return left.pop(0)

    original = programs.train_step
    monkeypatch.setattr(programs, 'train_step', counted)
    monkeypatch.setattr(measure, 'seconds', seconds)
    monkeypatch.setattr(BytePairs, 'train', None)  # the tokenizer is not learned anew
    config = plan(tmp_path, BASE).trials[0].config
    found = measure.measure_step(
        resolve(config), storage.absolute_path(real[0]) / 'base/0/tokenizer'
    )
    assert found.step_seconds == pytest.approx(median)
    assert len(traced) == 1
    assert left in ([7], [1e-3, 7])  # a second is over, or 50 steps


@pytest.mark.slow
def test_a_trial_under_pmap(real, tmp_path):
    config = plan(tmp_path, BASE, **{'parallel.mode': 'pmap'}).trials[0].config
    found = measure.measure_step(
        resolve(config), storage.absolute_path(real[0]) / 'base/0/tokenizer'
    )
    assert found.step_seconds > 0
    assert found.memory_bytes > 12 * measure.model_size(resolve(config)).params


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'seed': 1},
        {'scores': ['test exact_match']},
        {'scores': {'test exact_match': 'nan', 'validation loss': 1.0}},
        {'examples': None},
        {'lengths': 3},
        {'checkpoints': {'validation loss': [4]}},
        {'checkpoints': []},
    ],
)
def test_only_a_sound_score_of_this_run_is_taken_over(real, tmp_path, monkeypatch, changes):
    class Evaluated(Exception):
        pass

    def trained(*args):
        raise Evaluated

    root = shutil.copytree(real[0], tmp_path / 'root')
    path = root / 'base/0/result.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    monkeypatch.setattr(score_lib, 'TrainedRun', trained)
    monkeypatch.setattr(score_lib, '_costs', lambda run, anew: {})
    with pytest.raises(Evaluated) if changes else contextlib.nullcontext():
        score_lib.score(plan(root, BASE).trials[0], METRICS, quiet)


def test_a_new_metric_is_scored_without_training(real, monkeypatch):
    root, _ = real
    before = (root / 'base/0/metrics.jsonl').read_text(), load_results(root)['runs'][0]['scores']
    metrics = (
        *METRICS,
        Metric('bleu'),
        Metric('accuracy', 'validation', length=12),
        Metric('accuracy', length=24),
    )
    made = plan(root, {'base': {}}, metrics, seeds=1)
    assert 'bleu is not measured' in made.lacks(made.trials[0])
    ablate(made, quiet)
    [run] = load_results(root)['runs']
    assert before == (
        (root / 'base/0/metrics.jsonl').read_text(),
        {label: run['scores'][label] for label in before[1]},
    )
    assert 0 <= run['scores']['validation accuracy at 12'] <= 1
    assert run['lengths'] == {'validation': [12], 'test': [24]}
    hypotheses = (root / 'base/0' / run['examples']['test bleu']).read_text().splitlines()
    sentences = json.loads((root / 'base/0/sentences.json').read_text())
    assert (
        len(sentences['test bleu']) == len(sentences['test exact_match']) == len(hypotheses) == 20
    )
    totals = np.array(sentences['test bleu']).sum(0).tolist()
    bleu = BLEU.compute_bleu(totals[:4], totals[4:8], totals[8], totals[9], smooth_method='exp')
    assert bleu.score == pytest.approx(run['scores']['test bleu'])
    assert np.mean(sentences['test exact_match']) == run['scores']['test exact_match']


def test_a_dry_run_measures_and_writes_nothing(tmp_path):
    lines = []
    shown = dry_run(plan(tmp_path / 'root', only=('base',)), lines.append)
    assert not (tmp_path / 'root').exists()
    columns = {column.header: list(column.cells) for column in shown.columns}
    assert (columns['seeds'], columns['to do'], columns['variants']) == (
        ['0 1'],
        ['2'],
        ['base, two heads'],
    )
    assert float(columns['ms per step'][0]) > 0
    size = measure.model_size(resolve(plan(tmp_path / 'root').settings[0].config))
    assert columns['parameters'] == [f'{size.params:,}']
    assert '2 of 2 runs to do' in shown.title


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


# --- The command ----------------------------------------------------------------------------------

DEMO = str(Path(__file__).parents[2] / 'experiments' / 'demo' / 'number_words.py')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--experiment is missing, as in: transformer-jax ablate experiments/'),
        ([DEMO], '--root is missing'),
        (['nope.py', '--root=r'], 'nope.py: there is no such file; name one of experiments/'),
        ([DEMO, '--root=r', '--seeds=0'], '--seeds=0'),
        ([DEMO, '--root=r', '--shard=3/2'], '--shard=3/2: it takes i/n'),
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
    """What must not depend on how often a run was killed: all but times."""
    content = json.loads((root / 'results.json').read_text())
    assert not content['missing']
    times = ('step_seconds', 'wall_seconds', 'date', 'commit')
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


@pytest.mark.slow
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

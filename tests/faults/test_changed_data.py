"""Data that changed between two starts of a run is refused; data that only moved is not."""

import gzip
import json
import shutil

import pytest
from etils import epath
from helpers.support import experiment, flags, quiet

from transformer_jax import config as config_lib
from transformer_jax.data import fingerprints, load_data
from transformer_jax.data.fingerprints import split_fingerprint
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.evaluation import by_length
from transformer_jax.inference import probes
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.training.train import train
from transformer_jax.training.trainer import Trainer

NUMBERS = ['one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten']
TASK = "parallel_text(train='train.{lang}', validation='validation.{lang}', test='')"


def write(folder, split, rows):
    folder.mkdir(exist_ok=True)
    for language, column in (('en', 0), ('de', 1)):
        text = ''.join(f'{row[column]}\n' for row in rows)
        (folder / f'{split}.{language}').write_text(text)


ROWS = [(f'{a} and {b}', f'{b} {a}') for a in NUMBERS for b in NUMBERS]


CHARACTERS = len(set(''.join(' '.join(row) for row in ROWS)))
RUN = {
    'data__task': TASK,
    'data__tokenizer': 'characters',
    'data__vocab_size': CHARACTERS + 4,
    'train__steps': 2,
    'evaluate__every': 1,
    'evaluate__best_metric': 'loss',
    'evaluate__max_examples': 1,
}


def of(folder, **changes):
    return experiment(**RUN, data__source_dir=str(folder), **changes)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with `data`, and `run`, which was trained on it."""
    root = tmp_path_factory.mktemp('changed')
    write(root / 'data', 'train', ROWS)
    write(root / 'data', 'validation', ROWS[:5])
    train(of(root / 'data'), root / 'run', quiet)
    return root


def edit(split, change):
    def act(folder):
        rows = list(ROWS if split == 'train' else ROWS[:5])
        change(rows)
        write(folder, split, rows)

    return act


def put(rows, index, row):
    rows[index] = row


def zip_up(folder):
    for path in list(folder.iterdir()):
        (folder / f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


CHANGES = {
    'a line more': ('train', lambda rows: rows.append(('one', 'one'))),
    'a line less': ('train', lambda rows: rows.pop()),
    'two lines exchanged': ('train', lambda rows: rows.insert(0, rows.pop(1))),
    'one letter': (
        'train',
        lambda rows: put(rows, 7, ('one and eighT'.lower(), rows[8][1])),
    ),
    'another target': ('train', lambda rows: put(rows, 3, (rows[3][0], 'one one'))),
    'the last line': ('train', lambda rows: put(rows, -1, ('ten and ten', 'ten one'))),
    'all sorted': ('train', lambda rows: rows.sort()),
    'the validation split': ('validation', lambda rows: rows.pop()),
    'a word of the validation split': (
        'validation',
        lambda rows: put(rows, 0, ('one', 'two')),
    ),
}


@pytest.mark.parametrize(('split', 'change'), CHANGES.values(), ids=CHANGES)
def test_changed_data_is_refused_or_told(split, change, trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained / 'run', tmp_path / 'run')
    folder = shutil.copytree(trained / 'data', tmp_path / 'data')
    edit(split, change)(folder)
    with pytest.raises(DataError, match=rf'not the data of this run any more: {split} changed'):
        train(of(folder), workdir, quiet)
    lines = []
    monkeypatch.setattr(Trainer, 'run', lambda self: None)
    train(of(folder), workdir, lines.append, allow_changed_data=True)
    assert [line for line in lines if f'{split} changed since then' in line]
    if split == 'validation':
        with pytest.raises(DataError, match='not the data of this run'):
            TrainedRun(workdir, 'last', quiet, {}, ('validation',), str(folder))
        TrainedRun(workdir, 'last', lines.append, {}, ('validation',), str(folder), True)
        assert '--allow_changed_data accepts' in lines[-2] + lines[-1]


MOVES = {
    'moved': lambda folder: None,
    'compressed': zip_up,
    'with carriage returns': lambda folder: (folder / 'train.en').write_bytes(
        (folder / 'train.en').read_bytes().replace(b'\n', b'\r\n')
    ),
    'touched': lambda folder: (folder / 'train.en').touch(),
}


@pytest.mark.parametrize('move', MOVES.values(), ids=MOVES)
def test_moved_data_is_known_again(move, trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained / 'run', tmp_path / 'run')
    folder = shutil.copytree(trained / 'data', tmp_path / 'elsewhere')
    move(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, 'run', lambda self: None)
    train(of('elsewhere'), workdir, quiet)  # A relative path, recorded as an absolute one.
    monkeypatch.chdir('/')
    assert TrainedRun(workdir, '', quiet, {}, ('validation',)).config.data.source_dir == str(folder)
    moved = folder.rename(tmp_path / 'again')
    with pytest.raises(DataError, match='no such file'):
        TrainedRun(workdir, '', quiet, {}, ('validation',))
    TrainedRun(workdir, '', quiet, {}, ('validation',), str(moved))


@pytest.mark.parametrize(
    'changes',
    [{}, {'train__seed': 9}, {'train__batch_tokens': 256}, {'parallel__mode': 'pmap'}],
)
def test_a_fingerprint_is_of_the_examples_alone(changes, trained):
    """Not of their order in training, of the batches, or of the devices."""
    one, other = (
        load_data(config_lib.resolve(config).pipeline, epath.Path(trained / 'run/tokenizer'), quiet)
        for config in (of(trained / 'data'), of(trained / 'data', **changes))
    )
    assert split_fingerprint(one, 'train') == split_fingerprint(other, 'train')
    assert split_fingerprint(one, 'train') != split_fingerprint(one, 'validation')


# --- The flags of the commands --------------------------------------------------------------------

# Arguments of each, without the workdir, for data in a folder.
COMMANDS = {
    'train': lambda folder: ['train', *flags(**RUN, data__source_dir=folder)],
    'evaluate': lambda folder: ['evaluate', '--split=validation', f'--source_dir={folder}'],
    'evaluate --lengths': lambda folder: [
        *('evaluate', '--split=validation', '--lengths=24', f'--source_dir={folder}')
    ],
    'probe': lambda folder: ['probe', f'--source_dir={folder}'],
}


@pytest.fixture
def command(trained, tmp_path, call, monkeypatch):
    """Runs a command on the run and data in a folder: all that it says, up to its first work."""

    def work(*arguments):
        raise ConfigError('the work begins')

    for owner, name in (
        (Trainer, 'run'),
        (TrainedRun, 'measure'),
        (by_length, 'by_length'),
        (probes, 'probe'),
    ):
        monkeypatch.setattr(owner, name, work)
    workdir = shutil.copytree(trained / 'run', tmp_path / 'run')

    def run(name, folder, *options):
        code, output, errors = call(*COMMANDS[name](folder), f'--workdir={workdir}', *options)
        assert (code, output) == (2, '')
        assert 'Traceback' not in errors
        return errors

    return run


def test_run_json_has_the_fingerprints_and_an_evaluation_that_of_its_split(trained, tmp_path):
    workdir = shutil.copytree(trained / 'run', tmp_path / 'run')
    [start] = json.loads((workdir / 'run.json').read_text())
    data = load_data(
        config_lib.resolve(of(trained / 'data')).pipeline, epath.Path(workdir / 'tokenizer'), quiet
    )
    expected = {split: split_fingerprint(data, split) for split in ('train', 'validation')}
    assert start['splits'] == expected
    scores = TrainedRun(workdir, 'last', quiet, {}).evaluate('validation').scores
    assert scores['split_sha256'] == expected['validation']
    [written] = json.loads((workdir / 'evaluations.json').read_text())
    assert written['split_sha256'] == expected['validation']


@pytest.mark.parametrize('name', COMMANDS)
def test_commands_refuse_changed_data_or_tell(name, command, trained, tmp_path):
    folder = shutil.copytree(trained / 'data', tmp_path / 'data')
    edit('validation', lambda rows: rows.pop())(folder)
    line = f'{folder}: not the data of this run any more: validation changed since then'
    refused = command(name, folder).splitlines()[-1]
    assert f'{line}; restore it, or accept the change with --allow_changed_data' in refused
    told = command(name, folder, '--allow_changed_data')
    assert f'{line}, which --allow_changed_data accepts' in told
    assert told.endswith('the work begins\n')


@pytest.mark.parametrize('name', COMMANDS)
def test_commands_find_data_that_was_moved(name, command, trained, tmp_path):
    moved = shutil.copytree(trained / 'data', tmp_path / 'moved')
    said = command(name, moved)
    assert said.endswith('the work begins\n')
    assert 'changed' not in said
    last = command(name, tmp_path / 'nowhere').splitlines()[-1]
    assert f'{tmp_path / "nowhere"}' in last
    assert 'no such file' in last


# --- Data that is too large to hash ---------------------------------------------------------------

# A change, and whether it is noticed where the examples 0, 49 and 99 are compared.
LARGE = {
    'no change': (lambda rows: None, False),
    'the first example': (lambda rows: put(rows, 0, ('eno and one', 'one one')), True),
    'one in the middle': (lambda rows: put(rows, 49, ('five dna ten', 'ten five')), True),
    'the last example': (lambda rows: put(rows, 99, ('ten and net', 'ten ten')), True),
    'another of the same length': (lambda rows: put(rows, 7, ('eno and eight', rows[7][1])), False),
    'another source that is longer': (lambda rows: put(rows, 7, ('ones' * 4, rows[7][1])), True),
    'another target that is shorter': (lambda rows: put(rows, 7, (rows[7][0], 'eight')), True),
    'an example more': (lambda rows: rows.append(rows[0]), True),
}


@pytest.mark.parametrize(('change', 'noticed'), LARGE.values(), ids=LARGE)
def test_of_large_data_lengths_and_a_sample_are_compared(
    change, noticed, trained, tmp_path, monkeypatch
):
    folder = shutil.copytree(trained / 'data', tmp_path / 'data')
    edit('train', change)(folder)
    one, other = (
        load_data(
            config_lib.resolve(of(path)).pipeline, epath.Path(trained / 'run/tokenizer'), quiet
        )
        for path in (trained / 'data', folder)
    )

    def differ():
        return split_fingerprint(one, 'train') != split_fingerprint(other, 'train')

    tokens = int(one.train.lengths.sum())
    assert tokens < fingerprints.MAX_TOKENS
    monkeypatch.setattr(fingerprints, 'SAMPLE', 3)
    assert differ() == (change is not LARGE['no change'][0])  # All of small data is compared.
    monkeypatch.setattr(fingerprints, 'MAX_TOKENS', min(tokens, int(other.train.lengths.sum())) - 1)
    assert differ() == noticed

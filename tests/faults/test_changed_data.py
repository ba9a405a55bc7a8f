"""Data that changed between two starts of a run is refused; data that only moved is not."""

import gzip
import shutil

import pytest
from etils import epath
from helpers.support import experiment, quiet

from transformer_jax import config as config_lib
from transformer_jax.data import load_data
from transformer_jax.data.fingerprints import split_fingerprint
from transformer_jax.errors import DataError
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


def of(folder, **changes):
    return experiment(
        data__task=TASK,
        data__source_dir=str(folder),
        data__tokenizer='characters',
        data__vocab_size=CHARACTERS + 4,
        train__steps=2,
        evaluate__every=1,
        evaluate__best_metric='loss',
        evaluate__max_examples=1,
        **changes,
    )


CHARACTERS = len(set(''.join(' '.join(row) for row in ROWS)))


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

"""A small file of a workdir that is damaged or unreadable is one line with its name and a remedy.

Each case spoils a copy of a finished run or group of seeds, which is then read and resumed: what
needs the file refuses it, what does not need it works, and no other error ever comes out.
"""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from helpers.source import TREES
from helpers.support import CONFIG, CONFIG_FILE, experiment, quiet

import transformer_jax.report.write  # noqa: F401 - As another user it might not be found.
from transformer_jax.errors import UserError
from transformer_jax.inference.run import Run
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.storage.json_files import find_misfit
from transformer_jax.training.train import train

RUN = {'train__steps': 2, 'checkpoint__every': 1, 'evaluate__every': 0}
DEEP = b'[' * 100_000
DEMO = CONFIG_FILE.parents[1] / 'experiments' / 'demo' / 'number_words.py'


def evaluate(path):
    run = TrainedRun(path, '', quiet, {})
    Run(run).metrics('train')
    run.workdir.append_evaluation({'loss': 1.0})


def attempts(path, config):
    """Evaluate and resume; return what each refused, one line each."""
    refused = []
    for attempt in (evaluate, lambda path: train(config, path, quiet)):
        try:
            attempt(path)
        except UserError as error:
            refused.append(str(error))
    assert not [line for line in refused if '\n' in line]
    return refused


@pytest.fixture(scope='module')
def finished():
    """A finished run, in a folder that every user may enter, and its configuration."""
    # Not pytest's folder, which only its owner may enter.
    root = Path(tempfile.mkdtemp(prefix='transformer_jax-faults-'))
    root.chmod(0o777)
    config = experiment(**RUN)
    train(config, root / 'run', quiet)
    assert attempts(shutil.copytree(root / 'run', root / 'sound'), config) == []
    yield root / 'run', config
    shutil.rmtree(root)


CONTENTS = [
    # of one run
    ('config.json', b''),
    ('config.json', b'[]'),
    ('config.json', b'{'),
    ('config.json', b'null'),
    ('config.json', b'\xff\xfe'),
    ('config.json', DEEP),
    ('config.json', b'{}'),
    ('config.json', b'{"version": "new"}'),
    ('config.json', b'{"version": 2, "model": []}'),
    ('run.json', b''),
    ('run.json', b'{}'),
    ('run.json', b'[1]'),
    ('run.json', DEEP),
    ('metrics.jsonl', b'[1]\n'),
    ('metrics.jsonl', b'\xff\n'),
    ('metrics.jsonl', b'{}\n'),
    ('metrics.jsonl', b'{"step": "1", "split": "train"}\n'),
    ('metrics.jsonl', b'\n\n'),
    ('metrics.jsonl', DEEP + b'\n'),
    ('evaluations.json', b''),
    ('evaluations.json', b'{}'),
    ('evaluations.json', b'[[]]'),
    ('tokenizer/tokenizer.json', b''),
    ('tokenizer/tokenizer.json', b'{}'),
    ('tokenizer/tokenizer.json', b'[]'),
    ('tokenizer/tokenizer.json', b'{"sha256": 1}'),
    ('tokenizer/tokenizer.json', b'{"sha256": "", "kind": "none"}'),
    ('tokenizer/tokenizer.json', b'{"sha256": "", "kind": []}'),
    ('tokenizer/tokenizer.json', DEEP),
    ('tokenizer/tokenizer.model', b''),
    ('checkpoints/2/MANIFEST.json', DEEP),
    ('checkpoints/2/MANIFEST.json', b'{"meta.json": 1}'),
    ('checkpoints/2/meta.json', b'[]'),
    ('replica.json', b'{}'),
    ('replica.json', b'[]'),
    ('replica.json', b'\xff'),
    ('../seed_groups.json', b''),
    ('../seed_groups.json', b'{"version": 1}'),
    ('../seed_groups.json', b'{"version": 1, "groups": {"0": []}}'),
]
# Damaged checkpoints are skipped for the one before, with a warning.
SKIPPED = ('checkpoints/2/MANIFEST.json', 'checkpoints/2/meta.json')


@pytest.mark.fault('damaged other files')
@pytest.mark.parametrize(('name', 'content'), CONTENTS)
def test_a_damaged_file_is_named(name, content, finished, tmp_path, caplog):
    run, config = finished
    workdir = shutil.copytree(run, tmp_path / 'run')
    (workdir / name).write_bytes(content)
    refused = attempts(workdir, config)
    path = str((workdir / name).resolve())
    if name in SKIPPED:
        assert not [line for line in refused if Path(name).name not in line]
        assert Path(name).name in caplog.text
        return
    assert refused
    for line in refused:
        assert path in line or f'{workdir} was trained with another' in line or 'tokenizer/' in line


FILES = [
    'config.json',
    'run.json',
    'metrics.jsonl',
    'tokenizer/tokenizer.json',
    'tokenizer/tokenizer.model',
    'checkpoints/2/MANIFEST.json',
    'checkpoints/2/meta.json',
    'checkpoints/2/state/manifest.ocdbt',
    'checkpoints/2/state/_METADATA',
]
FOLDERS = ['..', '.', 'checkpoints', 'checkpoints/2', 'checkpoints/2/state', 'tokenizer']


@contextlib.contextmanager
def as_another_user():
    """Become a user without privileges, if this is root, for whom no permission counts."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def give_away(folder: Path) -> None:
    """Let every user read and write all of a folder."""
    for path in (folder, *folder.rglob('*')):
        path.chmod(0o777)


@pytest.mark.fault('damaged other files')
@pytest.mark.parametrize('name', [*FILES, *FOLDERS])
def test_what_cannot_be_read_is_named(name, finished):
    run, config = finished
    workdir = shutil.copytree(run, run.parent / name.replace('/', '-').replace('.', 'dot') / 'run')
    give_away(workdir.parent)
    (workdir / name).chmod(0)
    try:
        with as_another_user():
            refused = attempts(workdir, config)
    finally:
        (workdir / name).chmod(0o777)
    assert refused
    for line in refused:
        assert str((workdir / name).resolve()) in line, line
        assert 'Permission denied' in line
    # Nothing was taken for damaged, and given up.
    assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['1', '2']


@pytest.fixture
def closed():
    """A folder of another user's, which he alone may enter, in one that all may enter."""
    root = Path(tempfile.mkdtemp(prefix='transformer_jax-faults-'))
    root.chmod(0o755)
    (root / 'home' / 'runs').mkdir(parents=True)
    (root / 'home').chmod(0o700 if os.geteuid() == 0 else 0)
    yield root / 'home'
    (root / 'home').chmod(0o700)
    shutil.rmtree(root)


COMMANDS = [
    ('train', CONFIG, '--workdir={}'),
    ('evaluate', '--workdir={}'),
    ('probe', '--workdir={}'),
    ('inspect', '--workdir={}'),
    ('translate', '--workdir={}'),
    ('ablate', str(DEMO), '--root={}'),
    ('report', '{}'),
    ('report', '{}/results.json'),
]


@pytest.mark.fault('damaged other files')
@pytest.mark.parametrize('command', COMMANDS, ids=[' '.join((row[0], row[-1])) for row in COMMANDS])
def test_a_closed_folder_above_is_one_line(command, closed, call):
    """Of a run that is there and of one that is to begin."""
    for name in ('runs', 'runs/new'):
        with as_another_user():
            code, output, errors = call(*(text.format(closed / name) for text in command))
        assert (code, output) == (3, '')
        assert errors.count('\n') == 1
        assert f'cannot read {closed}/' in errors
        assert 'Permission denied' in errors


@pytest.mark.fault('damaged other files')
@pytest.mark.parametrize('name', FILES)
def test_a_loop_of_links_is_named(name, finished, tmp_path):
    run, config = finished
    workdir = shutil.copytree(run, tmp_path / 'run')
    (workdir / name).unlink()
    (workdir / name).symlink_to(workdir / name)
    refused = attempts(workdir, config)
    assert refused
    assert all(str(workdir / name) in line for line in refused)
    assert all('symbolic links' in line for line in refused)


def test_only_one_module_parses_json():
    """`json.loads(to_json(…))`, a copy as JSON, reads no file."""
    found = []
    for path in TREES:
        source = re.sub(r'json\.loads\((json\.dumps|to_json)\(', '', path.read_text())
        if 'json.load' in source and path.name != 'json_files.py':
            found.append(str(path))
    assert found == []


@pytest.mark.parametrize(
    ('value', 'shape', 'problem'),
    [
        ({}, dict, ''),
        ({'a': 1}, {'a': int}, ''),
        ({'a': True}, {'a': int}, "'a' is not a whole number"),
        ({'a': 1}, {'a': str}, "'a' is not a text"),
        ({}, {'a': str}, "it lacks 'a'"),
        ([], {}, 'it is not an object'),
        ({'a': {'b': 1}, 'c': {}}, {str: {'b': int}}, "'c' lacks 'b'"),
        ({'a': {'b': 1}}, {str: {'b': int}}, ''),
        ({}, {str: int}, ''),
        ([1, 'x'], [int], 'item 1 of it is not a whole number'),
        ([[1]], [[int]], ''),
        (None, (None, str), ''),
        ('x', (None, str), ''),
        (1.5, (int, float), ''),
        (1, (None, str), 'it is not null'),
        (None, object, ''),
    ],
)
def test_find_misfit(value, shape, problem):
    assert find_misfit(value, shape) == problem

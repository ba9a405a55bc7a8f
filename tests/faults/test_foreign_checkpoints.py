"""A checkpoint that is not this run's, not this step's or not of this configuration is refused.

Arrays of the right shapes fit any of them, so only what the checkpoint says of itself can tell.
Each case spoils a copy of a finished run; then every command that reads a checkpoint refuses it in
one line that names a file and a remedy, and no file is changed.
"""

import json
import shutil
from pathlib import Path

import pytest
from etils import epath
from helpers.support import experiment, quiet

from transformer_jax.config import from_dict
from transformer_jax.errors import WorkdirError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.profiling.inspect import inspect_workdir
from transformer_jax.storage import manifest
from transformer_jax.storage.seed_group_file import NAME as SEED_GROUPS
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.init_from import start_from
from transformer_jax.training.train import train

RUN = {'train__steps': 3, 'checkpoint__every': 1, 'checkpoint__keep': 5}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A run and a group of seeds; and what could be taken for them, forged from copies."""
    root = tmp_path_factory.mktemp('runs')
    train(experiment(**RUN), root / 'run', quiet)
    train(experiment(**RUN, train__num_seeds=2), root / 'group', quiet)
    forge(root / 'run', root / 'twin', {})
    forge(root / 'run', root / 'seed', {'train.seed': 1})
    forge(root / 'run', root / 'rate', {'optim.learning_rate': 0.1})
    forge(root / 'group', root / 'group-twin', {})
    return root


def forge(source: Path, target: Path, changes: dict) -> None:
    """Copy a run to one with an identity of its own and some other keys, sound in itself."""
    shutil.copytree(source, target)
    change_keys(target / 'config.json', changes | {'run': target.name})
    for step in (target / 'checkpoints').iterdir():
        change_keys(step / 'meta.json', {'run': target.name})
        config = {f'meta.config.{key}': value for key, value in changes.items()}
        change_keys(step / 'meta.json', config)
        manifest.write(epath.Path(step))


def change_keys(path: Path, changes: dict) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split('.')
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    path.write_text(json.dumps(content))


def copy_step(source: str, step: int, to: int):
    """Put a checkpoint of another run in the place of one of this run."""

    def spoil(root: Path, workdir: Path) -> None:
        target = workdir / 'checkpoints' / str(to)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root / source / 'checkpoints' / str(step), target)

    return spoil


def exchange(one: int, other: int):
    """Exchange the folders of two steps."""

    def spoil(root: Path, workdir: Path) -> None:
        folder = workdir / 'checkpoints'
        (folder / str(one)).rename(folder / 'aside')
        (folder / str(other)).rename(folder / str(one))
        (folder / 'aside').rename(folder / str(other))

    return spoil


def edit_config(key: str, value, member: str = ''):
    """Change one key in config.json."""

    def spoil(root: Path, workdir: Path) -> None:
        change_keys(workdir / member / 'config.json', {key: value})

    return spoil


def copy_file(source: str, name: str):
    """Put a file of another run in the place of the same file of this run."""

    def spoil(root: Path, workdir: Path) -> None:
        shutil.copy(root / source / name, workdir / name)

    return spoil


def all_steps_of(source: str):
    """Put all checkpoints of another run in the place of those of this run."""

    def spoil(root: Path, workdir: Path) -> None:
        shutil.rmtree(workdir / 'checkpoints')
        shutil.copytree(root / source / 'checkpoints', workdir / 'checkpoints')

    return spoil


def exchange_members(root: Path, workdir: Path) -> None:
    """List the members of a group in another order."""
    path = workdir / SEED_GROUPS
    content = json.loads(path.read_text())
    content['groups']['.']['members'].reverse()
    path.write_text(json.dumps(content))


# (name, what is done to the run, what the message says)
ALONE = [
    ('an earlier step copied to a later one', copy_step('run', 2, 99), '99 is of step 2: name'),
    ('two steps exchanged', exchange(3, 2), '3 is of step 2: name'),
    ('the newest of the same run, made again', copy_step('twin', 3, 3), '3 is of another run'),
    ('the newest of another seed', copy_step('seed', 3, 3), '3 is of another run'),
    ('a later step of another run', copy_step('rate', 3, 4), '4 is of step 3: name'),
    ('all steps of another run', all_steps_of('twin'), 'is of another run'),
    ('config.json of another run', copy_file('twin', 'config.json'), 'is of another run'),
    ('another position', edit_config('model.position', 'none'), 'model.position: "sinusoidal" ->'),
    ('another rate', edit_config('optim.learning_rate', 0.5), 'optim.learning_rate: 0.003 -> 0.5'),
    ('another seed', edit_config('train.seed', 7), 'train.seed: 0 -> 7'),
    ('another direction', edit_config('data.source', 'de'), 'data.source: "en" -> "de"'),
    ('more heads', edit_config('model.num_heads', 4), 'model.num_heads: 2 -> 4'),
    ('another identity', edit_config('run', 'abc'), 'is of another run'),
]
GROUPS = [
    ('a step of a group copied', copy_step('group', 2, 9), '9 is of step 2: name'),
    ('two steps of a group exchanged', exchange(3, 2), '3 is of step 2: name'),
    ('a step of another group', copy_step('group-twin', 3, 3), '3 is of another run'),
    ('config.json of another group', copy_file('group-twin', 'config.json'), 'of another run'),
    ('another seed of a member', edit_config('train.seed', 7, '0'), 'train.seed: 0 -> 7'),
    ('another position', edit_config('model.position', 'none', '0'), 'model.position: "sinusoid'),
    ('members exchanged', exchange_members, 'seed_groups.json lists member 1'),
]
READERS = {
    'evaluate': lambda path: TrainedRun(path, '', quiet, {}),
    'evaluate last': lambda path: TrainedRun(path, 'last', quiet, {}),
    'evaluate avg': lambda path: TrainedRun(path, 'avg:2', quiet, {}),
    'inspect': inspect_workdir,
}
# It is refused before anything is done with the new run's state and tokenizer.
REFUSING = READERS | {
    'train.init_from': lambda path: start_from(str(path), None, None, quiet),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def refused(read, path, message: str) -> None:
    with pytest.raises(WorkdirError) as refusal:
        read(path)
    assert message in str(refusal.value)
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(
    ('spoil', 'message'), [case[1:] for case in ALONE], ids=[c[0] for c in ALONE]
)
def test_a_foreign_checkpoint_is_refused(spoil, message, runs, tmp_path):
    workdir = shutil.copytree(runs / 'run', tmp_path / 'run')
    spoil(runs, workdir)
    before = files_of(workdir / 'checkpoints')
    for read in REFUSING.values():
        refused(read, workdir, message)
    config = from_dict(Workdir(workdir).read_config())
    refused(lambda path: train(config, path, quiet), workdir, message)
    assert files_of(workdir / 'checkpoints') == before


@pytest.mark.parametrize(
    ('spoil', 'message'), [case[1:] for case in GROUPS], ids=[case[0] for case in GROUPS]
)
def test_a_foreign_checkpoint_of_a_group_is_refused(spoil, message, runs, tmp_path):
    workdir = shutil.copytree(runs / 'group', tmp_path / 'group')
    spoil(runs, workdir)
    for read in REFUSING.values():
        refused(read, workdir / '0', message)


@pytest.mark.parametrize('choice', ['1', 'avg:3'])
@pytest.mark.parametrize('source', ['run', 'twin', 'seed'])
def test_an_older_step_is_compared_when_it_is_asked_for(choice, source, runs, tmp_path):
    workdir = shutil.copytree(runs / 'run', tmp_path / 'run')
    copy_step(source, 2 if source == 'run' else 1, 1)(runs, workdir)
    with pytest.raises(WorkdirError, match=r'checkpoint .*/1 is of (step 2|another run)'):
        TrainedRun(workdir, choice, quiet, {})


@pytest.mark.slow
@pytest.mark.parametrize(('choice', 'step'), [('', 3), (':1', 1), (':avg:3', 2)])
def test_no_run_begins_with_a_foreign_checkpoint(choice, step, runs, tmp_path):
    workdir, new = shutil.copytree(runs / 'run', tmp_path / 'run'), tmp_path / 'new'
    copy_step('twin', step, step)(runs, workdir)

    def begin(path):
        train(experiment(train__init_from=f'{path}{choice}', train__steps=1), new, quiet)

    refused(begin, workdir, f'/{step} is of another run')
    assert not list(new.glob('checkpoints/*'))
    copy_step('run', step, step)(runs, workdir)
    begin(workdir)  # The same command works once the checkpoint is restored.


def test_what_an_old_checkpoint_does_not_say_is_not_compared(runs, tmp_path):
    workdir = shutil.copytree(runs / 'run', tmp_path / 'run')
    edit_config('run', '')(runs, workdir)
    for read in READERS.values():
        read(workdir)

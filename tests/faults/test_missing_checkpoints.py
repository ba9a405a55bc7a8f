"""The checkpoints of a run are not there: the run is refused, and nothing of it is changed."""

import json
import shutil

import pytest
from helpers.support import events, experiment, quiet

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.seed_groups import dissolve_group, edit_groups
from transformer_jax.training.train import train
from transformer_jax.training.trainer import Trainer

RUN = {'train__steps': 4, 'checkpoint__every': 2, 'checkpoint__keep': 2}


def set_end(workdir, end) -> None:
    path = workdir / 'run.json'
    path.write_text(json.dumps([start | {'exit': end} for start in json.loads(path.read_text())]))


def forget_first(workdir) -> None:
    """As an earlier version wrote it."""
    path = workdir / 'config.json'
    config = json.loads(path.read_text())
    assert config.pop('first_checkpoint') == 2
    path.write_text(json.dumps(config))


def contents(workdir) -> dict:
    files = (path for path in workdir.rglob('*') if path.is_file() and path.name != 'lock')
    return {path: path.read_bytes() for path in files}


# how checkpoints/ is not there, and what the line says
GONE = {
    'deleted': (lambda path: None, 'has no checkpoint of the run any more'),
    'not mounted': (lambda path: path.mkdir(), 'has no checkpoint of the run any more'),
    'another disk': (
        lambda path: (path / 'lost+found').mkdir(parents=True),
        'has no checkpoint of the run any more',
    ),
    'only a torn one': (
        lambda path: (path / '9').mkdir(parents=True),
        'has no checkpoint of the run any more',
    ),
    'dangling link': (
        lambda path: path.symlink_to(path.parent / 'disk' / 'c'),
        'is a link to .*/disk/c, which is not there',
    ),
}
ENDS = {'killed': None, 'done': 'done', 'stopped': 'Stopped: stopped by SIGTERM after step 4'}


@pytest.mark.fault('missing checkpoints')
@pytest.mark.parametrize('end', ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(('spoil', 'line'), GONE.values(), ids=GONE)
def test_a_run_without_its_checkpoints_is_refused(workdir, spoil, line, end):
    set_end(workdir, end)
    checkpoints, elsewhere = workdir / 'checkpoints', workdir.parent / 'elsewhere'
    checkpoints.rename(elsewhere)
    spoil(checkpoints)
    before = contents(workdir)
    for _ in range(2):
        with pytest.raises(WorkdirError, match=f'{checkpoints} {line}: mount or restore it'):
            train(experiment(**RUN), workdir, quiet)
    with pytest.raises(ConfigError, match=r'train\.seed: 0 -> 1'):
        train(experiment(**RUN, train__seed=1), workdir, quiet)
    assert contents(workdir) == before
    if checkpoints.is_symlink():
        checkpoints.unlink()
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.symlink_to(elsewhere)  # Mounted again.
    train(experiment(**RUN), workdir, quiet)
    assert [event['step'] for event in events(workdir, 'train')] == [1, 2, 3, 4]


@pytest.mark.parametrize('lost', ['config.json', None])
@pytest.mark.parametrize('end', ['done', 'Stopped: stopped by SIGTERM after step 4'])
def test_a_run_of_an_earlier_version_is_refused(workdir, end, lost):
    """Its config.json does not name the first checkpoint, but run.json says that there was one."""
    set_end(workdir, end)
    forget_first(workdir)
    shutil.rmtree(workdir / 'checkpoints')
    if lost:
        (workdir / lost).unlink()
    before = contents(workdir)
    with pytest.raises(WorkdirError, match='has no checkpoint of the run any more'):
        train(experiment(**RUN), workdir, quiet)
    assert contents(workdir) == before


def test_a_resumed_run_of_an_earlier_version_is_refused_from_then_on(workdir):
    set_end(workdir, None)
    forget_first(workdir)
    train(experiment(**RUN), workdir, quiet)
    assert json.loads((workdir / 'config.json').read_text())['first_checkpoint'] == 2


@pytest.mark.fault('missing checkpoints')
def test_a_group_without_its_checkpoints_is_not_dissolved(tmp_path):
    group = SeedGroup(tmp_path, '0-1', ('0', '1'))
    with edit_groups(tmp_path) as groups:
        groups['0-1'] = group
    for name in ('0', '1', '0-1'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metrics.jsonl').write_text('{"step": 1, "split": "train"}\n')
    (tmp_path / '0-1' / 'config.json').write_text('{"first_checkpoint": 4}')
    dissolve_group(group)
    assert (tmp_path / '0' / 'metrics.jsonl').exists()
    assert group.has_checkpoint()


def kill_before_the_manifest(workdir) -> None:
    shutil.rmtree(workdir / 'checkpoints' / '4')
    (workdir / 'checkpoints' / '2' / manifest.NAME).unlink()


def make_folder(workdir) -> None:
    shutil.rmtree(workdir)
    (workdir / 'checkpoints').mkdir(parents=True)


# What starts anew, also with another configuration.
ANEW = [kill_before_the_manifest, make_folder]


@pytest.mark.parametrize('prepare', ANEW)
def test_what_has_no_checkpoint_yet_starts(workdir, prepare, monkeypatch):
    set_end(workdir, None)
    prepare(workdir)
    monkeypatch.setattr(Trainer, 'run', lambda self: None)
    train(experiment(**RUN, train__seed=1), workdir, quiet)
    assert Workdir(workdir).read_config()['train']['seed'] == 1


def test_a_link_to_nothing_is_refused_before_the_first_step(tmp_path):
    (tmp_path / 'checkpoints').symlink_to(tmp_path / 'no-such-disk')
    with pytest.raises(WorkdirError, match=r'is a link to .*no-such-disk, which is not there'):
        train(experiment(**RUN), tmp_path, quiet)
    assert {path.name for path in tmp_path.iterdir()} == {'checkpoints', 'lock'}

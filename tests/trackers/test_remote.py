"""Trackers that raise, hang, die or are slow: a run loses their records, says so, and goes on."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
from etils import epath
from helpers.support import events, experiment, quiet

from transformer_jax.errors import ConfigError
from transformer_jax.trackers import remote
from transformer_jax.trackers.kinds import TRACKERS, RunName, require_tracker
from transformer_jax.trackers.remote import RemoteTracker
from transformer_jax.training.recording import Recording
from transformer_jax.training.train import train

HELPERS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let the processes of trackers find the fakes."""
    path = os.pathsep.join(filter(None, (str(HELPERS), os.environ.get('PYTHONPATH'))))
    monkeypatch.setenv('PYTHONPATH', path)


def start(name, folder):
    path = epath.Path(folder / f'{name}.log')
    return RemoteTracker(f'helpers.fake_trackers.{name}', RunName('0a1b', 'w', str(folder)), path)


def heard(folder):
    return [json.loads(line) for line in (folder / 'heard.jsonl').read_text().splitlines()]


def wait_for_the_end(tracker):
    """Return once the process has ended, whatever it did."""
    tracker._process.wait(60)


@pytest.mark.parametrize('name', ['Kept', 'Slow'])
def test_a_tracker_hears_everything_in_order(tmp_path, name, caplog):
    tracker = start(name, tmp_path)
    tracker.log_config({'train.steps': 3, 'data.source_dir': None})
    for step in range(3):
        tracker.log(step, {'train/loss': 0.5, 'train/mfu': float('nan')})
    tracker.log_artifact('/a/curves.png')
    tracker.finish()
    assert heard(tmp_path) == [
        ['run', '0a1b', 'w'],
        ['log_config', {'train.steps': 3, 'data.source_dir': None}],
        *(['log', step, {'train/loss': 0.5}] for step in range(3)),  # What is not finite is not.
        ['log_artifact', '/a/curves.png'],
        ['finish'],
    ]
    assert not caplog.records


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('CannotStart', 'ConnectionError: no route to host'),
        ('FullDisk', 'OSError: [Errno 28] No space left on device'),
        ('Dies', 'it has ended'),
        ('Missing', "has no attribute 'Missing'"),
    ],
)
def test_a_tracker_that_fails_is_told_once(tmp_path, name, why, caplog):
    tracker = start(name, tmp_path)
    tracker.log(1, {'train/loss': 0.5})
    wait_for_the_end(tracker)
    for step in range(2, 5):
        tracker.log(step, {'train/loss': 0.5})
    tracker.finish()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert '\n' not in message
    assert why in message
    assert 'the run goes on without it' in message
    assert f'{name}.log' in message


def test_a_tracker_that_fails_only_at_its_last_line_is_told_too(tmp_path, caplog):
    tracker = start('FullDisk', tmp_path)
    tracker.log(1, {'train/loss': 0.5})
    tracker.finish()
    assert 'No space left on device; the run goes on' in caplog.text


def test_a_tracker_that_hangs_is_never_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(remote, 'MOST_WAITING', 100_000)
    tracker = start('Hangs', tmp_path)
    process = tracker._process
    for step in range(20_000):  # More than the pipe and what may wait for it.
        tracker.log(step, {'train/loss': 0.5})
    assert process.poll() == -signal.SIGKILL
    tracker.finish()
    assert caplog.text.count('it does not read what it is sent; the run goes on') == 1


@pytest.mark.parametrize('name', ['Hangs', 'HangsAtTheEnd'])
def test_the_end_of_a_run_waits_for_a_moment_only(tmp_path, caplog, monkeypatch, name):
    monkeypatch.setattr(remote, 'GRACE_S', 0.5)
    tracker = start(name, tmp_path)
    process = tracker._process
    tracker.log(1, {'train/loss': 0.5})
    tracker.finish()
    assert process.poll() == -signal.SIGKILL
    assert caplog.text.count('it was not done after 0.5 s; the run goes on') == 1


def test_a_killed_run_leaves_no_tracker(tmp_path):
    tracker = start('Kept', tmp_path)
    tracker.log(1, {'train/loss': 0.5})
    tracker._pipe.close()  # As the kernel does for a process that is killed.
    wait_for_the_end(tracker)
    assert heard(tmp_path)[-1] == ['finish']


def test_a_folder_that_cannot_be_written_costs_the_tracker_alone(tmp_path, caplog):
    (tmp_path / 'file').touch()
    tracker = start('Kept', tmp_path / 'file')
    tracker.log(1, {'train/loss': 0.5})
    tracker.finish()
    assert caplog.text.count('the run goes on without it') == 1


@pytest.mark.slow
def test_a_run_tells_its_trackers_what_its_log_has(tmp_path, caplog):
    names = tuple(f'helpers.fake_trackers.{name}' for name in ('Kept', 'CannotStart'))
    config = experiment(train__steps=3, evaluate__every=3)
    for _ in range(2):  # The second start has nothing left to do.
        train(config, tmp_path, quiet, recording=Recording(trackers=names))
    run, config_line, *logged, artifact, end, again = heard(tmp_path / 'trackers')[:9]
    assert (run[0], run[2], again) == ('run', tmp_path.name, run)
    assert config_line[1]['train.steps'] == 3
    written = events(tmp_path)
    names = [f'{event["split"]}/loss' for event in written]
    assert [
        (step, values[name]) for name, (_, step, values) in zip(names, logged, strict=True)
    ] == [(event['step'], event['loss']) for event in written]
    assert artifact == ['log_artifact', str(tmp_path / 'curves.png')]
    assert end == ['finish']
    assert caplog.text.count('no route to host; the run goes on without it') == 2  # Once a start.
    assert len(events(tmp_path, 'train')) == 3


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('wand', r"--trackers=wand: no such tracker; did you mean 'wandb'\?"),
        ('tensorboard', 'no such tracker; valid: aim, mlflow, trackio, wandb'),
        ('nowhere.Tracker', 'names the module nowhere, which is not found: install it'),
        ('nowhere.deeper.Tracker', 'names the module nowhere.deeper, which is not found'),
        ('.', 'no such tracker'),
    ],
)
def test_a_tracker_that_there_is_not_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        require_tracker(name)


@pytest.mark.parametrize('name', TRACKERS)
def test_a_package_that_is_missing_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setattr('importlib.util.find_spec', lambda package: None)
    with pytest.raises(ConfigError, match=rf"pip install 'transformer_jax\[{name}\]'"):
        require_tracker(name)


def test_the_process_of_a_tracker_does_not_import_jax(tmp_path):
    (tmp_path / 'spy.py').write_text(
        'import sys\nfrom helpers.fake_trackers import Kept\n'
        'class Spy(Kept):\n'
        '    def finish(self):\n'
        "        self._write('jax' in sys.modules, 'numpy' in sys.modules)\n"
    )
    path = os.environ['PYTHONPATH'] + os.pathsep + str(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', path)
        log = epath.Path(tmp_path / 'spy.log')
        RemoteTracker('spy.Spy', RunName('0a', 'w', str(tmp_path)), log).finish()
    assert heard(tmp_path)[-1][0] is False, log.read_text()

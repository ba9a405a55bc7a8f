"""Two processes of one run, and one run on changing numbers of devices."""

import json
import signal

import numpy as np
import pytest
from helpers.support import (
    events,
    experiment,
    fingerprint,
    finish,
    flags,
    losses,
    quiet,
    start,
    start_pair,
    stop_at,
    wait_until,
)

from transformer_jax.training.train import train

# Dropout draws its numbers by the layout of the devices, so that only without it all layouts agree.
RUN = {'model__dropout': 0.0}


def pair(workdir, **changes) -> list:
    """Two processes that train together."""
    return start_pair(workdir, flags(**RUN | changes))


def steps(workdir) -> list[int]:
    return [event['step'] for event in events(workdir, 'train')]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    changes = {'evaluate__every': 6}
    for process in pair(tmp_path / 'two', **changes):
        finish(process)
    train(experiment(**RUN | changes), tmp_path / 'one', quiet)
    np.testing.assert_allclose(losses(tmp_path / 'two'), losses(tmp_path / 'one'), rtol=1e-4)
    for key in ('loss', 'bleu'):
        two, one = (
            [event[key] for event in events(tmp_path / name, 'validation')]
            for name in ('two', 'one')
        )
        np.testing.assert_allclose(two, one, rtol=1e-4)
    assert steps(tmp_path / 'two') == list(range(1, 13))  # written once, not by each
    (run,) = json.loads((tmp_path / 'two' / 'run.json').read_text())
    assert (run['processes'], run['exit']) == (2, 'done')
    assert json.loads((tmp_path / 'two' / 'config.json').read_text())['train']['steps'] == 12


@pytest.mark.rare
def test_two_processes_take_over(tmp_path):
    train(experiment(**RUN), tmp_path / 'one', quiet)
    stop_at(6, experiment(**RUN), tmp_path / 'two')
    for process in pair(tmp_path / 'two'):
        finish(process)
    assert steps(tmp_path / 'two') == list(range(1, 13))
    np.testing.assert_allclose(losses(tmp_path / 'two'), losses(tmp_path / 'one'), rtol=1e-4)


@pytest.mark.rare
def test_two_processes_stop_resume_and_end_together(tmp_path):
    changes = {'train__steps': 1500, 'checkpoint__every': 0}
    processes = pair(tmp_path, **changes)
    wait_until(lambda: len(steps(tmp_path)) >= 20, processes[0])
    processes[1].send_signal(signal.SIGTERM)  # the cluster may take away either
    for process in processes:
        finish(process, 143)
    (saved,) = (int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert saved == steps(tmp_path)[-1] < 1500
    for process in pair(tmp_path, **changes):
        finish(process)
    assert steps(tmp_path) == list(range(1, 1501))
    exits = [run['exit'] for run in json.loads((tmp_path / 'run.json').read_text())]
    assert len(exits) == 2
    assert 'SIGTERM' in exits[0]
    assert exits[1] == 'done'


@pytest.mark.rare
def test_eight_devices_hand_over_to_one(tmp_path):
    train(experiment(**RUN), tmp_path / 'whole', quiet)
    stop_at(6, experiment(**RUN), tmp_path / 'run')
    assert finish(start('inspect', f'--workdir={tmp_path / "run"}')).splitlines()[
        -1
    ] == fingerprint(tmp_path / 'run')
    finish(start('train', f'--workdir={tmp_path / "run"}', *flags(**RUN)))
    assert steps(tmp_path / 'run') == list(range(1, 13))
    np.testing.assert_allclose(losses(tmp_path / 'run'), losses(tmp_path / 'whole'), rtol=1e-4)
    devices = [run['devices'] for run in json.loads((tmp_path / 'run' / 'run.json').read_text())]
    assert devices == ['8 x cpu cpu', '1 x cpu cpu']

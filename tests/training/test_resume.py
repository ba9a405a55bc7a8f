"""A run that is killed, crashes or is told to stop, at any moment, any number of times, ends as if
it had not been.
"""

import contextlib
import os
import signal
import threading

import pytest
from etils import epath
from helpers.support import (
    events,
    experiment,
    fingerprint,
    finish,
    flags,
    quiet,
    recorded,
    start,
    stop_at,
    wait_until,
)

from transformer_jax.efficiency.time_spent import TimeSpent, read_stretches
from transformer_jax.errors import Stopped
from transformer_jax.storage import manifest
from transformer_jax.storage.metrics_writer import MetricsWriter
from transformer_jax.training.train import train

# 13 steps are an epoch: two epochs end on the way. Dropout is on.
RUN = {'train__steps': 30, 'checkpoint__every': 7, 'evaluate__every': 10}


class Crash(BaseException):
    """Nothing in the package may catch it."""


@contextlib.contextmanager
def when_logged(step: int, act):
    """Calls `act` once the loop has logged `step`."""
    write = MetricsWriter.write

    def then_act(self, logged, split, values):
        write(self, logged, split, values)
        if logged == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsWriter, 'write', then_act)
        yield


def crash_at(step: int, config, workdir) -> None:
    """Trains until `step` is logged; a save that was under way still ends, since its thread
    survives here.
    """

    def crash():
        raise Crash

    with when_logged(step, crash), pytest.raises(Crash):
        train(config, workdir, quiet)
    for thread in threading.enumerate():
        if thread.name.startswith('checkpoint'):
            thread.join()


@pytest.mark.rare
def test_crashes_leave_no_trace(whole, tmp_path):
    for step in (
        3,
        15,
        20,
        30,
    ):  # before the first save, in the second epoch, at an evaluation, at the end
        crash_at(step, experiment(**RUN), tmp_path)
    assert events(tmp_path)[-1]['step'] == 30
    train(experiment(**RUN), tmp_path, quiet)
    assert fingerprint(tmp_path) == fingerprint(whole)
    assert recorded(tmp_path) == recorded(whole)  # no step twice, none missing
    spent = TimeSpent(read_stretches(epath.Path(tmp_path / 'times.jsonl')))
    assert spent.starts == 5
    assert spent.seconds['redone'] > 0
    assert spent.seconds['restore'] > 0


@pytest.mark.rare
def test_the_seed_decides_how_a_run_ends(whole, tmp_path):
    for seed in (0, 1):
        train(experiment(train__seed=seed, **RUN), tmp_path / str(seed), quiet)
    assert fingerprint(tmp_path / '0') == fingerprint(whole)
    assert fingerprint(tmp_path / '1') != fingerprint(whole)


@pytest.mark.slow
def test_prefetched_batches_are_not_lost(whole, tmp_path):
    for prefetch, step in ((3, 9), (0, 16)):
        crash_at(step, experiment(data__prefetch=prefetch, **RUN), tmp_path)
    train(experiment(data__prefetch=3, **RUN), tmp_path, quiet)
    assert recorded(tmp_path) == recorded(whole)


@pytest.mark.parametrize(
    ('signum', 'code'),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_stops(whole, tmp_path, signum, code):
    handler = signal.getsignal(signum)
    with when_logged(4, lambda: os.kill(os.getpid(), signum)), pytest.raises(Stopped) as stop:
        train(experiment(**RUN), tmp_path, quiet)
    assert stop.value.exit_code == code
    assert signal.getsignal(signum) is handler
    (saved,) = (int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert saved in (5, 6)  # metrics are read one step late
    assert f'{signum.name} after step {saved}, which is saved' in str(stop.value)
    train(experiment(**RUN), tmp_path, quiet)
    assert fingerprint(tmp_path) == fingerprint(whole)
    assert recorded(tmp_path) == recorded(whole)


@pytest.mark.slow
def test_a_signal_before_an_evaluation_only_postpones_it(whole, tmp_path):
    stop_at(10, experiment(**RUN), tmp_path)
    assert not events(
        tmp_path, 'validation'
    )  # who is preempted has seconds left: to save, not to translate
    train(experiment(**RUN), tmp_path, quiet)
    assert recorded(tmp_path) == recorded(whole)


LONG = {'train__steps': 200, 'checkpoint__every': 20}


def torn(workdir) -> list:
    """The checkpoints that are being written, or were when their process died."""
    folder = workdir / 'checkpoints'
    return [
        step
        for step in (folder.iterdir() if folder.exists() else ())
        if not (step / manifest.NAME).exists()
    ]


def last_step(workdir) -> int:
    return max((event['step'] for event in events(workdir)), default=0)


@pytest.fixture(scope='module')
def long_run(tmp_path_factory):
    """The workdir of an undisturbed run of 200 steps, in a process of its own."""
    workdir = tmp_path_factory.mktemp('long')
    finish(start('train', f'--workdir={workdir}', *flags(**LONG)))
    return workdir


@pytest.mark.slow
def test_kill_9_leaves_no_trace(long_run, tmp_path):
    command = ['train', f'--workdir={tmp_path}', *flags(**LONG)]
    for step in (5, 30, 75, 120):  # the first before any checkpoint; an epoch has 13 steps
        process = start(*command)
        wait_until(lambda step=step: last_step(tmp_path) >= step, process)
        process.kill()
        finish(process, -signal.SIGKILL)
        assert last_step(tmp_path) < 200
    for _ in range(
        3
    ):  # a save takes some milliseconds, so the kill may come too late; saving always makes it rare
        process = start(*command, '--config.checkpoint.every=1')
        wait_until(lambda: last_step(tmp_path) > 130 and torn(tmp_path), process, 0)
        process.kill()
        finish(process, -signal.SIGKILL)
        if torn(tmp_path):
            break
    assert torn(tmp_path)
    finish(start(*command))
    assert fingerprint(tmp_path) == fingerprint(long_run)
    assert recorded(tmp_path) == recorded(long_run)
    assert not torn(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_exit_codes_of_signals(long_run, tmp_path, signum, code):
    command = ['train', f'--workdir={tmp_path}', *flags(**LONG)]
    process = start(*command)
    wait_until(lambda: last_step(tmp_path) >= 25, process)
    process.send_signal(signum)
    finish(process, code)
    assert last_step(tmp_path) < 200
    assert f'step {last_step(tmp_path)}' in fingerprint(tmp_path)
    finish(start(*command))
    assert fingerprint(tmp_path) == fingerprint(long_run)

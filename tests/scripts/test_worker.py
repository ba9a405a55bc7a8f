"""scripts/cloud/worker.sh: a command on a machine that is started again where that helps."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / 'scripts/cloud/worker.sh'
# Ends with the codes in the file `codes`, one a start, and counts its starts in `starts`.
PROGRAM = """
cd "$1" || exit 9
echo start >> starts
number=$(wc -l < starts)
exit "$(sed -n "${number}p" codes)"
"""


@pytest.fixture
def settings(tmp_path):
    return {
        **os.environ,
        'RUN_DIR': os.fspath(tmp_path / 'run'),
        'PAUSE_S': '0',
        'QUICK_S': '600',
        'MAX_QUICK': '4',
    }


def worker(settings, *arguments):
    done = subprocess.run(
        ['bash', WORKER, *arguments], env=settings, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ('codes', 'starts'),
    [
        ([0], 1),
        ([1], 1),  # a bug
        ([2], 1),  # a mistake
        ([4], 1),  # diverged
        ([130], 1),  # Ctrl-C
        ([143, 0], 2),  # preempted
        ([3, 3, 0], 3),  # the lease of a run that was killed
        ([5, 2], 2),  # another process is gone
        ([137, 139, 4], 3),
        ([5, 5, 5, 5, 0], 4),  # too many quick ones
    ],
)
def test_a_command_is_started_again_where_that_helps(codes, starts, settings, tmp_path):
    (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    code, output, _ = worker(settings, 'loop', 'bash', '-c', PROGRAM, 'program', str(tmp_path))
    assert code == codes[starts - 1]
    assert (tmp_path / 'starts').read_text().count('start') == starts
    assert output.count('exit code') == starts


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


SLOW = 'trap "sleep 0.3; exit 143" TERM; touch "$1"; while true; do sleep 0.05; done'


def test_a_signal_goes_to_the_command_which_is_not_started_again(settings, tmp_path):
    process = subprocess.Popen(
        ['bash', WORKER, 'loop', 'bash', '-c', SLOW, 'program', tmp_path / 'started'], env=settings
    )
    wait_for(tmp_path / 'started')
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_start_status_and_stop(settings, tmp_path):
    assert worker(settings, 'status') == (0, 'does not run\n', '')
    command = ['start', 'bash', '-c', SLOW, 'program', os.fspath(tmp_path / 'started')]
    assert worker(settings, *command) == (0, '', '')
    wait_for(tmp_path / 'started')
    assert worker(settings, 'status')[1].startswith('runs as process ')
    code, _, errors = worker(settings, *command)
    assert code == 2
    assert errors.startswith('worker.sh: a command runs already (process ')
    code, output, _ = worker(settings, 'stop')
    assert code == 0
    assert output.startswith('ended with exit code 143\n')
    assert (tmp_path / 'run/exit').read_text() == '143\n'
    assert worker(settings, 'stop') == (0, 'does not run\n', '')


@pytest.mark.parametrize('arguments', [[], ['begin'], ['start'], ['loop']])
def test_a_mistake_is_one_line(arguments, settings):
    code, output, errors = worker(settings, *arguments)
    assert (code, output) == (2, '')
    assert errors.startswith('worker.sh: ')
    assert errors.count('\n') == 1

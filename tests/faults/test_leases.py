"""A lease is taken over only from a process that is gone, whatever the clocks and the file say."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from etils import epath

from transformer_jax.errors import Busy
from transformer_jax.storage import locks
from transformer_jax.storage.files import write_text

HERE = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': '2026-01-01 00:00:00 +0000'}
ELSEWHERE = HERE | {'host': 'elsewhere', 'pid': 12_345}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, 'LEASE_WATCH_S', 0.05)
    monkeypatch.setattr(locks, 'WATCH_PAUSE_S', 0.01)
    return epath.Path(tmp_path) / 'lock'


def lease(age: float) -> dict:
    return ELSEWHERE | {'token': 'x', 'renewed': time.time() - age}


@pytest.mark.parametrize('age', [300, 301, 3_600, 1e9, -301, -3_600, -1e9])
def test_a_renewal_is_noticed_whatever_the_clock_of_the_holder_says(age, path, monkeypatch):
    """Its clock is so many seconds behind, or ahead: it looks expired, and renews all the same."""
    path.write_text(json.dumps(lease(age)))
    monkeypatch.setattr(locks.time, 'sleep', lambda _: write_text(path, json.dumps(lease(age))))
    with pytest.raises(Busy, match=r'in use by process .* on elsewhere'), locks._lease(path):
        pass


@pytest.mark.parametrize('age', [0, 30, 299, -30, -299])
def test_a_fresh_lease_is_not_watched(age, path, monkeypatch):
    path.write_text(json.dumps(lease(age)))
    monkeypatch.setattr(locks.time, 'sleep', None)
    with pytest.raises(Busy), locks._lease(path):
        pass


@pytest.mark.parametrize(
    'content',
    [
        json.dumps(ELSEWHERE | {'token': 'x', 'renewed': 0}),
        json.dumps(ELSEWHERE | {'token': 'x', 'renewed': 1e12}),
        '{',
        '[]',
        '{}',
        'null',
        '{"renewed": "today"}',
        '\0\0\0',
        '[' * 100_000,
    ],
)
def test_what_nobody_renews_is_taken_over(content, path):
    path.write_text(content)
    with locks._lease(path):
        assert json.loads(path.read_text())['pid'] == os.getpid()
    assert not path.exists()


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_a_lock_that_flock_left_is_free_once_its_process_has_ended(path):
    path.write_text(json.dumps(HERE | {'pid': ended_process()}))
    with locks._lease(path):
        pass
    path.write_text(json.dumps(HERE))
    with pytest.raises(Busy, match='in use by process'), locks._lease(path):
        pass
    path.write_text(json.dumps(ELSEWHERE))
    with pytest.raises(Busy, match=r'if that process has ended, delete .*lock'), locks._lease(path):
        pass


def test_a_lease_that_is_given_back_while_it_is_watched_is_free(path, monkeypatch):
    path.write_text(json.dumps(lease(1_000)))
    monkeypatch.setattr(locks.time, 'sleep', lambda _: path.unlink())
    with locks._lease(path):
        assert json.loads(path.read_text())['pid'] == os.getpid()

"""Workdirs on Google Cloud Storage, against a server on this machine: `helpers.fake_gcs`.

Each test runs a program of its own: epath and gcsfs keep their connection for the whole process.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import tensorflow_datasets as tfds
from helpers.fake_gcs import FakeGcs, Stored, environment
from helpers.prepared_sets import prepare

from transformer_jax.errors import ConfigError
from transformer_jax.storage.workdir import Workdir

ROOT = Path(__file__).parents[2]
TINY = [
    f'--config={ROOT}/configs/number_words.py:en-de',
    *('--config.model.d_model=16', '--config.model.d_ff=32'),
    *('--config.model.encoder_layers=1', '--config.model.decoder_layers=1'),
    *('--config.train.steps=12', '--config.evaluate.every=0', '--config.checkpoint.every=4'),
]
# Runs commands one after the other, with exit codes; as if a given-up lease were watched for 0.1 s.
COMMANDS = """
import json, sys
from transformer_jax.cli import main
from transformer_jax.storage import locks
locks.LEASE_WATCH_S = locks.WATCH_PAUSE_S = 0.1
for arguments in json.loads(sys.argv[1]):
    sys.modules.pop('config_config', None)
    code = main(arguments)
    print('exit', code, flush=True)
"""

needs_gcsfs = pytest.mark.skipif(
    importlib.util.find_spec('gcsfs') is None,
    reason='gcsfs is not installed: pip install -e ".[dev]"',
)


@pytest.fixture
def server():
    with FakeGcs() as server:
        yield server


def start(server: FakeGcs, code: str, *arguments: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', code, *arguments],
        env={
            **os.environ,
            **environment(server.address),
            'PYTHONPATH': str(ROOT),
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(server: FakeGcs, code: str, *arguments: str) -> str:
    process = start(server, code, *arguments)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def run_commands(server: FakeGcs, *commands: list[str]) -> list[str]:
    """The lines that commands print, with a line 'exit 0' after each."""
    return run(server, COMMANDS, json.dumps(commands)).splitlines()


@needs_gcsfs
def test_what_another_process_writes_is_seen(server):
    """gcsfs keeps lists of a folder by default, and reads a file with the size that is in one."""
    output = run(
        server,
        """
import gcsfs
from etils import epath
from transformer_jax.storage.files import create_text, exists, write_text
lock = epath.Path('gs://bucket/run/lock')
write_text(lock, 'short')
print(list(lock.parent.iterdir()), lock.read_text())
other = gcsfs.GCSFileSystem(skip_instance_cache=True)
other.pipe('bucket/run/lock', b'a longer text')
other.pipe('bucket/run/new', b'x')
print(lock.read_text(), exists(lock.parent / 'new'))
other.rm('bucket/run/lock')
print(exists(lock), create_text(lock, 'mine'), create_text(lock, 'yours'), lock.read_text())
""",
    )
    lines = output.splitlines()[-3:]
    assert lines == [
        "[PosixGPath('gs://bucket/run/lock')] short",
        'a longer text True',
        'False True False mine',
    ]


@needs_gcsfs
def test_one_of_several_processes_gets_the_lease(server):
    code = """
import sys, time
from etils import epath
from transformer_jax.errors import Busy
from transformer_jax.storage.locks import lock
epath.Path('gs://bucket/other').exists()
print('ready', flush=True)
sys.stdin.readline()
try:
    with lock(epath.Path('gs://bucket/run/lock')):
        print('held', flush=True)
        sys.stdin.readline()
except Busy as error:
    print(error)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', code],
            env={**os.environ, **environment(server.address), 'PYTHONPATH': str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('\n')
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes]
    assert said.count('held\n') == 1, said
    assert sum('gs://bucket/run is in use by process' in line for line in said) == 2
    for process in processes:
        process.communicate('\n', timeout=60)
    assert server.objects == {}  # The lease was given back.


@needs_gcsfs
def test_a_store_that_refuses_is_one_line(server, monkeypatch):
    monkeypatch.setattr(
        server, 'put', lambda *_: (403, {'error': {'code': 403, 'message': 'No access\nhere'}})
    )
    output = run(
        server,
        """
from etils import epath
from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import write_text
try:
    write_text(epath.Path('gs://bucket/a'), 'x')
except WorkdirError as error:
    print(error)
""",
    )
    line = output.splitlines()[-1]
    assert line.startswith('cannot write gs://bucket/a: Forbidden: ')
    assert line.endswith(
        'No access here; make room, correct the permissions or choose another directory'
    )


def test_an_unknown_kind_of_place_is_named():
    with pytest.raises(ConfigError, match='nowhere://bucket/run: write a folder, or gs://BUCKET'):
        Workdir('nowhere://bucket/run')


def test_a_store_without_its_package_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError('Please install gcsfs to access Google Storage')

    monkeypatch.setattr(fsspec, 'get_filesystem_class', missing)
    with pytest.raises(ConfigError, match='--workdir=gs://bucket/run: Please install gcsfs'):
        Workdir('gs://bucket/run')


def wait_for(server: FakeGcs, name: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + 600
    while ('bucket', name) not in server.objects:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def expire(server: FakeGcs, name: str) -> None:
    """Make a lease look as if its holder had not renewed it for an hour."""
    stored = server.objects['bucket', name]
    lease = json.loads(stored.content) | {'renewed': time.time() - 3600}
    server.objects['bucket', name] = Stored(
        'bucket', name, json.dumps(lease).encode(), stored.generation + 1, stored.created
    )


@needs_gcsfs
@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_bucket_and_ends_with_the_same_bits(server):
    whole, killed = '--workdir=gs://bucket/whole', '--workdir=gs://bucket/killed'
    process = start(server, COMMANDS, json.dumps([['train', *TINY, killed]]))
    wait_for(server, 'killed/checkpoints/4/MANIFEST.json', process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = {name.split('/')[2] for _, name in server.objects if '/checkpoints/' in name}
    assert '12' not in steps

    lines = run_commands(server, ['train', *TINY, killed])
    assert lines[-1] == 'exit 3'
    assert 'gs://bucket/killed is in use by process' in '\n'.join(lines)

    expire(server, 'killed/lock')
    lines = run_commands(
        server,
        ['train', *TINY, killed],
        ['train', *TINY, whole],
        ['inspect', killed],
        ['inspect', whole],
        ['evaluate', killed, '--checkpoint=avg:2', '--beam=1'],
    )
    assert [line for line in lines if line.startswith('exit')] == ['exit 0'] * 5, lines
    assert any('resumed after step' in line for line in lines)
    first, second = [line for line in lines if line.startswith('sha256')]
    assert first == second
    assert first.endswith('step 12')
    names = {name for _, name in server.objects}
    assert {'killed/evaluations.json', 'killed/metrics.jsonl', 'killed/run.json'} <= names
    assert not names & {'killed/lock', 'whole/lock'}


@needs_gcsfs
@pytest.mark.slow
@pytest.mark.rare
def test_two_processes_share_a_workdir_in_a_bucket(server):
    with socket.create_server(('localhost', 0)) as free:
        address = f'localhost:{free.getsockname()[1]}'
    flags = ['--workdir=gs://bucket/two', f'--coordinator={address}', '--num_processes=2']
    one_device = {'JAX_NUM_CPU_DEVICES': '1', 'XLA_FLAGS': ''}
    processes = [
        start(
            server,
            COMMANDS,
            json.dumps([['train', *TINY, *flags, f'--process_id={index}']]),
            **one_device,
        )
        for index in range(2)
    ]
    ends = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert 'done: gs://bucket/two' in ends[0]
    lines = run_commands(server, ['inspect', '--workdir=gs://bucket/two'])
    assert lines[-1] == 'exit 0'
    assert any(line.startswith('sha256') and line.endswith('step 12') for line in lines)
    assert json.loads(server.objects['bucket', 'two/run.json'].content)[0]['processes'] == 2


@needs_gcsfs
def test_a_prepared_set_is_read_from_a_bucket(server, tmp_path):
    text = tfds.features.Text()
    rows = [{'de': f'eins {number}', 'en': f'one {number}'} for number in range(7)]
    prepare(tmp_path, 'pairs', {'de': text, 'en': text}, {'train': rows})
    for path in filter(Path.is_file, tmp_path.rglob('*')):
        name = f'sets/{path.relative_to(tmp_path).as_posix()}'
        server.put('bucket', name, path.read_bytes(), {})
    output = run(
        server,
        """
from transformer_jax.data import tfds_builders
texts = tfds_builders.translation('pairs', 'gs://bucket/sets', 'train', ('de', 'en'))
print(texts.source[3], texts.target[3])
""",
    )
    assert output.splitlines()[-1] == 'eins 3 one 3'

"""The workdir: its lock, its configuration, and logs that survive a crash.

Some tests use an object store, see the fixture `bucket`.
"""

import json
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import locks, manifest
from transformer_jax.storage.files import append_line, write_text
from transformer_jax.storage.metrics_writer import truncate_after
from transformer_jax.storage.provenance import git_commit
from transformer_jax.storage.workdir import Workdir

CONFIG = {
    'train': {'steps': 2000, 'seed': 0, 'log_every': 10},
    'optim': {'betas': (0.9, 0.98)},
    'parallel': {'mode': 'jit', 'mesh': {'data': -1, 'fsdp': 1}},
    'checkpoint': {'keep': 3},
}


def changed(**values) -> dict:
    """Return CONFIG with some keys replaced; a dot is written as two underscores."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in values.items():
        *groups, last = key.split('__')
        group = config
        for name in groups:
            group = group[name]
        group[last] = value
    return config


def train_once(directory, config=CONFIG) -> Workdir:
    opened = Workdir(directory)
    with opened.open_for_training(config):
        pass
    return opened


HOLDER = """
import sys, time
from transformer_jax.storage.workdir import Workdir
with Workdir(sys.argv[1]).open_for_training({}):
    print('open', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start another process that trains in tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'run')], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'open\n'
    yield process
    process.kill()
    process.wait()


def test_the_lock_names_its_holder_and_dies_with_it(holder, tmp_path):
    with pytest.raises(
        WorkdirError, match=f'in use by process {holder.pid} on .* since'
    ) as refusal:
        train_once(tmp_path / 'run', {})
    assert refusal.value.exit_code == 3
    holder.kill()
    holder.wait()
    train_once(tmp_path / 'run', {})


def test_the_lock_holds_within_a_process_and_is_given_back(tmp_path):
    with (
        Workdir(tmp_path).open_for_training(CONFIG),
        pytest.raises(WorkdirError, match='in use by process'),
    ):
        train_once(tmp_path)
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path).open_for_training(CONFIG):
        1 / 0  # noqa: B018
    train_once(tmp_path)


def test_without_flock_a_lease_is_used(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(locks.fcntl, 'flock', unsupported)
    with (
        Workdir(tmp_path).open_for_training(CONFIG),
        pytest.raises(WorkdirError, match='in use by process'),
    ):
        train_once(tmp_path)
    train_once(tmp_path)


def test_a_workdir_on_an_object_store(bucket, monkeypatch):
    opened = Workdir(bucket)
    with opened.open_for_training(CONFIG):
        with pytest.raises(WorkdirError, match='gs://bucket/run is in use by process'):
            train_once(bucket)
        monkeypatch.setattr(locks, 'LEASE_EXPIRY_S', -1)  # As if its holder had died.
        monkeypatch.setattr(locks, 'LEASE_WATCH_S', 0)
        train_once(bucket)
    assert opened.read_config()['train']['steps'] == 2000
    # The first run wrote its record last, without that of the second.
    assert len(json.loads(opened.run_path.read_text())) == 1
    with pytest.raises(ConfigError, match=r'train.seed: 0 -> 1'):
        train_once(bucket, changed(train__seed=1))
    for step in (1, 2):
        append_line(opened.metrics_path, json.dumps({'step': step}))
    truncate_after(opened.metrics_path, 1)
    assert opened.metrics_path.read_text() == '{"step": 1}\n'
    manifest.write(opened.path)
    assert manifest.find_damage(opened.path) is None
    opened.metrics_path.write_text('{"step": 3}\n')
    assert manifest.find_damage(opened.path).startswith('metrics.jsonl differs')


def wait_until(condition, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_renewed_and_a_takeover_noticed(tmp_path, monkeypatch, caplog):
    path = epath.Path(tmp_path) / 'lock'
    monkeypatch.setattr(locks, 'LEASE_RENEWAL_S', 0.01)
    with locks._lease(path):
        first = json.loads(path.read_text())
        wait_until(lambda: json.loads(path.read_text())['renewed'] > first['renewed'])
        assert json.loads(path.read_text())['token'] == first['token']
        other = json.dumps({**first, 'token': 'another'})
        wait_until(lambda: write_text(path, other) or 'taken over' in caplog.text)
    assert path.read_text() == other


def test_new_workdir_and_unchanged_configuration(tmp_path):
    opened = train_once(tmp_path / 'a' / 'b')
    assert opened.read_config() == json.loads(json.dumps(CONFIG))
    train_once(tmp_path / 'a' / 'b')


def test_another_configuration_is_refused_key_by_key(tmp_path):
    opened = train_once(tmp_path)
    before = opened.config_path.read_bytes()
    other = changed(train__steps=4000, optim__betas=[0.9, 0.999], parallel__mode='pmap')
    del other['train']['seed']
    with pytest.raises(ConfigError) as refusal:
        train_once(tmp_path, {**other, 'decode': {'beam': 4}})
    message = str(refusal.value)
    assert 'train.steps: 2000 -> 4000' in message
    assert 'train.seed: 0 -> (absent)' in message
    assert 'optim.betas: [0.9, 0.98] -> [0.9, 0.999]' in message
    assert 'decode.beam: (absent) -> 4' in message
    assert 'parallel.mode: "jit" -> "pmap"' in message
    assert '\n' not in message
    assert opened.config_path.read_bytes() == before


@pytest.mark.parametrize(
    'change', [{'parallel__mesh': {'data': 4}}, {'checkpoint__keep': 9}, {'train__log_every': 1}]
)
def test_what_no_update_depends_on_may_change(tmp_path, change):
    train_once(tmp_path)
    assert train_once(tmp_path, changed(**change)).read_config() == changed(**change)


def test_unusable_workdirs(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WorkdirError, match='is a file'):
        train_once(tmp_path / 'file')
    with pytest.raises(WorkdirError, match=r'cannot write .*Not a directory'):
        train_once(tmp_path / 'file' / 'run')
    with pytest.raises(ConfigError, match=r'has no config.json'):
        Workdir(tmp_path).read_config()
    (tmp_path / 'lost' / 'checkpoints' / '1').mkdir(parents=True)
    (tmp_path / 'lost' / 'checkpoints' / '1' / manifest.NAME).touch()
    with pytest.raises(WorkdirError, match=r'checkpoints but no config.json'):
        train_once(tmp_path / 'lost')
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(WorkdirError, match=r'config.json is damaged'):
        train_once(tmp_path)


@pytest.mark.parametrize('call', ['write', 'replace'])
def test_a_full_or_read_only_disk_is_one_clear_message(tmp_path, monkeypatch, call):
    def fails(*_):
        raise OSError(28, 'No space left on device')

    opened = train_once(tmp_path)
    before = opened.config_path.read_bytes()
    monkeypatch.setattr(
        type(opened.path), {'write': 'write_text', 'replace': 'replace'}[call], fails
    )
    with pytest.raises(
        WorkdirError, match=f'cannot write {tmp_path}.*: No space left on device; make room'
    ):
        train_once(tmp_path)
    assert opened.config_path.read_bytes() == before
    assert not list(tmp_path.glob('*.tmp'))


def lines_of(opened: Workdir) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    return [
        json.loads(line, parse_constant=refuse)
        for line in opened.metrics_path.read_text().splitlines()
    ]


def test_metrics_keep_every_digit_and_stay_json(tmp_path):
    opened = train_once(tmp_path)
    writer = opened.metrics_writer(None)
    writer.write(
        1, 'train', {'loss': np.float64(1) / 3, 'rate': jnp.float32(0.1), 'count': np.int64(7)}
    )
    writer.write(
        2, 'train', {'loss': float('nan'), 'norm': np.float32('inf'), 'low': -jnp.inf, 'note': 'x'}
    )
    first, second = lines_of(opened)  # Before close, since every line is flushed.
    assert first == {
        'step': 1,
        'split': 'train',
        'loss': 1 / 3,
        'rate': float(np.float32(0.1)),
        'count': 7,
    }
    assert second == {
        'step': 2,
        'split': 'train',
        'loss': 'nan',
        'norm': 'inf',
        'low': '-inf',
        'note': 'x',
    }
    writer.close()


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path):
    opened = train_once(tmp_path)
    writer = opened.metrics_writer(None)
    for step in range(1, 6):
        writer.write(step, 'train', {'loss': step / 3})
    writer.write(3, 'validation', {'loss': 0.5})
    writer.close()
    with opened.metrics_path.open('a') as file:
        file.write('{"step": 2, "split": "tr')
    writer = opened.metrics_writer(3)
    writer.write(4, 'train', {'loss': 9.0})
    writer.close()
    events = [(event['step'], event['split']) for event in lines_of(opened)]
    assert events == [(1, 'train'), (2, 'train'), (3, 'train'), (3, 'validation'), (4, 'train')]
    assert lines_of(opened)[-1]['loss'] == 9.0
    # A run that was killed before its first checkpoint starts again from nothing.
    opened.metrics_writer(None).close()
    assert lines_of(opened) == []


def test_a_damaged_metrics_line_is_named(tmp_path):
    opened = train_once(tmp_path)
    opened.metrics_path.write_text(
        '{"step": 1, "split": "train"}\nx\n{"step": 2, "split": "train"}\n'
    )
    with pytest.raises(WorkdirError, match=r'metrics.jsonl:2 is damaged'):
        opened.metrics_writer(2)


def read_events(directory: Path) -> list[Event]:
    """Read TensorBoard's files.

    A record is its length (8 bytes), a checksum of that (4), the event, and its checksum (4).
    """
    events = []
    for path in sorted(directory.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            (length,) = struct.unpack_from('<Q', content, offset)
            events.append(Event.FromString(content[offset + 12 : offset + 12 + length]))
            offset += length + 16
    return events


def test_tensorboard_gets_the_same_and_purges_on_resume(tmp_path):
    opened = train_once(tmp_path)
    writer = opened.metrics_writer(7)
    writer.write(8, 'train', {'loss': 1.5, 'note': 'x'})
    writer.close()
    events = read_events(Path(opened.events_path))
    assert [event.step for event in events if event.HasField('session_log')] == [8]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(8, 'train/loss', 1.5)]


def test_run_json_records_every_start_and_how_it_ended(tmp_path):
    opened = train_once(tmp_path)
    with opened.open_for_training(CONFIG, engines={'decoder': 'dense'}) as run:
        before = json.loads(opened.run_path.read_text())
        assert [record['exit'] for record in before] == ['done', None]
        assert before[-1]['engines'] == {'decoder': 'dense'}  # Written when the run starts.
        run['exit'] = 'preempted'
    with pytest.raises(KeyboardInterrupt), opened.open_for_training(CONFIG):
        raise KeyboardInterrupt
    records = json.loads(opened.run_path.read_text())
    assert [record['exit'] for record in records] == ['done', 'preempted', 'KeyboardInterrupt: ']
    assert all(record['start'] <= record['end'] for record in records)
    expected = {'python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'}
    assert expected <= records[0]['versions'].keys()
    assert records[0]['devices'].endswith('cpu cpu')
    assert records[0]['command'] == shlex.join(sys.argv)


def test_git_commit_is_of_the_package_and_no_other_checkout(tmp_path):
    def git(*arguments):
        identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        subprocess.run(
            ['git', '-C', tmp_path, *identity, *arguments], check=True, capture_output=True
        )

    assert git_commit(tmp_path) is None
    git('init')
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / 'module.py').write_text('1')
    git('add', '.')
    git('commit', '-m', 'first')
    commit = git_commit(tmp_path / 'package')
    assert len(commit) == 40
    (tmp_path / 'package' / 'module.py').write_text('2')
    assert git_commit(tmp_path / 'package') == commit + '+changes'
    (tmp_path / 'installed').mkdir()
    (tmp_path / 'installed' / 'module.py').write_text('1')
    assert git_commit(tmp_path / 'installed') is None


def test_evaluations_are_appended(tmp_path):
    opened = Workdir(tmp_path)
    opened.append_evaluation({'bleu': 41.02, 'loss': float('nan')})
    opened.append_evaluation({'bleu': 41.5, 'per_length': [1.0, float('inf')]})
    assert json.loads(opened.evaluations_path.read_text()) == [
        {'bleu': 41.02, 'loss': 'nan'},
        {'bleu': 41.5, 'per_length': [1.0, 'inf']},
    ]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    opened = Workdir(tmp_path)
    writer = opened.metrics_writer(None)
    writer.write(1, 'train', {'loss': 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []

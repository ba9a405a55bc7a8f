"""The real trackers, without a network: what two starts of a run send is there afterwards.

Each is skipped where its package is missing: pip install 'transformer_jax[NAME]'.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from etils import epath

from transformer_jax.trackers.kinds import TRACKERS, RunName
from transformer_jax.trackers.remote import RemoteTracker

RUN_ID = '0123456789abcdef0123456789abcdef'
# The environment of each, without a network; {} is the folder of its records.
OFFLINE = {
    'wandb': {'WANDB_MODE': 'offline', 'WANDB_DIR': '{}', 'WANDB_SILENT': 'true'},
    'mlflow': {'MLFLOW_TRACKING_URI': 'sqlite:///{}/mlflow.db'},
    'aim': {'AIM_REPO': '{}'},
    'trackio': {'TRACKIO_DIR': '{}'},
}
# Programs that read the records back, and print them as JSON: [[step, loss], …].
READERS = {
    'mlflow': """
import mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
assert run.data.params['train.steps'] == '4', run.data.params
assert run.info.status == 'FINISHED'
found = client.get_metric_history(run.info.run_id, 'train/loss')
print(json.dumps(sorted({(m.step, m.value) for m in found})))
""",
    'aim': """
import aim, subprocess
reindex = 'import sys; from aim.cli.cli import cli_entry_point; sys.exit(cli_entry_point())'
arguments = ['storage', '--repo', sys.argv[1], 'reindex', '--yes']
subprocess.run([sys.executable, '-c', reindex, *arguments], check=True, capture_output=True)
(run,) = aim.Repo(sys.argv[1]).iter_runs()
assert run['config', 'train.steps'] == 4
(metric,) = [m for m in run.metrics() if m.name == 'train/loss']
steps, (values, *_) = metric.data.items_list()
print(json.dumps(sorted(zip(steps, values))))
""",
    'trackio': """
import glob, sqlite3
(path,) = glob.glob(sys.argv[1] + '/*.db')
rows = sqlite3.connect(path).execute('SELECT step, metrics FROM metrics').fetchall()
found = {(step, json.loads(text).get('train/loss')) for step, text in rows}
found = {(step, loss) for step, loss in found if loss}
print(json.dumps(sorted(found)))
""",
    'wandb': """
import glob, struct
from wandb.proto import wandb_internal_pb2
def records(path):
    content = open(path, 'rb').read()
    at, whole = 7, b''  # After the file's header: blocks of 32 KiB, as in LevelDB's log.
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack('<IHB', content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b''
found, configs = set(), set()
for path in glob.glob(sys.argv[1] + '/wandb/offline-run-*/*.wandb'):
    for record in records(path):
        items = {
            (i.key or '/'.join(i.nested_key)): json.loads(i.value_json)
            for i in record.history.item
        }
        configs |= {i.key for i in record.config.update}
        configs |= {i.key for i in record.run.config.update}
        if 'train/loss' in items:
            found.add((items['step'], items['train/loss']))
assert 'train.steps' in configs, configs
print(json.dumps(sorted(found)))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TRACKERS)
def test_two_starts_of_a_run_are_one_record(tmp_path, monkeypatch, name, caplog):
    if importlib.util.find_spec(TRACKERS[name].package) is None:
        pytest.skip(f"pip install 'transformer_jax[{name}]'")
    records, monitored = tmp_path / 'records', tmp_path / 'w'
    records.mkdir()
    monitored.mkdir()
    for key, value in OFFLINE[name].items():
        monkeypatch.setenv(key, value.format(records))
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / 'curves.png'
    picture.write_bytes(PNG)
    for first in (1, 3):  # The second start does step 3 again, with the same loss.
        log_path = epath.Path(tmp_path / f'{name}.log')
        tracker = RemoteTracker(name, RunName(RUN_ID, 'w', str(monitored)), log_path)
        tracker.log_config({'train.steps': 4, 'data.source_dir': None, 'model.tied': ('output',)})
        for step in range(first, first + 3):
            tracker.log(step, {'train/loss': 1 / step, 'train/mfu': float('nan')})
        tracker.log_artifact(str(picture))
        tracker.finish()
        assert not caplog.records, log_path.read_text()
    code = f'import json, sys\n{READERS[name]}'
    command = [sys.executable, '-c', code, str(records)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in found] == pytest.approx([1 / step for step in range(1, 6)])


# A picture of one pixel.
PNG = bytes.fromhex(
    '89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360'
    '606060000000050001a5f645400000000049454e44ae426082'
)

"""scripts/cloud/tpu.sh and gke.sh: which commands they run, with programs that only take notes."""

import shlex
import subprocess
from pathlib import Path

import pytest
from helpers.fake_programs import FakePrograms

ROOT = Path(__file__).parents[2]
TPU = {'TPU': 'mine', 'ZONE': 'zone-b', 'TYPE': 'v5litepod-32', 'WORKDIR': 'gs://bucket/runs/w'}
GKE = {
    'CLUSTER': 'c',
    'PROJECT': 'p',
    'ZONE': 'zone-b',
    'TYPE': 'v5litepod-32',
    'IMAGE': 'host/p/r/image:v1',
    'RUN': 'base-1',
    'WORKDIR': 'gs://bucket/runs/w',
}
FLAGS = ['--config=configs/wmt14.py:en-de,base', '--config.model.attention=softmax(softcap=5)']
TRAIN = (
    'train --distributed --workdir=gs://bucket/runs/w --config=configs/wmt14.py:en-de,base '
    "'--config.model.attention=softmax(softcap=5)'"
)
ARCHIVE = '/tmp/transformer_jax-mine.tar.gz'
QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
VM = ['gcloud', 'compute', 'tpus', 'tpu-vm']
REQUEST = [
    *(*QUEUED, 'create', 'mine', '--zone=zone-b', '--node-id=mine'),
    *('--accelerator-type=v5litepod-32', '--runtime-version=v2-alpha-tpuv5-lite', '--spot'),
]
LOOK = [*QUEUED, 'describe', 'mine', '--zone=zone-b', '--format=value(state.state)']
INSTALL = [
    [
        *('tar', '--create', '--gzip', f'--file={ARCHIVE}', f'--directory={ROOT}'),
        *('--exclude=./.venv*', '--exclude=./runs', '--exclude=__pycache__', '.'),
    ],
    [*VM, 'scp', ARCHIVE, 'mine:transformer_jax.tar.gz', '--zone=zone-b', '--worker=all'],
    [
        *(*VM, 'ssh', 'mine', '--zone=zone-b', '--worker=all'),
        '--command=mkdir -p transformer_jax && tar xzf transformer_jax.tar.gz -C transformer_jax &&'
        '\ntransformer_jax/scripts/cloud/worker.sh install tpu,gcs',
    ],
]
START = [
    *(*VM, 'ssh', 'mine', '--zone=zone-b', '--worker=all'),
    f'--command=transformer_jax/scripts/cloud/worker.sh start .venv/bin/transformer-jax {TRAIN}',
]
DELETE = [*QUEUED, 'delete', 'mine', '--zone=zone-b', '--force', '--quiet']
FETCH = [
    ['mkdir', '-p', 'results'],
    [
        *('gcloud', 'storage', 'rsync', '--recursive'),
        *('--exclude=(^|.*/)checkpoints/.*', 'gs://bucket/runs/w', 'results'),
    ],
]
TPU_COMMANDS = [
    (['create'], {}, [REQUEST, LOOK]),
    (
        ['create'],
        {'QUEUED': '0', 'SPOT': '0', 'PROJECT': 'p', 'VERSION': 'v'},
        [
            [
                *(*VM, 'create', 'mine', '--zone=zone-b', '--project=p'),
                *('--accelerator-type=v5litepod-32', '--version=v'),
            ],
            [*VM, 'describe', 'mine', '--zone=zone-b', '--project=p', '--format=value(state)'],
        ],
    ),
    (['install'], {}, INSTALL),
    (['run', *FLAGS], {}, [START]),
    (
        ['status'],
        {},
        [
            LOOK,
            [
                *(*VM, 'ssh', 'mine', '--zone=zone-b', '--worker=0'),
                '--command=transformer_jax/scripts/cloud/worker.sh status',
            ],
        ],
    ),
    (
        ['stop'],
        {},
        [
            [
                *(*VM, 'ssh', 'mine', '--zone=zone-b', '--worker=all'),
                '--command=transformer_jax/scripts/cloud/worker.sh stop',
            ]
        ],
    ),
    (['fetch', 'results'], {}, FETCH),
    (['--yes', 'delete'], {}, [DELETE]),
    (
        ['--yes', 'delete'],
        {'QUEUED': '0'},
        [[*VM, 'delete', 'mine', '--zone=zone-b', '--quiet']],
    ),
]
PLACE = ['--cluster=c', '--project=p', '--zone=zone-b']
SLICES = ['--tpu-type=v5litepod-32', '--num-slices=1']
GKE_COMMANDS = [
    (['create'], {}, [['xpk', 'cluster', 'create', *PLACE, *SLICES, '--spot']]),
    (
        ['create'],
        {'SPOT': '0', 'SLICES': '2'},
        [['xpk', 'cluster', 'create', *PLACE, SLICES[0], '--num-slices=2', '--on-demand']],
    ),
    (
        ['install'],
        {},
        [
            [
                *('docker', 'build', f'--file={ROOT}/scripts/cloud/Dockerfile'),
                *('--tag=host/p/r/image:v1', f'{ROOT}'),
            ],
            ['docker', 'push', 'host/p/r/image:v1'],
        ],
    ),
    (
        ['run', *FLAGS],
        {},
        [
            [
                *('xpk', 'workload', 'create', *PLACE, '--workload=base-1', *SLICES),
                *('--docker-image=host/p/r/image:v1', '--max-restarts=1000'),
                *('--restart-on-exit-codes=3,5', '--termination-grace-period-seconds=120'),
                f'--command=exec transformer-jax {TRAIN}',
            ]
        ],
    ),
    (
        ['status'],
        {},
        [
            ['xpk', 'workload', 'list', *PLACE, '--filter-by-job=base-1'],
            [
                *('kubectl', 'logs', '--tail=20'),
                '--selector=jobset.sigs.k8s.io/jobset-name=base-1,'
                'batch.kubernetes.io/job-completion-index=0',
            ],
        ],
    ),
    (
        ['--yes', 'stop'],
        {},
        [['xpk', 'workload', 'delete', *PLACE, '--workload=base-1', '--force']],
    ),
    (['fetch', 'results'], {}, FETCH),
    (['--yes', 'delete'], {}, [['xpk', 'cluster', 'delete', *PLACE, '--force']]),
]
COMMANDS = [('tpu.sh', TPU, *row) for row in TPU_COMMANDS]
COMMANDS += [('gke.sh', GKE, *row) for row in GKE_COMMANDS]


@pytest.fixture
def fakes(tmp_path):
    return FakePrograms(tmp_path, ['gcloud', 'xpk', 'kubectl', 'docker', 'tar', 'mkdir'])


def call(fakes, script, arguments, settings):
    done = subprocess.run(
        ['bash', ROOT / 'scripts/cloud' / script, *arguments],
        env=fakes.environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(('script', 'settings', 'arguments', 'changes', 'expected'), COMMANDS)
def test_each_command_runs_these_programs(script, settings, arguments, changes, expected, fakes):
    fakes.answer(('describe', 'ACTIVE', 0))
    code, _, errors = call(fakes, script, arguments, settings | changes)
    assert code == 0, errors
    assert [sorted(line) for line in fakes.calls()] == [sorted(line) for line in expected]


@pytest.mark.parametrize(('script', 'settings', 'arguments', 'changes', 'expected'), COMMANDS)
def test_a_dry_run_prints_them_and_runs_nothing(
    script, settings, arguments, changes, expected, fakes
):
    code, output, errors = call(fakes, script, ['--dry-run', *arguments], settings | changes)
    assert code == 0, errors
    assert fakes.calls() == []
    printed = shlex.split(output.replace('\n', ' '))
    looks = [line for line in expected if 'describe' in line]
    words = [word for line in expected if line not in looks for word in line]
    # $'…' is how bash quotes a word of several lines.
    assert [word for word in sorted(printed) if '\\n' not in word] == [
        word for word in sorted(words) if '\n' not in word
    ]


@pytest.mark.parametrize(
    ('script', 'arguments', 'settings', 'message'),
    [
        ('tpu.sh', ['create'], {}, 'set TPU: the name of the machines'),
        ('tpu.sh', ['create'], TPU | {'TYPE': ''}, 'set TYPE: the type of the machines, '),
        ('tpu.sh', ['create'], TPU | {'SPOT': 'yes'}, 'SPOT=yes: write 0 or 1'),
        ('tpu.sh', ['create'], TPU | {'POLL_S': '1m'}, 'POLL_S=1m: write a whole number'),
        ('tpu.sh', ['run'], TPU, 'give the flags of train, '),
        ('tpu.sh', ['run', 'train'], TPU, 'train: only the flags of train, '),
        ('tpu.sh', ['run', '--workdir=x'], TPU, '--workdir=x: set WORKDIR instead'),
        ('tpu.sh', ['run', '--distributed'], TPU, '--distributed: the script gives it'),
        ('tpu.sh', ['run', *FLAGS], TPU | {'WORKDIR': 'runs/w'}, 'WORKDIR=runs/w: write gs://'),
        ('tpu.sh', ['fetch'], TPU, 'fetch to where? give a folder'),
        ('tpu.sh', ['delete'], TPU, 'delete mine in zone-b: give --yes'),
        ('tpu.sh', ['destroy'], TPU, 'destroy is no command: create, install, run, '),
        ('tpu.sh', [], TPU, 'nothing is no command: '),
        ('tpu.sh', ['--force', 'delete'], TPU, '--force is no option: --dry-run and --yes are'),
        ('gke.sh', ['create'], {}, 'set CLUSTER: the name of the cluster'),
        ('gke.sh', ['run', *FLAGS], GKE | {'RUN': 'Base_1'}, 'RUN=Base_1: write a letter, then'),
        ('gke.sh', ['run', *FLAGS], GKE | {'GRACE_S': '-1'}, 'GRACE_S=-1: write a whole number'),
        ('gke.sh', ['stop'], GKE, 'stop base-1 on c: give --yes'),
        ('gke.sh', ['delete'], GKE, 'delete the cluster c with all that runs on it: give --yes'),
        ('gke.sh', ['watch'], GKE, 'watch is no command: create, install, run, '),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_run(script, arguments, settings, message, fakes):
    code, output, errors = call(fakes, script, arguments, settings)
    assert (code, output) == (2, '')
    assert errors.startswith(f'{script}: {message}')
    assert errors.count('\n') == 1
    assert fakes.calls() == []


def watch(fakes, *answers):
    fakes.answer(*answers)
    return call(fakes, 'tpu.sh', ['watch', *FLAGS], TPU | {'POLL_S': '0'})


def kinds(calls):
    """Which steps were taken; looks at states are left out."""
    names = {tuple(REQUEST): 'request', tuple(DELETE): 'delete', tuple(START): 'start'}
    names[tuple(INSTALL[-1])] = 'install'
    return [names[tuple(line)] for line in calls if tuple(line) in names]


def test_watch_creates_again_what_was_taken_away(fakes):
    code, _, errors = watch(
        fakes,
        ('describe', 'ERROR: NOT_FOUND: no such resource', 1),
        ('describe', 'WAITING_FOR_RESOURCES', 0),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', 'none', 0),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', 'running', 0),
        ('describe', 'ERROR: UNAVAILABLE', 1),
        ('describe', 'SUSPENDED', 0),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', '', 255),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', 'none', 0),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', '0', 0),
    )
    assert code == 0, errors
    assert kinds(fakes.calls()) == [
        *('request', 'install', 'start'),
        *('delete', 'request', 'install', 'start'),
    ]


def test_watch_tries_again_what_failed_and_ends_with_the_code_of_the_run(fakes):
    code, _, errors = watch(
        fakes,
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', '0', 0),  # of an earlier run
        ('scp', 'no route', 1),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', '0', 0),
        ('describe', 'ACTIVE', 0),
        ('cat run/exit', '4', 0),
    )
    assert code == 4
    assert 'could not be started yet' in errors
    assert kinds(fakes.calls()) == ['install', 'start']


def test_create_does_not_wait_for_what_has_failed(fakes):
    fakes.answer(('describe', 'FAILED', 0))
    code, _, errors = call(fakes, 'tpu.sh', ['create'], TPU)
    assert (code, errors) == (2, 'tpu.sh: mine is FAILED: delete it, and try again or elsewhere\n')

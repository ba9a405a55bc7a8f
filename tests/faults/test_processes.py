"""Several processes: what they are given, and what happens to one or to those that differ."""

import http.server
import os
import signal
import socket
import socketserver
import threading

import pytest
from helpers.processes import ended as ended_script
from helpers.processes import start_script
from helpers.support import CONFIG, events, flags, free_port, start_pair, wait_until
from jax._src.distributed import global_state

from transformer_jax.partitioning import joining
from transformer_jax.partitioning.peers import Peers

TIMEOUT_S = 300
CLUSTERS = ('SLURM_', 'OMPI_', 'JAX_COORDINATOR', 'TPU_', 'KUBERNETES_')


# --- What cannot join -----------------------------------------------------------------------------

# flags, and the text of the line
WRONG = [
    (['--coordinator=abc'], 'write HOST:PORT'),
    (['--coordinator=localhost'], 'write HOST:PORT'),
    (['--coordinator=localhost:'], 'write HOST:PORT'),
    (['--coordinator=:12345'], 'write HOST:PORT'),
    (['--coordinator=localhost:abc'], 'write HOST:PORT'),
    (['--coordinator=localhost:0'], 'write HOST:PORT'),
    (['--coordinator=localhost:65536'], 'write HOST:PORT'),
    (['--coordinator=localhost:-1'], 'write HOST:PORT'),
    (['--coordinator=localhost:12²'], 'write HOST:PORT'),
    (['--coordinator=http://localhost:12345/x'], 'write HOST:PORT'),
    (['--coordinator=no.such.host.invalid:12345', '--process_id=1'], 'no host'),
    (['--coordinator=localhost:TAKEN', '--process_id=0'], 'cannot listen on port'),
    (['--coordinator=localhost:12345', '--process_id=2'], 'the processes are 0 to 1'),
    (['--coordinator=localhost:12345', '--process_id=-1'], 'process_id'),
    (['--coordinator=localhost:12345', '--process_id=one'], 'process_id'),
    (['--coordinator=localhost:FREE', '--process_id=1'], 'nothing answers there'),
    (['--process_id=1'], 'need --coordinator'),
    (['--coordinator=', '--process_id=1'], 'need --coordinator'),
    (['--distributed'], 'give --coordinator=HOST:PORT'),
    (['--distributed', '--coordinator=localhost:12345'], 'leave out --coordinator'),
]


@pytest.fixture
def not_joined(monkeypatch):
    """JAX in this process as it is in a new one, and nobody waits."""
    monkeypatch.setattr(joining, 'JOIN_S', 0)
    monkeypatch.setattr(Peers, 'end_on_native_failure', lambda self: None)
    for name in ('process_id', 'num_processes', 'coordinator_address'):
        monkeypatch.setattr(global_state, name, getattr(global_state, name))
    for name in list(os.environ):
        if name.startswith(CLUSTERS):
            monkeypatch.delenv(name)
    # JAX itself refuses to join in a process that has used its devices, as this one has.
    monkeypatch.setattr('jax._src.xla_bridge.backends_are_initialized', lambda: False)


@pytest.mark.parametrize(('given', 'line'), WRONG)
def test_what_cannot_join_is_one_line(call, not_joined, given, line):
    with socket.create_server(('', 0)) as taken:
        ports = {'TAKEN': taken.getsockname()[1], 'FREE': free_port()}
        for name, port in ports.items():
            given = [flag.replace(name, str(port)) for flag in given]
        code, _, errors = call(
            'train',
            CONFIG,
            '--workdir=w',
            *given,
            *(['--num_processes=2'] * ('--distributed' not in given[0])),
        )
    assert code == 2
    assert line in errors
    assert errors.count('\n') == 1


def test_an_address_in_the_environment_is_checked(call, not_joined, monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'abc')
    code, _, errors = call('train', CONFIG, '--workdir=w', '--distributed')
    assert (code, errors.count('\n')) == (2, 1)
    assert 'JAX_COORDINATOR_ADDRESS=abc: write HOST:PORT' in errors


def test_a_host_of_a_cluster_that_is_late_is_no_mistake(call, not_joined, monkeypatch):
    """A scheduler starts the processes again after exit code 5, not after 2."""
    found = {'JOB_ID': '1', 'STEP_NODELIST': 'localhost', 'NTASKS': '2', 'PROCID': '1'}
    for name, value in (found | {'LOCALID': '0'}).items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    monkeypatch.setenv('JAX_COORDINATOR_PORT', str(free_port()))
    code, _, errors = call('train', CONFIG, '--workdir=w', '--distributed')
    assert (code, errors.count('\n')) == (5, 1)
    assert '--distributed: nothing answers there' in errors


@pytest.mark.parametrize(
    ('address', 'expected'),
    [
        ('localhost:1', ('localhost', 1)),
        ('10.0.0.1:65535', ('10.0.0.1', 65535)),
        ('[::]:12345', ('::', 12345)),
    ],
)
def test_addresses(address, expected):
    assert joining.split_address(address, '--coordinator') == expected


# Waits only some seconds for the others.
IMPATIENT = """
import sys
from transformer_jax.partitioning import joining
joining.JOIN_S = 3
from transformer_jax.cli import main
sys.exit(main())
"""


@pytest.mark.fault('two processes')
@pytest.mark.slow
@pytest.mark.parametrize(
    'indices',
    [
        (0,),  # the other never comes
        pytest.param((0, 0), marks=pytest.mark.rare),
        pytest.param((0, 1, 1), marks=pytest.mark.rare),
    ],
)
def test_processes_that_do_not_fit_end_alike(tmp_path, indices):
    port = free_port()
    size = max(len(indices), 2)
    processes = [
        start_script(
            IMPATIENT,
            *('train', CONFIG, f'--workdir={tmp_path}', f'--coordinator=localhost:{port}'),
            *(f'--num_processes={size}', f'--process_id={index}'),
        )
        for index in indices
    ]
    for process in processes:
        code, _, errors = ended_script(process)
        assert code == 2, errors
        assert 'Traceback' not in errors
        assert errors.splitlines()[-1].startswith('transformer-jax: ')


@pytest.mark.fault('two processes')
@pytest.mark.slow
def test_another_server_at_the_address_is_one_line(tmp_path):
    with socketserver.ThreadingTCPServer(('', 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = start_script(
            IMPATIENT,
            *('train', CONFIG, f'--workdir={tmp_path}', '--num_processes=2', '--process_id=1'),
            f'--coordinator=localhost:{server.server_address[1]}',
        )
        code, _, errors = ended_script(process)
        server.shutdown()
    assert code == 2, errors
    assert 'Traceback' not in errors


# --- What happens to one --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('ended', 'silent', 'line', 'code'),
    [
        ({}, [], '', 5),
        ({}, [1], 'process 1 of 4 is gone', 5),
        ({}, [1, 3], 'processes 1, 3 of 4 are gone', 5),
        ({1: 3}, [1], 'process 1 of 4 has ended with exit code 3, see its message', 3),
        ({2: 5}, [1], 'process 1 of 4 is gone', 5),  # 2 found that 1 is gone
        ({2: 5}, [], 'process 2 of 4 is gone', 5),
        ({2: 5, 3: 143}, [2, 3], 'process 3 of 4 has ended with exit code 143', 143),
    ],
)
def test_the_line_names_the_cause(ended, silent, line, code):
    others = Peers()
    others._me, others._count, others._polled = 0, 4, 100.0
    others._ended = {index: (code, 99.0) for index, code in ended.items()}
    others._beats = {index: ('1', 0.0 if index in silent else 99.0) for index in (1, 2, 3)}
    assert others._line().startswith(line)
    assert bool(others._line()) == bool(line)
    assert others._exit_code() == code


def pair(workdir, own=((), ())) -> list:
    """Two processes of one run, each with flags of its own."""
    endless = flags(train__steps=100_000, checkpoint__every=0, evaluate__every=0)
    return start_pair(workdir, endless, own)


def ended(processes) -> list[tuple[int, str]]:
    """The exit code and the last line of each process."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert 'Traceback' not in errors, errors
        lines = [line for line in errors.splitlines() if line.startswith('transformer-jax: ')]
        found.append((process.returncode, ' '.join(lines)))
    return found


# flags of process 1, and what the line of both names
DIFFERENT = [
    (['--config.optim.learning_rate=0.1', '--config.train.seed=3'], 'optim.learning_rate'),
    pytest.param(['--config.train.batch_tokens=64'], 'train.batch_tokens', marks=pytest.mark.rare),
    pytest.param(['--workdir=/tmp/no-such-workdir'], '--workdir', marks=pytest.mark.rare),
]


@pytest.mark.fault('two processes')
@pytest.mark.slow
@pytest.mark.parametrize(('own', 'key'), DIFFERENT)
def test_processes_that_differ_end_alike(tmp_path, own, key):
    (first, line), (second, other) = ended(pair(tmp_path, ((), own)))
    assert (first, second) == (2, 2)
    assert line == other
    assert f'{key}: ' in line
    assert '(process 1)' in line
    assert not (tmp_path / 'config.json').exists()


# a process, its signals, the codes of both, and what the line of the other says
FAULTS = [
    (1, [signal.SIGKILL], (5, -9), 'process 1 of 2 is gone: restart all of them'),
    (0, [signal.SIGKILL], (-9, 5), 'process 0 of 2 is gone: restart all of them'),
    (1, [signal.SIGINT], (130, 130), 'stopped by SIGINT after step'),
    pytest.param(
        0,
        [signal.SIGUSR1, signal.SIGTERM],
        (143, 143),
        'stopped by SIGUSR1 after step',
        marks=pytest.mark.rare,
    ),
    pytest.param(
        1, [signal.SIGTERM] * 5, (143, 143), 'stopped by SIGTERM after step', marks=pytest.mark.rare
    ),
    pytest.param(1, [signal.SIGSEGV], (5, -11), 'process 1 of 2 is gone', marks=pytest.mark.rare),
]


@pytest.mark.fault('two processes')
@pytest.mark.slow
@pytest.mark.parametrize(('index', 'signums', 'codes', 'line'), FAULTS)
def test_a_fault_of_one_ends_both(tmp_path, index, signums, codes, line):
    processes = pair(tmp_path)
    wait_until(lambda: len(events(tmp_path, 'train')) > 5, processes[0])
    for signum in signums:
        processes[index].send_signal(signum)
    found = ended(processes)
    assert tuple(code for code, _ in found) == codes, found
    assert line in found[1 - index][1]


@pytest.mark.fault('two processes')
@pytest.mark.slow
@pytest.mark.rare
def test_a_mistake_in_one_ends_both(tmp_path):
    (first, line), (second, other) = ended(pair(tmp_path, ((), ['--config.model.d_model=15'])))
    assert (first, second) == (2, 2)
    assert 'd_model' in line + other

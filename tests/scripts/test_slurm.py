"""scripts/cloud/slurm.sh, with an `srun` that starts the tasks of a job on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.fake_programs import FakePrograms

ROOT = Path(__file__).parents[2]
# As srun: starts the tasks, passes SIGUSR1 on to them, ends with the highest exit code.
SRUN = """#!/bin/bash
tasks=()
trap 'kill -USR1 "${tasks[@]}"' USR1
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 \
    "$@" > "$TASK_LOGS/$i" 2>&1 &
  tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
  while true; do
    code=0
    wait "$task" || code=$?
    kill -0 "$task" 2> /dev/null || break
  done
  [ "$code" -le "$highest" ] || highest=$code
done
exit "$highest"
"""
TINY = [
    f'--config={ROOT}/configs/number_words.py:en-de',
    *('--config.model.d_model=16', '--config.model.d_ff=32'),
    *('--config.model.encoder_layers=1', '--config.model.decoder_layers=1'),
    *('--config.train.steps=400', '--config.evaluate.every=0', '--config.checkpoint.every=1000'),
    *('--config.train.log_every=5', '--config.train.batch_tokens=128'),
]


@pytest.fixture
def job(tmp_path):
    """A job of two tasks: programs and settings."""
    fakes = FakePrograms(tmp_path, ['scontrol'])
    (fakes.programs / 'srun').write_text(SRUN)
    (fakes.programs / 'srun').chmod(0o755)
    (tmp_path / 'venv/bin').mkdir(parents=True)
    (tmp_path / 'logs').mkdir()
    settings = {
        'SLURM_JOB_ID': str(os.getpid()),  # JAX makes the port of it.
        'SLURM_NTASKS': '2',
        'SLURM_NTASKS_PER_NODE': '2',
        'TASK_LOGS': os.fspath(tmp_path / 'logs'),
        'VENV': os.fspath(tmp_path / 'venv'),
    }
    return fakes, settings


def install(job, text):
    """Make the program that the job runs."""
    program = Path(job[1]['VENV']) / 'bin/transformer-jax'
    program.write_text(text)
    program.chmod(0o755)


def start(job, *arguments, **settings):
    return subprocess.Popen(
        ['bash', ROOT / 'scripts/cloud/slurm.sh', *arguments],
        env={**job[0].environment(**job[1]), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ('code', 'restarts', 'requeued'),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (4, 0, False),
        (130, 0, False),
        (143, 0, False),
        (3, 0, True),
        (5, 7, True),
        (137, 999, True),
        (5, 1000, False),
    ],
)
def test_a_job_is_queued_again_where_that_helps(code, restarts, requeued, job):
    """143 without a signal before the time limit: `scancel`, which nothing must undo."""
    install(job, f'#!/bin/bash\necho "$SLURM_PROCID $*"\nexit {code}\n')
    found, _, _ = finish(start(job, '--config=x', SLURM_RESTART_COUNT=str(restarts)))
    logs = [(Path(job[1]['TASK_LOGS']) / name).read_text() for name in '01']
    assert logs == ['0 train --distributed --config=x\n', '1 train --distributed --config=x\n']
    assert job[0].calls() == [['scontrol', 'requeue', job[1]['SLURM_JOB_ID']]] * requeued
    if not requeued:
        assert found == (2 if restarts == 1000 else code)


SAVES = """#!/bin/bash
trap 'exit 143' USR1
touch "$VENV/$SLURM_PROCID"
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(('signum', 'requeued'), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_reaches_the_tasks(signum, requeued, job):
    install(job, SAVES)
    process = start(job, '--config=x')
    wait_for([Path(job[1]['VENV']) / name for name in '01'])
    process.send_signal(signum)
    code, _, errors = finish(process)
    assert code == (0 if requeued else 143), errors
    assert len(job[0].calls()) == requeued


@pytest.mark.parametrize(
    ('changes', 'arguments', 'message'),
    [
        ({'SLURM_JOB_ID': ''}, ['--config=x'], 'submit it: sbatch'),
        ({'VENV': '/nowhere'}, ['--config=x'], 'VENV=/nowhere has no transformer-jax'),
        ({'MAX_RESTARTS': 'many'}, ['--config=x'], 'MAX_RESTARTS=many: write a whole number'),
        ({'SLURM_GPUS_PER_TASK': '1'}, ['--config=x'], 'use --gpus-per-node and '),
        ({'SLURM_GPUS_ON_NODE': '4'}, ['--config=x'], '4 GPUs and 2 tasks on a node: give '),
        ({}, [], 'give the flags of train'),
    ],
)
def test_a_mistake_is_one_line(changes, arguments, message, job):
    install(job, '#!/bin/bash\n')
    code, output, errors = finish(start(job, *arguments, **changes))
    assert (code, output) == (2, '')
    assert errors.startswith(f'slurm.sh: {message}')
    assert errors.count('\n') == 1
    assert job[0].calls() == []


def wait_for(paths):
    until = time.monotonic() + 600
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.rare
def test_a_real_run_of_two_processes_is_stopped_queued_again_and_goes_on(job, tmp_path):
    install(job, f'#!/bin/bash\nexec {sys.executable} -m transformer_jax "$@"\n')
    settings = {
        'PYTHONPATH': os.fspath(ROOT),
        'JAX_NUM_CPU_DEVICES': '1',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'HOME': os.fspath(tmp_path),
    }
    workdir = tmp_path / 'run'
    arguments = [*TINY, f'--workdir={workdir}']
    process = start(job, *arguments, **settings)
    until = time.monotonic() + 600
    metrics = workdir / 'metrics.jsonl'
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, (finish(process), logs(job))
        assert time.monotonic() < until, logs(job)
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)  # as SLURM does before the time limit
    code, output, errors = finish(process)
    assert code == 0, (errors, logs(job))
    assert 'exit code 143: the job is queued again' in output
    assert job[0].calls() == [['scontrol', 'requeue', job[1]['SLURM_JOB_ID']]]
    [saved] = [int(path.name) for path in (workdir / 'checkpoints').iterdir()]
    assert 5 <= saved < 400

    code, _, errors = finish(start(job, *arguments, SLURM_RESTART_COUNT='1', **settings))
    assert code == 0, (errors, logs(job))
    assert f'resumed after step {saved}' in logs(job)[0]
    starts = json.loads((workdir / 'run.json').read_text())
    assert [start['processes'] for start in starts] == [2, 2]
    assert len(job[0].calls()) == 1


def logs(job):
    return [path.read_text() for path in sorted(Path(job[1]['TASK_LOGS']).iterdir())]

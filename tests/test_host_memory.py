"""The memory of a process that computes on a CPU: it is reused, and it has a limit."""

import ctypes
import os
import subprocess
import sys

import pytest

from transformer_jax import host_memory

PROGRAM = """
import resource, sys
from transformer_jax.host_memory import keep_freed_memory
if sys.argv[1] == 'kept':
    keep_freed_memory()
import jax, jax.numpy as jnp
barrier = jax.lax.optimization_barrier
step = jax.jit(lambda a: barrier(jnp.sin(a)).T + barrier(jnp.cos(a)))
a = jnp.ones((2048, 2048))  # 16 MiB, as each temporary: 4,096 pages
for call in range(60):
    if call == 40:  # By now the heap has its final size.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(a).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), 'mallopt'), reason='the C library has no mallopt'
)
def test_a_program_finds_the_memory_that_it_freed():
    def faults(mode):
        # glibc adapts by itself from which size on it maps blocks. This fixes it at 1 MiB, so that
        # it maps every temporary, unless told to keep memory.
        environment = os.environ | {'MALLOC_MMAP_THRESHOLD_': '1048576'}
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM, mode], capture_output=True, check=True, env=environment
        )
        return int(done.stdout)

    assert faults('kept') < faults('not') / 3  # The step has three temporaries.


@pytest.mark.skipif(sys.platform != 'linux', reason='the bound is of Linux')
def test_what_does_not_fit_is_an_error_and_the_process_goes_on():
    program = """
import jax, jax.numpy as jnp
from transformer_jax import host_memory
host_memory.machine_memory = lambda: 3 * 2 ** 30
host_memory.tune_host_memory()
outer = jax.jit(lambda a: a[:, None] + a[None])
for size in (100, 50_000, 200):
    try:
        print(outer(jnp.ones(size)).block_until_ready().shape[0])
    except jax.errors.JaxRuntimeError as error:
        print(host_memory.exhausted(error))
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, check=True, text=True
    )
    before, message, after = done.stdout.splitlines()
    assert (before, after) == ('100', '200')
    assert message == (
        'Out of memory allocating 10000000000 bytes: take smaller batches (train.batch_tokens, '
        'evaluate.batch_tokens), a smaller model, or an engine that holds no scores of all pairs '
        'of tokens (model.engine=chunked)'
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='the bound is of Linux')
def test_a_command_that_runs_out_of_memory_says_so_in_one_line(tmp_path):
    program = """
import resource, sys
from transformer_jax.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (3 * 2 ** 30, resource.RLIM_INFINITY))
config = ['--config=configs/number_words.py:en-de', '--config.model.d_ff=9000000']
sys.exit(main(['train', *config, *sys.argv[1:]]))
"""
    done = subprocess.run(
        [sys.executable, '-c', program, f'--workdir={tmp_path}'],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith('transformer-jax: Out of memory allocating '), (
        done.stderr
    )
    assert 'Traceback' not in done.stderr


def test_memory_is_that_of_the_machine_with_its_swap_or_of_a_smaller_container(
    tmp_path, monkeypatch
):
    container, meminfo = tmp_path / 'memory.max', tmp_path / 'meminfo'
    monkeypatch.setattr(host_memory, 'CONTAINER', container)
    monkeypatch.setattr(host_memory, 'MEMINFO', meminfo)
    alone = host_memory.machine_memory()
    assert alone == os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    meminfo.write_text('MemFree:  5 kB\nSwapTotal:       2048 kB\nSwapFree:  7 kB\n')
    container.write_text('max\n')
    assert host_memory.machine_memory() == alone + 2**21
    container.write_text('1048576\n')
    assert host_memory.machine_memory() == 2**20


def test_other_errors_are_not_of_memory():
    assert not host_memory.exhausted(ValueError('shapes (2, 3) and (4,)'))
    assert host_memory.exhausted(MemoryError()).startswith('out of memory: take smaller batches')


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        (
            'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.\n'
            'BufferAssignment: x',
            'Out of memory while trying to allocate 8 bytes',
        ),
        (
            'INTERNAL: Error dispatching computation: Out of memory allocating 8 bytes.',
            'Out of memory allocating 8 bytes',
        ),
        (
            'RESOURCE_EXHAUSTED: Attempting to reserve 2G at the bottom of memory',
            'Attempting to reserve 2G at the bottom of memory',
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm. Used 20G of 16G.',
            'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
            'Used 20G of 16G',
        ),
    ],
)
def test_messages_of_every_platform_are_known(text, told):
    assert host_memory.exhausted(RuntimeError(text)).startswith(f'{told}: take smaller batches')


def test_a_process_with_an_accelerator_keeps_its_heap(monkeypatch):
    found = []
    monkeypatch.setattr(host_memory.importlib.metadata, 'entry_points', lambda group: found)
    monkeypatch.setattr(host_memory.importlib.util, 'find_spec', lambda name: None)
    assert host_memory.only_cpu()
    found.append('jax_plugins.cuda')
    assert not host_memory.only_cpu()

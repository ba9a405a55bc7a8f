"""The heap of a process that computes on a CPU: programs find the memory that they freed."""

import ctypes
import os
import subprocess
import sys

import pytest

from transformer_jax import heap

PROGRAM = """
import resource, sys
from transformer_jax.heap import keep_freed_memory
if sys.argv[1] == 'kept':
    keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda a: jax.lax.optimization_barrier(jnp.sin(a)).T + jax.lax.optimization_barrier(jnp.cos(a)))
a = jnp.ones((2048, 2048))  # 16 MiB, as each temporary: 4,096 pages
for call in range(60):
    if call == 40:  # The heap has found its size.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(a).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='the C library has no mallopt')
def test_a_program_finds_the_memory_that_it_freed():
    def faults(mode):
        # glibc by itself maps large blocks anew or keeps them, as it goes. Here it maps, until it is told not to.
        environment = os.environ | {'MALLOC_MMAP_THRESHOLD_': '1048576'}
        done = subprocess.run([sys.executable, '-c', PROGRAM, mode], capture_output=True, check=True, env=environment)
        return int(done.stdout)
    assert faults('kept') < faults('not') / 3  # Of three temporaries.


def test_a_process_with_an_accelerator_keeps_its_heap(monkeypatch):
    found = []
    monkeypatch.setattr(heap.importlib.metadata, 'entry_points', lambda group: found)
    monkeypatch.setattr(heap.importlib.util, 'find_spec', lambda name: None)
    assert heap.only_cpu()
    found.append('jax_plugins.cuda')
    assert not heap.only_cpu()

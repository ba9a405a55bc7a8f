"""Every kind, position, engine, cache and mesh, compiled for TPUs and GPUs by their compilers.

A lost sharding, a new collective, a kernel that is gone or 5% more memory fails here, with what
changed. `make test-aot` compiles the fast cases for TPUs, `make test-aot-all` all of them,
`make test-aot-gpu` those for GPUs; without its compiler a case is skipped.
"""

import importlib.util

import jax
import pytest
from aot.cases import CASES, describe, differences, golden, path_of
from aot.gpu_cases import GPU_CASES

from transformer_jax.partitioning.topologies import EXTRAS, compute_on_the_cpu, parse_topology
from transformer_jax.profiling.plan import attempt

HERE = {platform for platform, row in EXTRAS.items() if importlib.util.find_spec(row[0])}
ALL_CASES = CASES | GPU_CASES
if 'cuda' in HERE:
    compute_on_the_cpu()  # before a test of another file starts JAX's backend


@pytest.fixture(autouse=True)
def real_compilations():
    """Take nothing from the cache: an executable that is read from it has no text."""
    enabled = jax.config.values['jax_enable_compilation_cache']
    jax.config.update('jax_enable_compilation_cache', False)
    yield
    jax.config.update('jax_enable_compilation_cache', enabled)


def marks(case):
    """Leave slow cases to `make test-aot-all`, and skip those whose compiler is not here."""
    platform = parse_topology(case.topology).platform
    told = f'no compiler for {platform} here: run make test-aot, or make test-aot-gpu'
    slow = [pytest.mark.slow] if case.slow else []
    return [*slow, pytest.mark.skipif(platform not in HERE, reason=told)]


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=marks(case)) for name, case in ALL_CASES.items()]
)
def test_the_program_is_that_of_its_golden_file(name):
    case, topology = ALL_CASES[name], parse_topology(ALL_CASES[name].topology)
    assert path_of(name).exists(), f'write it with: tests/aot/golden.py {name}'
    found = describe(attempt('', case.config(), case.command, topology))
    lines = differences(golden(name), found)
    assert not lines, '\n'.join([f'{name} is not what it was:', *lines])

"""Every kind, position, engine, cache and mesh, compiled for TPUs by their compiler.

A lost sharding, a new collective, a kernel that is gone or 5% more memory fails here, with what
changed. `make test-aot` compiles the fast cases, `make test-aot-all` all; without the compiler all
are skipped.
"""

import importlib.util

import jax
import pytest
from aot.cases import CASES, describe, differences, golden, path_of

from transformer_jax.partitioning.topologies import parse_topology
from transformer_jax.profiling.plan import attempt

if not importlib.util.find_spec('libtpu'):
    pytest.skip('no TPU compiler (libtpu) here: run make test-aot', allow_module_level=True)


@pytest.fixture(autouse=True)
def real_compilations():
    """Take nothing from the cache: an executable that is read from it has no text."""
    enabled = jax.config.values['jax_enable_compilation_cache']
    jax.config.update('jax_enable_compilation_cache', False)
    yield
    jax.config.update('jax_enable_compilation_cache', enabled)


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=pytest.mark.slow if case.slow else ()) for n, case in CASES.items()],
)
def test_the_program_is_that_of_its_golden_file(name):
    case = CASES[name]
    assert path_of(name).exists(), f'write it with: tests/aot/golden.py {name}'
    found = describe(attempt('', case.config(), case.command, parse_topology(case.topology)))
    lines = differences(golden(name), found)
    assert not lines, '\n'.join([f'{name} is not what it was:', *lines])

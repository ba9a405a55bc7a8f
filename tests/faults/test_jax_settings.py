"""Options of JAX that change numbers: a run keeps them, and all of its processes have the same."""

import json

import jax
import pytest
from helpers.support import experiment, flags, quiet, start_pair

from transformer_jax.errors import ConfigError
from transformer_jax.storage.jax_settings import BINDING, ROUNDING, jax_settings
from transformer_jax.training.train import train

RUN = {'train__steps': 4, 'checkpoint__every': 2}
OTHER = {
    'jax_threefry_partitionable': False,
    'jax_random_seed_offset': 1,
    'jax_default_prng_impl': 'rbg',
    'jax_enable_x64': True,
    'jax_numpy_dtype_promotion': 'strict',
    'jax_default_matmul_precision': 'highest',
    'jax_disable_most_optimizations': False,
}


@pytest.fixture
def set_option():
    """Sets an option until the test ends."""
    before = jax_settings()
    yield jax.config.update
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_table_has_every_option():
    assert OTHER.keys() == {*BINDING, *ROUNDING}


def test_each_start_records_them(workdir):
    [start] = json.loads((workdir / 'run.json').read_text())
    assert start['settings'] == jax_settings()


@pytest.mark.parametrize('name', BINDING)
def test_a_run_does_not_go_on_with_other_random_numbers_or_types(workdir, set_option, name):
    before = (workdir / 'run.json').read_bytes()
    old = json.dumps(jax_settings()[name])
    set_option(name, OTHER[name])
    line = rf'{name.upper()}: {old} -> {json.dumps(OTHER[name])}\).*give these environment'
    with pytest.raises(ConfigError, match=line):
        train(experiment(**RUN), workdir, quiet)
    assert (workdir / 'run.json').read_bytes() == before  # The next start is compared with it too.


@pytest.mark.parametrize('name', ROUNDING)
def test_a_run_that_goes_on_rounding_otherwise_says_so(workdir, set_option, caplog, name):
    set_option(name, OTHER[name])
    train(experiment(**RUN), workdir, quiet)
    assert f'{name.upper()}: ' in caplog.text
    assert f'-> {json.dumps(OTHER[name])}' in caplog.text


def test_what_an_earlier_version_recorded_is_no_hindrance(workdir, set_option):
    path = workdir / 'run.json'
    starts = json.loads(path.read_text())
    del starts[0]['settings']
    path.write_text(json.dumps(starts))
    set_option('jax_default_prng_impl', 'rbg')
    with pytest.raises(ConfigError, match=r'^rng is .*JAX_DEFAULT_PRNG_IMPL'):
        train(experiment(**RUN), workdir, quiet)


# The environment of process 1, and what the line of both names.
PROCESSES = [
    (
        {'JAX_THREEFRY_PARTITIONABLE': 'false'},
        'JAX_THREEFRY_PARTITIONABLE: true (process 0), false',
    ),
    ({'JAX_NUM_CPU_DEVICES': '2'}, 'devices of a process: "1 x cpu" (process 0), "2 x cpu"'),
]


@pytest.mark.fault('two processes')
@pytest.mark.slow
@pytest.mark.parametrize(('own', 'line'), PROCESSES)
def test_processes_with_other_settings_end_alike(tmp_path, own, line):
    processes = start_pair(tmp_path, flags(**RUN), environments=({}, own))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert 'Traceback' not in errors
        assert line in errors.splitlines()[-1]
    assert not (tmp_path / 'config.json').exists()

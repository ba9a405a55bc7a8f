"""The environment in run.json: every package, a hash of the list, flags; the list only once."""

import hashlib
import importlib.metadata
import json

from transformer_jax.storage.environment import describe_environment, packages_hash
from transformer_jax.storage.workdir import Workdir


def records(workdir):
    return json.loads((workdir / 'run.json').read_text())


def test_all_packages_are_there_and_their_hash_can_be_computed_again():
    found = describe_environment()
    assert found['packages']['jax'] == importlib.metadata.version('jax')
    names = {d.metadata['Name'] for d in importlib.metadata.distributions()} - {None}
    assert {name.lower().replace('_', '-') for name in names} == found['packages'].keys()
    lines = ''.join(sorted(f'{name}=={version}\n' for name, version in found['packages'].items()))
    assert found['packages_sha256'] == hashlib.sha256(lines.encode()).hexdigest()
    assert packages_hash({'b': '1', 'a': '2'}) == packages_hash({'a': '2', 'b': '1'})
    assert packages_hash({'a': '1'}) != packages_hash({'a': '2'})


def test_flags_are_recorded_without_places(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_x=1')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/home/me')
    flags = describe_environment()['flags']
    assert flags['XLA_FLAGS'] == '--xla_x=1'
    assert 'JAX_COMPILATION_CACHE_DIR' not in flags


def test_a_run_has_the_list_once_and_facts_at_once(tmp_path):
    for _ in range(2):
        workdir = Workdir(tmp_path)
        with workdir.open_for_training({'train': {'steps': 1}}):
            workdir.add_facts(splits={'train': 'a'})
            assert records(tmp_path)[-1]['splits'] == {'train': 'a'}  # while it still runs
    first, second = records(tmp_path)
    assert first['environment']['packages']
    assert 'packages' not in second['environment']
    assert first['environment']['packages_sha256'] == second['environment']['packages_sha256']
    assert first['exit'] == second['exit'] == 'done'
    assert first['splits'] == second['splits']

"""Processes of a run whose configuration, code or packages differ: what the refusal says."""

import json
import shutil

import jax
import pytest

from transformer_jax.errors import ConfigError
from transformer_jax.partitioning import same_start
from transformer_jax.partitioning.same_start import describe_differences, require_same_start


@pytest.mark.parametrize(
    ('found', 'lines'),
    [
        ([{'a': 1}, {'a': 1}], []),
        ([{'a': 1}, {'a': 2}], ['a: 1 (process 0), 2 (process 1)']),
        ([{'a': 1}, {'a': 1.0}], ['a: 1 (process 0), 1.0 (process 1)']),
        ([{'a': 'x', 'b': 0}, {'a': 'x'}], ['b: 0 (process 0), (absent) (process 1)']),
        ([{}, {'b': 'y'}], ['b: (absent) (process 0), "y" (process 1)']),
        ([{'a': 1}] * 6 + [{'a': 2}], ['a: 1 (processes 0, 1, 2, 3 and 2 more), 2 (process 6)']),
    ],
)
def test_differences_name_keys_and_processes(found, lines):
    assert describe_differences(found) == lines


def talking_to(changes):
    """The key-value store of two processes, of which the other has some facts of its own."""

    class KeyValues:
        def __init__(self, name):
            self.own = None

        def offer(self, key, text):
            assert key == '0'
            self.own = text

        def wait_for(self, key):
            facts = json.loads(self.own)
            known = changes.keys() <= facts.keys()
            assert known, facts
            return json.dumps(facts | changes if key == '1' else facts)

    return KeyValues


@pytest.fixture
def start_two(monkeypatch):
    """Starts this process beside another that has some facts of its own."""

    def start(changes):
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        monkeypatch.setattr(same_start, 'KeyValues', talking_to(changes))
        require_same_start({'train.seed': 0})

    monkeypatch.setattr(same_start, '_code_hash', lambda: 'sha256 0123')
    monkeypatch.setattr(same_start, 'package_versions', lambda: {'python': '3.11', 'jax': '0.9'})
    monkeypatch.setattr(same_start.outside, 'sources', lambda: {'my_kinds.cosine': 'ab'})
    return start


def test_processes_that_are_alike_start(start_two):
    start_two({})


# The fact in which process 1 differs, its value there, and what the message says of process 0.
DIFFERENT = [
    ('code', 'sha256 4567', '"sha256 0123"'),
    ('version of jax', '0.8', '"0.9"'),
    ('version of python', '3.12', '"3.11"'),
    ('code of my_kinds.cosine', 'cd', '"ab"'),
    ('train.seed', 1, '0'),
]


@pytest.mark.parametrize(('fact', 'there', 'here'), DIFFERENT)
def test_a_process_that_differs_is_named(start_two, fact, there, here):
    with pytest.raises(ConfigError) as refusal:
        start_two({fact: there})
    assert str(refusal.value) == (
        'the processes of a run must be started alike, these differ: '
        f'{fact}: {here} (process 0), {json.dumps(there)} (process 1)'
    )


def test_all_that_differs_is_named(start_two):
    with pytest.raises(ConfigError, match=r'; version of python: .*\(process 1\)$'):
        start_two({'code': 'sha256 4567', 'version of python': '3.12'})


CHANGES = {
    'a line of code': lambda root: (root / 'batch.py').write_text('PAD = 1\n'),
    'a file more': lambda root: (root / 'new.py').write_text(''),
    'a file less': lambda root: (root / 'batch.py').unlink(),
    'a file with another name': lambda root: (root / 'batch.py').rename(root / 'batches.py'),
}


@pytest.mark.parametrize('change', [*CHANGES.values(), None], ids=[*CHANGES, 'what is no code'])
def test_the_code_of_another_copy_is_told_apart(change, tmp_path, monkeypatch):
    """Whatever folder the copy is in."""

    def hash_of(root):
        monkeypatch.setattr(same_start, '__file__', str(root / 'partitioning' / 'same_start.py'))
        return same_start._code_hash.__wrapped__()

    for name in ('partitioning/same_start.py', 'batch.py'):
        path = tmp_path / 'one' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('PAD = 0\n')
    other = shutil.copytree(tmp_path / 'one', tmp_path / 'other')
    (other / 'notes.txt').write_text('mine')
    if change:
        change(other)
    assert (hash_of(tmp_path / 'one') == hash_of(other)) == (change is None)

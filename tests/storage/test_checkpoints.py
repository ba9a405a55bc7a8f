"""Checkpoints are bit-exact, verified, and kept as configured.

Needs 8 (fake) devices, see conftest.py.
"""

import json
import random
import socket
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.storage import manifest
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.fingerprint import fingerprint
from transformer_jax.storage.selection import select_steps


def make_state(seed: int = 0) -> dict:
    """Make a state with all dtypes of a train state and optax's nested tuples with empty nodes."""
    key = jax.random.key(seed)
    params = {
        'encoder': {
            'w': jax.random.normal(key, (8, 16)),
            'scale': jnp.full((16,), 1 / 3, jnp.bfloat16),
        },
        'decoder': {'w': jax.random.normal(jax.random.fold_in(key, 1), (16, 8))},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return {
        'step': jnp.int32(seed),
        'params': params,
        'opt_state': optimizer.init(params),
        'rng': jax.random.key_data(key),
        'skipped': jnp.int32(-7),
    }


def meta(best: int | None = None) -> dict:
    return {
        'best': None if best is None else {'step': best, 'value': 0.5},
        'data': {'epoch': 1, 'offset': 3},
    }


def save_all(checkpoints: Checkpoints, steps, best: int | None = None) -> None:
    for step in steps:
        checkpoints.save(step, make_state(step), meta(best))
    checkpoints.wait()


def abstract(state) -> dict:
    return jax.eval_shape(lambda: state)


def assert_identical(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def files_of(directory: epath.Path) -> list[epath.Path]:
    return sorted(epath.Path(path) for path in Path(directory).rglob('*') if path.is_file())


@pytest.fixture
def directory(tmp_path) -> epath.Path:
    return epath.Path(tmp_path) / 'checkpoints'


@pytest.fixture
def checkpoints(directory) -> Checkpoints:
    return Checkpoints(directory, keep=10)


def test_restores_every_bit_and_the_meta(checkpoints):
    state, note = make_state(), meta(4)
    checkpoints.save(4, state, note)
    note['data']['offset'] = 99  # The caller may change its object after save.
    step, restored, restored_meta = checkpoints.restore(abstract(state))
    assert step == 4
    assert restored_meta == meta(4) == checkpoints.meta(4)
    assert_identical(restored, state)
    assert fingerprint(restored, restored_meta['data']) == fingerprint(state, meta()['data'])


def test_a_save_is_not_disturbed_by_the_donation_of_its_buffers(checkpoints):
    @partial(jax.jit, donate_argnums=0)
    def update(x):
        return x * 2 + 1

    x = jnp.arange(1 << 20, dtype=jnp.float32)
    for step in range(4):
        checkpoints.save(step, {'params': {'x': x}}, meta())
        x = update(x)
    checkpoints.wait()
    expected = np.arange(1 << 20, dtype=np.float32)
    for step in range(4):
        _, restored, _ = checkpoints.restore(
            {'params': {'x': jax.ShapeDtypeStruct(x.shape, x.dtype)}}, step
        )
        np.testing.assert_array_equal(restored['params']['x'], expected)
        expected = expected * 2 + 1


@pytest.mark.parametrize('seed', range(20))
def test_no_damage_is_restored_silently(damageable, seed, tmp_path, caplog):
    """Flip a bit of a random file or truncate it, the manifest and meta.json included."""
    chance = random.Random(seed)
    directory = epath.Path(tmp_path) / 'copy'
    for source in files_of(damageable):
        target = directory / source.relative_to(damageable)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    victim = chance.choice(files_of(directory / '2'))
    content = bytearray(victim.read_bytes())
    if seed % 2:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(len(content)) :]
    victim.write_bytes(bytes(content))

    checkpoints = Checkpoints(directory, keep=5)
    with pytest.raises(WorkdirError, match=victim.name):
        checkpoints.restore(abstract(make_state()), 2)
    with pytest.raises(WorkdirError):
        checkpoints.params(abstract(make_state()['params']), (2,))
    step, state, _ = checkpoints.restore(abstract(make_state()))
    assert step == 1
    assert victim.name in caplog.text
    assert_identical(state, make_state(1))


@pytest.fixture(scope='module')
def damageable(tmp_path_factory) -> epath.Path:
    directory = epath.Path(tmp_path_factory.mktemp('damageable'))
    save_all(Checkpoints(directory, keep=5), [1, 2])
    return directory


@pytest.mark.parametrize('change', ['missing', 'extra'])
def test_missing_and_extra_files_are_damage(checkpoints, directory, change):
    save_all(checkpoints, [1])
    if change == 'missing':
        files_of(directory / '1' / 'state')[0].unlink()
    else:
        (directory / '1' / 'state' / manifest.NAME).write_text('{}')
    with pytest.raises(WorkdirError, match='is missing' if change == 'missing' else 'is not in'):
        checkpoints.restore(abstract(make_state()))


def test_after_falling_back_the_same_step_can_be_saved_again(checkpoints, directory):
    save_all(checkpoints, [1, 2, 3])
    for step in (2, 3):
        (directory / str(step) / 'meta.json').write_text('{}')
    assert checkpoints.restore(abstract(make_state()))[0] == 1
    assert checkpoints.valid_steps() == [1]
    save_all(checkpoints, [2])
    assert checkpoints.valid_steps() == [1, 2]
    assert not (directory / '3').exists()
    assert checkpoints.restore(abstract(make_state()))[0] == 2


def test_read_only_changes_nothing(checkpoints, directory):
    save_all(checkpoints, [1, 2])
    (directory / '2' / 'meta.json').write_text('{}')
    before = {path: path.read_bytes() for path in files_of(directory)}
    reader = Checkpoints(directory, keep=1, read_only=True)
    assert reader.restore(abstract(make_state()))[0] == 1
    with pytest.raises(WorkdirError, match='read-only'):
        reader.save(3, make_state(), meta())
    assert {path: path.read_bytes() for path in files_of(directory)} == before


def test_torn_steps_do_not_count_and_make_room(checkpoints, directory):
    save_all(checkpoints, [1])
    (directory / '5').mkdir()  # Orbax alone would take an empty directory for the newest step.
    (directory / '3' / 'state').mkdir(parents=True)
    (directory / '3' / 'state' / 'half').write_text('x')
    assert checkpoints.valid_steps() == [1]
    assert checkpoints.restore(abstract(make_state()))[0] == 1
    save_all(checkpoints, [3])
    assert checkpoints.valid_steps() == [1, 3]
    assert not (directory / '5').exists()


@pytest.mark.parametrize('moment', ['while Orbax writes', 'before the manifest'])
def test_a_run_killed_in_mid_save_leaves_the_previous_step(directory, moment):
    program = f"""
        import os, signal, jax.numpy as jnp
        from transformer_jax.storage import manifest
        from transformer_jax.storage.checkpoints import Checkpoints
        kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        checkpoints = Checkpoints({str(directory)!r}, keep=3)
        state = {{'params': {{str(i): jnp.full((64, 64), i, jnp.float32) for i in range(64)}}}}
        checkpoints.save(1, state, {{'best': None}})
        checkpoints.wait()
        if {moment!r} == 'before the manifest':
            manifest.write = kill
        checkpoints.save(2, state, {{'best': None}})
        kill() if {moment!r} == 'while Orbax writes' else checkpoints.wait()
    """
    killed = subprocess.run([sys.executable, '-c', textwrap.dedent(program)], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert (directory / '2').exists()
    checkpoints = Checkpoints(directory, keep=3)
    assert checkpoints.valid_steps() == [1]
    state = {'params': {str(i): jnp.full((64, 64), i, jnp.float32) for i in range(64)}}
    assert_identical(checkpoints.restore(abstract(state))[1], state)
    checkpoints.save(2, state, meta())
    checkpoints.wait()
    assert checkpoints.valid_steps() == [1, 2]


def test_a_failed_save_is_reported_and_the_next_one_can_succeed(checkpoints, monkeypatch):
    def full(directory):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(manifest, 'write', full)
        checkpoints.save(1, make_state(), meta())
        with pytest.raises(
            WorkdirError, match=r'checkpoint 1 was not saved.*No space left'
        ) as failure:
            checkpoints.wait()
    assert failure.value.exit_code == 3
    assert checkpoints.valid_steps() == []
    save_all(checkpoints, [1])
    assert checkpoints.valid_steps() == [1]


def test_a_step_is_saved_once(checkpoints):
    save_all(checkpoints, [1])
    with pytest.raises(WorkdirError, match='exists already'):
        checkpoints.save(1, make_state(), meta())


def test_an_unwritable_directory_is_reported(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(WorkdirError, match='cannot write'):
        Checkpoints(tmp_path / 'file' / 'checkpoints', keep=1).save(1, make_state(), meta())


@pytest.mark.parametrize(
    ('keep', 'best', 'kept'), [(1, None, [6]), (2, 1, [1, 5, 6]), (3, 5, [4, 5, 6])]
)
def test_retention_keeps_the_last_and_the_best(directory, keep, best, kept):
    checkpoints = Checkpoints(directory, keep=keep)
    save_all(checkpoints, range(1, 7), best=best)
    assert checkpoints.valid_steps() == kept
    assert sorted(path.name for path in directory.iterdir()) == [str(step) for step in kept]
    assert checkpoints.best_step() == best


def test_keep_must_be_positive(directory):
    with pytest.raises(ConfigError, match=r'checkpoint.keep=0'):
        Checkpoints(directory, keep=0)


def change(leaf, **to):
    return jax.ShapeDtypeStruct(to.get('shape', leaf.shape), to.get('dtype', leaf.dtype))


@pytest.mark.parametrize('to', [{'dtype': jnp.bfloat16}, {'shape': (16, 8)}, None])
def test_another_shape_dtype_or_tree_is_refused_by_name(checkpoints, to):
    save_all(checkpoints, [1])
    wanted = abstract(make_state())
    if to is None:
        wanted['params']['encoder']['bias'] = wanted['params']['encoder'].pop('w')
    else:
        wanted['params']['encoder']['w'] = change(wanted['params']['encoder']['w'], **to)
    name = 'params/encoder/' + ('bias' if to is None else 'w')
    with pytest.raises(ConfigError, match=name):
        checkpoints.restore(wanted)
    with pytest.raises(ConfigError, match=name):
        checkpoints.params(wanted['params'], (1,))


def test_average_is_the_mean_in_float64(checkpoints):
    save_all(checkpoints, [1, 2, 3, 4])
    wanted = abstract(make_state())['params']
    stacked = [np.float64(make_state(step)['params']['encoder']['w']) for step in (2, 3, 4)]
    averaged = checkpoints.params(wanted, select_steps(checkpoints, 'avg:3'))
    np.testing.assert_array_equal(averaged['encoder']['w'], np.float32(sum(stacked[::-1]) / 3))
    assert averaged['encoder']['scale'].dtype == jnp.bfloat16
    assert_identical(checkpoints.params(wanted, (3,)), make_state(3)['params'])
    with pytest.raises(ConfigError, match='5 intact checkpoints are needed and 4 exist'):
        select_steps(checkpoints, 'avg:5')


def test_select(checkpoints, directory, caplog):
    with pytest.raises(ConfigError, match='no checkpoint yet'):
        select_steps(checkpoints, 'last')
    save_all(checkpoints, [1, 2, 3, 10], best=2)
    assert [select_steps(checkpoints, choice) for choice in ('best', 'last', 'avg:3', '3')] == [
        (2,), (10,), (10, 3, 2), (3,),
    ]  # fmt: skip
    for choice in ('', 'newest', 'avg', 'avg:', 'avg:0', 'avg:x', '-1', 'best:2'):
        with pytest.raises(ConfigError, match='expected best, last, avg:N'):
            select_steps(checkpoints, choice)
    with pytest.raises(ConfigError, match=r'there is no step 4; steps in .*: 1, 2, 3, 10'):
        select_steps(checkpoints, '4')
    (directory / '10' / 'meta.json').write_text('{"meta": {"best": {"step": 1}}}')
    assert select_steps(checkpoints, 'last') == (3,)
    assert 'meta.json' in caplog.text
    assert select_steps(checkpoints, 'best') == (2,)
    with pytest.raises(WorkdirError, match=r'meta.json'):
        checkpoints.params(abstract(make_state())['params'], (10,))


def test_written_on_8_devices_and_continued_on_1_and_back(checkpoints):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    state = make_state()
    rows, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())
    sharded = jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 2 else whole), state)
    assert len(sharded['params']['encoder']['w'].sharding.device_set) == 8
    checkpoints.save(1, sharded, meta())
    _, single, _ = checkpoints.restore(abstract(state))
    assert_identical(single, state)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(single))

    checkpoints.save(2, single, meta())
    targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), sharded
    )
    _, again, _ = checkpoints.restore(targets)
    assert_identical(again, state)
    assert jax.tree.map(lambda x: x.sharding, again) == jax.tree.map(lambda x: x.sharding, sharded)
    averaged = checkpoints.params(targets['params'], (1, 2))
    assert averaged['encoder']['w'].sharding == rows
    assert fingerprint(sharded, 0) == fingerprint(single, 0)


def test_fingerprint_sees_everything():
    state = make_state()
    prints = [fingerprint(state, {'a': 1, 'b': 2})]
    assert fingerprint(jax.tree.map(np.asarray, state), {'b': 2, 'a': 1}) == prints[0]
    prints.append(fingerprint(state, {'a': 1, 'b': 3}))
    for index, leaf in enumerate(jax.tree.leaves(state)):
        changed, structure = jax.tree.flatten(state)
        as_bytes = bytearray(np.asarray(leaf).tobytes())
        as_bytes[-1] ^= 1
        changed[index] = np.frombuffer(bytes(as_bytes), leaf.dtype).reshape(leaf.shape)
        prints.append(fingerprint(jax.tree.unflatten(structure, changed), {'a': 1, 'b': 2}))
    encoder, decoder = state['params']['encoder'], state['params']['decoder']
    renamed = {**state, 'params': {'encoder': decoder, 'decoder': encoder}}
    prints.append(fingerprint(renamed, {'a': 1, 'b': 2}))
    assert len(set(prints)) == len(prints)


def test_two_processes_write_one_checkpoint_together(directory):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    program = f"""
        import sys, jax, numpy as np, jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec as P
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', 2)
        jax.distributed.initialize('localhost:{port}', num_processes=2, process_id=int(sys.argv[1]))
        from transformer_jax.storage.checkpoints import Checkpoints
        from transformer_jax.storage.fingerprint import fingerprint
        mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
        w = np.arange(32, dtype=np.float32).reshape(8, 4)
        def put(x, spec):
            sharding = NamedSharding(mesh, spec)
            return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])
        state = {{'params': {{'w': put(w, P('data'))}}, 'step': put(np.int32(3), P())}}
        checkpoints = Checkpoints({str(directory)!r}, keep=2)
        for step in (1, 2, 3):
            checkpoints.save(step, state, {{'best': None, 'data': step}})
        checkpoints.wait()
        (checkpoints.path(3) / 'meta.json').write_text('damaged')
        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        targets = jax.tree.map(abstract, state)
        step, restored, meta = checkpoints.restore(targets)
        print(step, meta['data'], checkpoints.valid_steps(), fingerprint(restored, 0))
    """
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', textwrap.dedent(program), str(i)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    state = {
        'params': {'w': np.arange(32, dtype=np.float32).reshape(8, 4)},
        'step': np.int32(3),
    }
    assert outputs == [f'2 2 [2] {fingerprint(state, 0)}'] * 2
    single = Checkpoints(directory, keep=2).restore(abstract(state))
    assert_identical(jax.tree.map(np.asarray, single[1]), jax.tree.map(np.asarray, state))
    assert json.loads((directory / '2' / 'meta.json').read_text())['arrays'] == {
        'params/w': 'float32[8, 4]',
        'step': 'int32[]',
    }

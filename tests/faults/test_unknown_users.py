"""A user without a name or a home, as containers have: nothing needs either."""

import os
import subprocess
import sys
import textwrap

import pytest

from transformer_jax.data.files import cache_dir
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.files import absolute_path, expand_home, user_cache

UNKNOWN = 54_321


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    monkeypatch.delenv('HOME', raising=False)
    monkeypatch.setattr(os, 'getuid', lambda: UNKNOWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('path', ['~', '~/runs', '~/a/../b', '~nobody-of-this-name/x'])
def test_a_home_that_does_not_exist_is_named(path, no_home):
    for use in (absolute_path, expand_home, lambda path: cache_dir(DataConfig(cache_dir=path))):
        with pytest.raises(ConfigError, match='has no home directory here: set HOME'):
            use(path)
    assert list(no_home.iterdir()) == []


@pytest.mark.parametrize('path', ['runs', './~', 'a/~', '/tmp/~x', 'gs://bucket/~'])
def test_other_paths_need_no_home(path, no_home):
    assert str(absolute_path(path)).endswith(path.removeprefix('./'))


def test_the_cache_of_a_user_without_a_home_is_his_own(no_home):
    assert user_cache().name == f'transformer_jax-{UNKNOWN}'
    assert cache_dir(DataConfig()) == user_cache()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')
def test_a_user_without_a_name_saves_and_reads_checkpoints(tmp_path):
    program = f"""
        import os, sys, jax, jax.numpy as jnp
        from transformer_jax.storage import manifest
        from transformer_jax.storage.checkpoints import Checkpoints
        from transformer_jax.storage.workdir import Workdir
        os.setuid({UNKNOWN})
        os.environ.pop('HOME', None)
        folder = sys.argv[1]
        with Workdir(folder).open_for_training({{'train': {{'steps': 1}}}}):
            checkpoints = Checkpoints(folder + '/checkpoints', keep=1)
            state = {{'params': {{'x': jnp.arange(4.0)}}}}
            for step in (1, 2):
                checkpoints.save(step, state, {{'best': None}})
            checkpoints.wait()
        assert checkpoints.valid_steps() == [2]
        assert checkpoints.restore(jax.eval_shape(lambda: state))[0] == 2
    """
    workdir = tmp_path / 'run'
    workdir.mkdir()
    os.chown(workdir, UNKNOWN, UNKNOWN)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == 'root' and folder.is_relative_to(tmp_path.parents[2]):
            folder.chmod(0o755)
    ended = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(program), str(workdir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

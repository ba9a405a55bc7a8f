"""A user without a name or a home, as containers have: nothing needs either."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from helpers.support import events, flags

from transformer_jax.data.files import cache_dir
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.paths import absolute_path, expand_home, user_cache

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


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='only root can become another user')


@pytest.fixture
def open_folder():
    """A folder that every user may enter; pytest lets its owner alone into its own."""
    root = Path(tempfile.mkdtemp(prefix='transformer_jax-faults-'))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def run_as_unknown(program, workdir):
    """Run a program, which becomes the unknown user by `setuid`, on a workdir that is his own."""
    for path in (workdir, *workdir.rglob('*')):
        os.chown(path, UNKNOWN, UNKNOWN)
    begin = f"""
        import os, sys
        def setuid():
            os.setuid({UNKNOWN})
            os.environ.pop('HOME', None)
    """
    code = textwrap.dedent(begin) + textwrap.dedent(program)
    ended = subprocess.run(
        [sys.executable, '-c', code, str(workdir)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@needs_root
def test_a_user_without_a_name_saves_and_reads_checkpoints(open_folder):
    program = """
        import jax, jax.numpy as jnp
        from transformer_jax.storage.checkpoints import Checkpoints
        from transformer_jax.storage.workdir import Workdir
        setuid()
        folder = sys.argv[1]
        with Workdir(folder).open_for_training({'train': {'steps': 1}}):
            checkpoints = Checkpoints(folder + '/checkpoints', keep=1)
            state = {'params': {'x': jnp.arange(4.0)}}
            for step in (1, 2):
                checkpoints.save(step, state, {'best': None})
            checkpoints.wait()
        assert checkpoints.valid_steps() == [2]
        assert checkpoints.restore(jax.eval_shape(lambda: state))[0] == 2
        open(folder + '/metrics.jsonl', 'w').write('{}')
        with Workdir(folder).open_for_training({'train': {'steps': 1}}):
            pass
    """
    workdir = open_folder / 'run'
    workdir.mkdir()
    run_as_unknown(program, workdir)


RUN = {'train__steps': 2, 'checkpoint__every': 1, 'optim__schedule': 'constant'}


@needs_root
@pytest.mark.slow
def test_a_user_without_a_name_resumes_and_evaluates(whole, open_folder):
    """A run of two steps, which its owner trains for one step more."""
    workdir = shutil.copytree(whole, open_folder / 'run')
    program = f"""
        from transformer_jax.cli import main
        import transformer_jax.training.train, transformer_jax.inference.trained_run
        setuid()
        workdir = '--workdir=' + sys.argv[1]
        keys = {flags(**RUN | {'train__steps': 3})}
        assert main(['train', workdir, *keys]) == 0
        assert main(['evaluate', workdir, '--json']) == 0
        assert main(['evaluate', workdir, '--lengths=24']) == 0
        assert main(['inspect', workdir]) == 0
    """
    assert 'resumed after step 2' in run_as_unknown(program, workdir)
    assert [event['step'] for event in events(workdir, 'train')] == [1, 2, 3]

"""Groups of seeds that older versions trained: they resume, and are then described as today's.

That they are evaluated as before is tested with the other old workdirs, in tests/config.
"""

import json
import shutil
from pathlib import Path

import pytest
from helpers.old_groups import describe_as_before, old_files
from helpers.support import experiment, fingerprint, losses, quiet, stop_at

from transformer_jax.config import from_dict
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train import train

OLD = Path(__file__).parents[1] / 'config' / 'workdirs' / 'v1' / 'seed_group'
EXPECTED = json.loads((OLD / 'expected.json').read_text())


@pytest.fixture
def old(tmp_path):
    """A copy of the workdir of seeds 3 and 4, which older code trained to the end."""
    return shutil.copytree(OLD / 'workdir', tmp_path / 'workdir')


def test_an_old_group_that_is_done_resumes_and_is_rewritten(old):
    before = (old / '3' / 'metrics.jsonl').read_text()
    train(from_dict(Workdir(old).read_config()), old, quiet)
    assert old_files(old) == []
    assert json.loads((old / 'seed_groups.json').read_text())['groups'] == {
        '.': {'members': ['3', '4'], 'released': []}
    }
    assert (old / '3' / 'metrics.jsonl').read_text() == before
    for seed in ('3', '4'):
        assert fingerprint(old / seed) == EXPECTED[f'workdir/{seed}']['inspect'][-1]
    [expected] = EXPECTED['workdir/4']['evaluate']
    found = TrainedRun(old / '4', 'best', quiet, {}).evaluate('test').scores
    assert found['loss'] == pytest.approx(expected['loss'], rel=1e-5)


def test_an_old_group_is_refused_where_todays_would_be(old):
    with pytest.raises(ConfigError, match=r'holds a group of seeds: name one of them, .*/3, .*/4'):
        TrainedRun(old, 'last', quiet, {})
    alone = from_dict(Workdir(old / '3').read_config())
    with pytest.raises(WorkdirError, match=r'holds a run of a group.*resume the whole group there'):
        train(alone, old / '3', quiet)
    assert len(old_files(old)) == 3  # Nothing was rewritten.


@pytest.mark.slow
def test_an_old_group_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    config = experiment(train__num_seeds=2)
    train(config, tmp_path / 'whole', quiet)
    stopped = tmp_path / 'stopped'
    stop_at(5, config, stopped)
    describe_as_before(stopped)
    train(config, stopped, quiet)
    assert old_files(stopped) == []
    for seed in ('0', '1'):
        assert losses(stopped / seed) == losses(tmp_path / 'whole' / seed)
        assert fingerprint(stopped / seed) == fingerprint(tmp_path / 'whole' / seed)

"""A run whose `train.steps` grew has the records of one that was as long from the start.

At its old last step it was evaluated, logged and saved, which may have been off the schedules.
"""

import dataclasses

import pytest
from helpers.support import events, experiment, quiet

from transformer_jax.storage.checkpoint_folders import CheckpointFolders
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.seed_groups import newest_record
from transformer_jax.training.train import train

RUN = {
    'train__log_every': 4,
    'evaluate__every': 4,
    'checkpoint__every': 4,
    'checkpoint__keep': 1,
    'optim__schedule': 'constant',
}
# Of what a line of the log says, parts of the names that vary from one machine to the next.
TIMED = ('second', 'wait', 'mfu', 'goodput', 'memory')
STILL = RUN | {'optim__learning_rate': 0.0, 'evaluate__patience': 2}  # Nothing gets better.

# the changes of the configuration, and the last steps of its starts
CASES = {
    'off all schedules': (RUN, (6, 10)),
    'often': (RUN, (3, 6, 10)),
    'on all schedules': (RUN, (4, 8, 10)),
    'patience': (STILL, (6, 9, 16)),
    'stopped early by the last evaluation': (STILL | {'evaluate__patience': 1}, (6, 16)),
    'seeds side by side': (RUN | {'train__num_seeds': 2}, (6, 10)),
}
OFTEN = {'often', 'patience'}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'ends'),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.rare] * (name not in OFTEN))
        for name, case in CASES.items()
    ],
)
def test_a_run_that_grew_is_one_that_was_as_long(tmp_path, changes, ends):
    whole, grown = tmp_path / 'whole', tmp_path / 'grown'
    train(experiment(train__steps=ends[-1], **changes), whole, quiet)
    for steps in ends:
        train(experiment(train__steps=steps, **changes), grown, quiet)
    seeds = ('0', '1') if 'train__num_seeds' in changes else ('.',)
    for seed in seeds:
        assert recorded(grown / seed) == recorded(whole / seed)


def recorded(path) -> tuple:
    """Return what is known of a run, but for times and the steps that are kept."""
    config = experiment(**RUN)
    step, record = newest_record(Workdir(path), config.evaluate)
    lines = [
        {name: value for name, value in event.items() if not any(word in name for word in TIMED)}
        for event in events(path)
    ]
    return step, dataclasses.replace(record, saves=[]), lines


@pytest.mark.slow
def test_the_best_of_a_longer_run_is_kept(tmp_path):
    """At the last step, off the schedule, the run got better: a longer one does not know that."""
    train(experiment(train__steps=6, **RUN), tmp_path, quiet)
    folders = CheckpointFolders(tmp_path / 'checkpoints', keep=1)
    assert folders.best_step() == 6
    assert folders.valid_steps() == [4, 6]

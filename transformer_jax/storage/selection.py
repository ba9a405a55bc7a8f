"""Which checkpoints `--checkpoint=best|last|avg:N|STEP` selects."""

import itertools
import re

from transformer_jax.errors import ConfigError
from transformer_jax.storage.checkpoint_folders import CheckpointFolders, list_steps

_CHOICE = re.compile('(?P<best>best)|(?P<last>last)|avg:(?P<n>[1-9][0-9]*)|(?P<step>[0-9]+)')


def select_steps(checkpoints: CheckpointFolders, choice: str) -> tuple[int, ...]:
    """Return the steps that a choice of checkpoints means, newest first.

    `Checkpoints.params` returns the mean of their parameters. 'last' and 'avg:N' skip damaged
    steps, with a warning that names the damaged file.

    Args:
        checkpoints: those of a run.
        choice: 'best', 'last', 'avg:N' (the newest N) or a step.

    Raises:
        ConfigError: the choice is none of these, or there is no such checkpoint; the message lists
            the steps that exist.
    """
    steps = checkpoints.valid_steps()
    match = _CHOICE.fullmatch(choice)

    def refusal(reason: str) -> ConfigError:
        existing = f'steps in {checkpoints.directory}: {list_steps(steps)}'
        return ConfigError(f'checkpoint={choice}: {reason}; {existing}')

    if match is None:
        raise refusal('expected best, last, avg:N with N at least 1, or a step')
    if not steps:
        raise refusal('there is no checkpoint yet')
    if match['best'] or match['step']:
        step = checkpoints.best_step() if match['best'] else int(match['step'])
        if step is None:
            raise refusal('no step is recorded as best')
        if step not in steps:
            raise refusal(f'there is no step {step}')
        return (step,)
    n = int(match['n'] or 1)
    intact = tuple(itertools.islice(checkpoints.intact_steps(), n))
    if len(intact) < n:
        raise refusal(f'{n} intact checkpoints are needed and {len(intact)} exist')
    return intact

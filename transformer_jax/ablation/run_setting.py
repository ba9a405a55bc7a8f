"""The training and scoring of trials that one process works on."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax

from transformer_jax.ablation import score, train_seeds
from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.ablation.metric import Metric
from transformer_jax.ablation.train_seeds import Failure
from transformer_jax.ablation.trial import Trial
from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import make_directory
from transformer_jax.storage.locks import lock
from transformer_jax.storage.processes import write_once


class Work(Protocol):
    """What trials are scored by, and which of them are done."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics by which trials are scored."""
        ...

    def lacks(self, trial: Trial) -> str:
        """Say why a trial is not done, as process 0 sees it; '' where it is."""
        ...


def run_setting(
    work: Work, members: Sequence[Trial], most: int, live_table: LiveTable
) -> Iterator[train_seeds.Ended]:
    """Train and score trials of one setting, or its tries, that no other process works on.

    Yields each of `members` with its failure or None, and so every other trial of their seed
    groups.
    """
    with contextlib.ExitStack() as claims:
        claimed = []
        for trial in members:
            try:
                _claim(trial, claims)
            except WorkdirError as error:
                yield trial, Failure.of(error)
                continue
            if work.lacks(trial):
                claimed.append(trial)
            else:  # Another process has done it in the meantime.
                yield trial, None
        for trial, trained in train_seeds.train_seeds(claimed, most, live_table.set_remark):
            # One of `members` that is not claimed was yielded above; another trial of the group is
            # scored if no other process works on it.
            if trial not in claimed and (
                trial in members or not _claim_lacking(work, trial, claims)
            ):
                continue
            failure = trained or _score(work, trial, live_table)
            if failure and not failure.busy and jax.process_index() == 0:
                failure.write(trial)
            yield trial, failure


def _claim(trial: Trial, claims: contextlib.ExitStack) -> None:
    """Lock the workdir of a trial until `claims` is closed; raise Busy if it is locked already."""

    def take() -> None:
        make_directory(trial.workdir)
        claims.enter_context(lock(trial.workdir / 'ablate.lock'))

    write_once(take)


def _claim_lacking(work: Work, trial: Trial, claims: contextlib.ExitStack) -> bool:
    """Claim a trial that was not asked for; False if another process has it, or it has a result."""
    with contextlib.suppress(WorkdirError):
        _claim(trial, claims)
        return bool(work.lacks(trial))
    return False


def _score(work: Work, trial: Trial, live_table: LiveTable) -> Failure | None:
    live_table.set_state(trial, 'scoring')
    try:
        score.score(trial, work.metrics, lambda line: live_table.set_remark([trial], line))
    except Exception as error:
        return Failure.of_trial(error)
    why = work.lacks(trial)
    return Failure.of(WorkdirError(why)) if why else None


def state(failure: Failure | None) -> str:
    """Return the state of a trial that has ended, see LiveTable."""
    if failure is None:
        return 'done'
    return 'running elsewhere' if failure.busy else 'failed'

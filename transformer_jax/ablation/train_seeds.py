"""The training of one setting's seeds, side by side where they can share a program."""

import contextlib
import dataclasses
import functools
import json
import traceback
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.plan import Trial
from transformer_jax.ablation.results import FAILURE
from transformer_jax.errors import Busy, ConfigError, Stopped, UserError, WorkdirError
from transformer_jax.host_memory import exhausted
from transformer_jax.storage.files import absolute_path, write_text
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups as replicas
from transformer_jax.training.seed_groups import Group
from transformer_jax.training.train import train, train_group
from transformer_jax.training.training_run import Record


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a run has no result. The error itself would keep the frames that it came through, and
    their arrays, alive.
    """

    message: str  # for a person: of an error that is no user's, its kind too
    exit_code: int = 1
    busy: bool = False  # another process works on it
    traceback: str = ''  # of an error that is no user's

    @classmethod
    def of(cls, error: Exception, remedy: str = '') -> 'Failure':
        """That of an error; `remedy`: what to try if it is no user's."""
        if isinstance(error, UserError):
            return cls(str(error), error.exit_code, isinstance(error, Busy))
        told = exhausted(error)
        message = '; '.join(filter(None, (told or f'{type(error).__name__}: {error}', remedy)))
        return cls(
            message,
            ConfigError.exit_code if told else 1,
            traceback=''.join(traceback.format_exception(error)),
        )

    def write(self, run: Trial) -> None:
        """Writes the run's failure.json, where that can be written."""
        content = {'error': self.message} | (
            {'traceback': self.traceback} if self.traceback else {}
        )
        with contextlib.suppress(OSError):  # The failure is reported all the same.
            run.workdir.mkdir(parents=True, exist_ok=True)
            write_text(run.workdir / FAILURE, json.dumps(content, indent=1) + '\n')


Ended = tuple[Trial, Failure | None]


def train_seeds(
    runs: Sequence[Trial], most: int, log: Callable[[Sequence[Trial], str], None]
) -> Iterator[Ended]:
    """Trains the runs of one row; yields each at its end, once, with the failure that ended it.

    Runs whose batches have one shape are trained side by side, see `replicas`. What has a
    checkpoint goes on as it was begun: a group with all of its runs, which are all yielded, also
    those that were not asked for; a run alone, alone.

    Args:
        runs: of the row. One that has ended is not opened for training.
        most: how many may share a program; 0: all.
        log: receives remarks, and of which runs they are.

    Raises:
        Stopped: after SIGINT or SIGTERM, the state of what was being trained is saved.
    """
    jobs, fresh, told = {}, [], set()
    for run in runs:
        try:
            record = _ended(run)
            begun = None if record else _begun(run)
        except Exception as error:  # The others go on, whatever became of this one.
            told.add(run)
            yield run, Failure.of(error)
            continue
        if record:
            told.add(run)
            yield run, _failure(record)
        elif begun:
            members, group = begun
            jobs[members] = group
        else:
            fresh.append(run)
    together = (most or len(fresh)) if fresh and replicas.can_share(fresh[0].config) else 1
    for first in range(0, len(fresh), together):
        members = tuple(fresh[first : first + together])
        jobs[members] = _new_group(members) if len(members) > 1 else None
    for members, group in jobs.items():
        for run, failure in _train(members, group, functools.partial(log, members)):
            if run not in told:
                told.add(run)
                yield run, failure


def _begun(run: Trial) -> tuple[tuple[Trial, ...], Group | None] | None:
    """The runs that a run goes on with, and their group (None: it goes on alone); None of one that
    is not begun.
    """
    group = replicas.group_of(Workdir(run.workdir))
    if group and not replicas.dissolved(group):
        members = _members(run, group)
        # Of a group that is done a run lacks its replica.json where its folder was deleted, to have
        # it done again.
        waiting = any(
            Workdir(each.workdir).replica is not None and not _ended(each) for each in members
        )
        return (members, group) if waiting else ((run,), None)
    workdir = Workdir(run.workdir)
    return (
        ((run,), None)
        if workdir.checkpoints_path.exists() or workdir.metrics_path.exists()
        else None
    )


def _members(run: Trial, group: Group) -> tuple[Trial, ...]:
    """The runs of the group of one of them."""
    names = [epath.Path(folder).name for folder in group.folders]
    members = tuple(run.beside(int(name)) for name in names if name.isdecimal())
    if tuple(absolute_path(each.workdir) for each in members) != group.members:
        raise WorkdirError(
            f'{group.path / replicas.GROUP} lists {", ".join(group.folders)}, which are not all seeds '
            f'of {run.setting.folder}: restore it'
        )
    return members


def _new_group(members: Sequence[Trial]) -> Group:
    seeds = [run.seed for run in members]
    return Group(
        members[0].workdir.parent / replicas.group_name(seeds),
        tuple(f'../{seed}' for seed in seeds),
    )


def _ended(run: Trial) -> Record | None:
    """What is remembered of a run that needs no more training; None of others, and of another
    configuration's.
    """
    workdir = Workdir(run.workdir)
    step, record = replicas.standing(workdir)
    if not step or (step < run.config.train.steps and record.live):
        return None
    there, here = map(config_lib.flatten, (workdir.read_config(), run.config))
    return None if results.differences(there, here) else record


def _train(
    members: Sequence[Trial], group: Group | None, log: Callable[[str], None]
) -> list[Ended]:
    """Trains the runs of a group, or one alone."""
    try:
        if group is None:
            train(members[0].config, members[0].workdir, log)
            return [(members[0], None)]
        records = train_group([run.config for run in members], group.path, log, group.folders)
    except Stopped:
        raise
    except Exception as error:  # The others go on, whatever became of these.
        failure = Failure.of(error, _remedy(group) if group else '')
        return [(run, failure) for run in members]
    return [(run, _failure(record)) for run, record in zip(members, records, strict=True)]


def _remedy(group: Group) -> str:
    fewer = '--seeds_per_program=N trains fewer seeds in one program'
    return f'{fewer}, once {group.path} and its runs are deleted' if group.begun else fewer


def _failure(record: Record) -> Failure | None:
    return Failure.of(record.error) if record.failed else None

"""The training of one setting's seeds, or tries, in one program where they can share it."""

import contextlib
import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.results import FAILURE
from transformer_jax.ablation.trial import Trial
from transformer_jax.errors import ALIKE, Busy, ConfigError, Stopped, UserError, WorkdirError
from transformer_jax.host_memory import exhausted
from transformer_jax.storage import seed_group_file
from transformer_jax.storage.files import exists, make_directory, write_text
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.seed_group import SeedGroup, holds_run
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import seed_groups
from transformer_jax.training.train import train, train_group
from transformer_jax.training.training_run import Record


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a trial has no result.

    Not the error itself, which would keep the frames that it passed, and their arrays, alive.

    Attributes:
        message: for a person; of an error that no user can fix, it begins with the error's class.
        exit_code: of the command, if this is the only failure.
        busy: another process works on the trial.
        traceback: of an error that no user can fix, else ''.
    """

    message: str
    exit_code: int = 1
    busy: bool = False
    traceback: str = ''

    @classmethod
    def of(cls, error: Exception, remedy: str = '') -> 'Failure':
        """Describe an error; `remedy` says what to try where memory was exhausted."""
        if isinstance(error, UserError):
            return cls(str(error), error.exit_code, isinstance(error, Busy))
        memory = exhausted(error)
        text = memory or f'{type(error).__name__}: {error}'
        return cls(
            f'{text}; {remedy}' if memory and remedy else text,
            ConfigError.exit_code if memory else 1,
            traceback=''.join(traceback.format_exception(error)),
        )

    @classmethod
    def of_trial(cls, error: Exception, remedy: str = '') -> 'Failure':
        """Describe an error that ends one trial; the others continue.

        Raises:
            Exception: `error` itself, where it ends all of them: after a signal, and in several
                processes also whatever may have come to one of them alone.
        """
        if isinstance(error, Stopped) or (jax.process_count() > 1 and not isinstance(error, ALIKE)):
            raise error
        return cls.of(error, remedy)

    def write(self, trial: Trial) -> None:
        """Write the trial's failure.json, where that can be written."""
        content = {'error': self.message}
        if self.traceback:
            content['traceback'] = self.traceback
        with contextlib.suppress(WorkdirError):  # The failure is reported all the same.
            make_directory(trial.workdir)
            write_text(trial.workdir / FAILURE, to_json(content, indent=1) + '\n')


Ended = tuple[Trial, Failure | None]


def train_seeds(
    trials: Sequence[Trial], most: int, log: Callable[[Sequence[Trial], str], None]
) -> Iterator[Ended]:
    """Train the trials of one setting; yield each at its end, once, with its failure or None.

    Trials whose batches have one shape are trained in one program, see `seed_groups`. What has a
    checkpoint is resumed as it was begun: a trial that was trained alone, alone; a group with all
    of its members, which are all yielded, also those that were not asked for. A group without a
    checkpoint is dissolved.

    Args:
        trials: of one setting, or tries of one that `same_programs` puts together. One that has
            ended is not opened for training.
        most: how many may share a program; 0: all.
        log: receives one-line messages, and the trials that they are about.

    Raises:
        Stopped: after SIGINT or SIGTERM, with the state of what was being trained saved.
    """
    jobs: dict[tuple[Trial, ...], SeedGroup | None] = {}
    fresh, yielded = [], set()
    for trial in trials:
        try:
            write_once(functools.partial(_settle_groups, trial))
            record = _final_record(trial)
            job = None if record else _begun_job(trial)
        except Exception as error:  # The others continue, whatever this one raised.
            yielded.add(trial)
            yield trial, Failure.of_trial(error)
            continue
        if record:
            yielded.add(trial)
            yield trial, _failure(record)
        elif job:
            members, group = job
            jobs[members] = group
        else:
            fresh.append(trial)
    count = (most or len(fresh)) if fresh and seed_groups.can_share(fresh[0].config) else 1
    for first in range(0, len(fresh), count):
        members = tuple(fresh[first : first + count])
        jobs[members] = _new_group(members) if len(members) > 1 else None
    for members, group in jobs.items():
        for trial, failure in _train(members, group, functools.partial(log, members)):
            if trial not in yielded:
                yielded.add(trial)
                yield trial, failure


def _settle_groups(trial: Trial) -> None:
    """Change the files of seed groups, where a trial needs it; after this they are only read."""
    seed_group_file.rewrite_old_groups(trial.workdir.parent)
    if not _final_record(trial):
        _begun_group(trial)


def _begun_job(trial: Trial) -> tuple[tuple[Trial, ...], SeedGroup | None] | None:
    """Find the trials that an unfinished trial is resumed with, and their group.

    Returns:
        (trials, group); the group is None for a trial that is trained alone. None for a trial that
        was never begun, or only in a group that never reached a checkpoint: that is dissolved.

    Raises:
        Busy: a process trains such a group.
        WorkdirError: the file of groups is damaged, or the group of the trial was deleted.
    """
    group = _begun_group(trial)
    if group is None:
        workdir = Workdir(trial.workdir)
        own = exists(workdir.checkpoints_path) or exists(workdir.metrics_path)
        # A released trial would not be entered into a group of the same name: it stays alone.
        alone = own or seed_group_file.was_released(workdir.path)
        return ((trial,), None) if alone else None
    if exists(group.path):
        members = _members(trial, group)
        if any(holds_run(each.workdir) and not _final_record(each) for each in members):
            return members, group
    # The group is done, or deleted. The trial has no result since its folder was deleted.
    return (trial,), None


def _begun_group(trial: Trial) -> SeedGroup | None:
    """Return the group whose checkpoints a trial shares; dissolve it where it has none."""
    group = Workdir(trial.workdir).seed_group
    if group is None or group.has_checkpoint():
        return group
    # The other members of a deleted group are kept until they are deleted too.
    if not exists(group.path) and any(map(holds_run, group.member_paths)):
        return group
    seed_groups.dissolve_group(group)
    return Workdir(trial.workdir).seed_group


def _members(trial: Trial, group: SeedGroup) -> tuple[Trial, ...]:
    """Return the trials of a group, but for those that it has released."""
    members = {name: trial.sibling(name) for name in group.members}
    if not all(members.values()):
        path = group.parent / seed_group_file.NAME
        raise WorkdirError(
            f'{path} lists {", ".join(group.members)}, which are not all seeds of '
            f'{trial.setting.folder}: restore it'
        )
    return tuple(member for name, member in members.items() if member and group.has_member(name))


def _new_group(trials: Sequence[Trial]) -> SeedGroup:
    names = tuple(trial.workdir.name for trial in trials)
    return SeedGroup(trials[0].workdir.parent, trials[0].group_name(trials), names)


def _final_record(trial: Trial) -> Record | None:
    """Read the record of a trial that needs no more training, with this configuration, else None.

    Raises:
        WorkdirError: its workdir is damaged.
    """
    workdir = Workdir(trial.workdir)
    if not exists(workdir.config_path):  # Deleted: the checkpoints of its group are not its own.
        return None
    step, record = seed_groups.newest_record(workdir, trial.config.evaluate)
    if not step or (step < trial.config.train.steps and record.live):
        return None
    stored, wanted = map(config_lib.flatten, (workdir.read_config(), trial.config))
    return None if results.differences(stored, wanted) else record


def _train(
    trials: Sequence[Trial], group: SeedGroup | None, log: Callable[[str], None]
) -> list[Ended]:
    """Train the trials of a group, or one trial alone."""
    try:
        if group is None:
            train(trials[0].config, trials[0].workdir, log)
            return [(trials[0], None)]
        records = train_group([trial.config for trial in trials], group, log)
    except Exception as error:  # The others continue, whatever these raised.
        failure = Failure.of_trial(error, _remedy(group) if group else '')
        return [(trial, failure) for trial in trials]
    return [(trial, _failure(record)) for trial, record in zip(trials, records, strict=True)]


def _remedy(group: SeedGroup) -> str:
    fewer = '--seeds_per_program=N trains fewer seeds in one program'
    if group.has_checkpoint():
        return f'{fewer}, once {group.path} and its runs are deleted'
    return fewer


def _failure(record: Record) -> Failure | None:
    return None if record.error is None else Failure.of(record.error)

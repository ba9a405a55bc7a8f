"""`transformer-jax ablate`: runs what is missing of an experiment, whatever became of
earlier attempts.
"""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import jax
import rich.table

from transformer_jax import config as config_lib
from transformer_jax.ablation import results, score
from transformer_jax.ablation import train_seeds as rows
from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.ablation.plan import Plan, Trial
from transformer_jax.ablation.train_seeds import Failure
from transformer_jax.display.tables import result_table
from transformer_jax.errors import Stopped, UserError, WorkdirError
from transformer_jax.profiling import measure
from transformer_jax.storage.files import wrap_os_errors
from transformer_jax.storage.locks import lock

Log = Callable[[str], None]
# Programs that compile faster are not kept for the next run. jax's own limit, a second, keeps
# little of a small model.
KEPT_FROM_S = 0.1


class Unfinished(UserError):
    """Some runs are not done: the exit code is that of all of them, or 1 where they differ or the
    program failed.
    """

    def __init__(self, failures: dict[Trial, Failure], asked: int):
        alike: dict[str, list[str]] = {}
        for trial, failure in failures.items():
            alike.setdefault(failure.message, []).append(trial.name)
        lines = [f'{", ".join(names)}: {message}' for message, names in alike.items()]
        super().__init__('\n  '.join([f'{len(failures)} of {asked} runs are not done:', *lines]))
        codes = {failure.exit_code for failure in failures.values()}
        self.exit_code = codes.pop() if len(codes) == 1 else 1


def ablate(plan: Plan, log: Log, most: int = 0) -> None:
    """Trains, scores and measures all runs of the plan that have no sound result, then writes
    results.json.

    A run that fails does not stop the others; one that another process has in hand is left to it.
    The same call goes on where an earlier one was killed or stopped; whoever goes on with a group
    of seeds scores all of them.

    Args:
        plan: what to run.
        log: receives remarks.
        most: how many seeds of a row may share a program, see `rows.train_seeds`; 0: all.

    Raises:
        ConfigError: this machine cannot have some variants; nothing has run.
        WorkdirError: the root cannot be written.
        Unfinished: some runs failed, or are in work elsewhere.
        Stopped: after SIGINT or SIGTERM.
    """
    plan.require_machine()
    plan.write()
    if jax.config.jax_persistent_cache_min_compile_time_secs == 1:  # jax's default: nobody chose
        jax.config.update('jax_persistent_cache_min_compile_time_secs', KEPT_FROM_S)
    lacking = [trial for trial in plan.trials if plan.lacks(trial)]
    live_table, failures = LiveTable(plan, set(lacking), log), {}
    for line in summary(plan, len(lacking)):
        log(line)
    try:
        with live_table.displayed(), _signals_stop():
            for _, members in itertools.groupby(lacking, key=lambda trial: trial.setting.folder):
                for trial, failure in _row(plan, list(members), most, live_table):
                    live_table.set_state(trial, _state(failure))
                    if failure:
                        live_table.set_remark([trial], failure.message)
                    if failure and trial in lacking:
                        failures[trial] = failure
                # What was compiled for one row serves no other; it would pile up, some 50 MB each.
                jax.clear_caches()
    except Stopped as stop:
        done = list(live_table.states.values()).count('done')
        raise Stopped(
            stop.exit_code - 128, f'{stop} ({done} of {len(plan.trials)} runs are done)'
        ) from None
    finally:
        results.write_results(plan.root)
    log(
        f'{len(plan.trials) - len(failures)} of {len(plan.trials)} runs done: {plan.root / results.RESULTS}'
    )
    if failures:
        raise Unfinished(failures, len(plan.trials))


def _row(
    plan: Plan, members: Sequence[Trial], most: int, live_table: LiveTable
) -> Iterator[rows.Ended]:
    """Trains and scores the seeds of a row that no other process works on; yields each with
    its failure.

    So too those that share a group with them, though they are no `members`.
    """
    with contextlib.ExitStack() as claims:
        claimed = []
        for trial in members:
            try:
                _claim(trial, claims)
            except WorkdirError as error:
                yield trial, Failure.of(error)
                continue
            if plan.lacks(trial):
                claimed.append(trial)
            else:  # Another process has done it meanwhile.
                yield trial, None
        for trial, trained in rows.train_seeds(claimed, most, live_table.set_remark):
            # One of `members` that is not claimed was yielded above; another of the group is scored
            # if it is free.
            if trial not in claimed and (trial in members or not _free(plan, trial, claims)):
                continue
            failure = trained or _scored(plan, trial, live_table)
            if failure and not failure.busy:
                failure.write(trial)
            yield trial, failure


def _claim(trial: Trial, claims: contextlib.ExitStack) -> None:
    with wrap_os_errors(trial.workdir):
        trial.workdir.mkdir(parents=True, exist_ok=True)
        claims.enter_context(lock(trial.workdir / 'ablate.lock'))


def _free(plan: Plan, trial: Trial, claims: contextlib.ExitStack) -> bool:
    """Claims a run that was not asked for, where it lacks a result and no other process has it."""
    with contextlib.suppress(WorkdirError):
        _claim(trial, claims)
        return bool(plan.lacks(trial))
    return False


def _scored(plan: Plan, trial: Trial, live_table: LiveTable) -> Failure | None:
    live_table.set_state(trial, 'scoring')
    try:
        score.score(
            trial, plan.experiment.metrics, lambda line: live_table.set_remark([trial], line)
        )
    except Stopped:
        raise
    except Exception as error:
        return Failure.of(error)
    why = plan.lacks(trial)
    return Failure.of(WorkdirError(why)) if why else None


def _state(failure: Failure | None) -> str:
    return 'done' if failure is None else 'running elsewhere' if failure.busy else 'failed'


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped at once where nothing is to be saved: training has handlers
    of its own.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, f'stopped by {signal.Signals(signum).name}; the same command goes on')

    old = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def summary(plan: Plan, lacking: int) -> list[str]:
    """What is about to run, in lines: how many runs, what shares a setting, what was solved for."""
    distinct = list(dict.fromkeys(trial.setting for trial in plan.trials))
    lines = [
        f'{plan.file}: {len(plan.trials)} runs of {len(distinct)} configs, {len(plan.trials) - lacking} done'
    ]
    lines += [
        f'{", ".join(setting.variants[1:])}: the same config as {setting.variants[0]}, run once'
        for setting in distinct
        if len(setting.variants) > 1
    ]
    for name, matched in plan.matched.items():
        if matched.chosen:
            chosen = ', '.join(f'{key}={value}' for key, value in matched.chosen.items())
            lines.append(
                f'{name}: {chosen}, {matched.value:,.0f} {plan.experiment.match} for {matched.target:,.0f} '
                f'({matched.residual:+.2%})'
            )
    return lines


def duration(seconds: float) -> str:
    """In the largest unit of which there is one: '1.5 h', '12 min', '3 s'."""
    for unit, size, places in (('h', 3600, 1), ('min', 60, 0)):
        if seconds >= size:
            return f'{seconds / size:,.{places}f} {unit}'
    return f'{seconds:.0f} s'


def dry_run(plan: Plan, log: Log) -> rich.table.Table:
    """The plan as a table, times measured from a few steps of each config; writes nothing.

    Raises:
        ConfigError: this machine cannot have some variants.
        Unfinished: some rows cannot run, after all were tried.
    """
    plan.require_machine()
    lacking, failures, lines, spent = (
        {trial for trial in plan.trials if plan.lacks(trial)},
        {},
        [],
        0.0,
    )
    for line in summary(plan, len(lacking)):
        log(line)
    for setting in dict.fromkeys(trial.setting for trial in plan.trials):
        members = [trial for trial in plan.trials if trial.setting == setting]
        todo = [trial for trial in members if trial in lacking]
        cells = (
            setting.folder,
            ', '.join(setting.variants),
            ' '.join(str(trial.seed) for trial in members),
            f'{len(todo)}',
        )
        try:
            components = config_lib.resolve(setting.config)
            size, trial = measure.model_size(components), measure.measure_step(components)
        except Exception as error:
            failures[members[0]] = Failure.of(error)
            lines.append((*cells, *'????'))
            continue
        steps = setting.config.train.steps
        left = (
            sum(steps - results.last_event(trial.workdir).get('step', 0) for trial in todo)
            * trial.step_seconds
        )
        spent += left
        lines.append(
            (
                *cells,
                f'{size.params:,}',
                f'{1e-9 * trial.step_flops:,.3f}',
                f'{1e3 * trial.step_seconds:,.1f}',
                duration(left),
            )
        )
        log(f'tried {setting.folder}')
    table = result_table(
        f'{len(lacking)} of {len(plan.trials)} runs to do, {duration(spent)} of training steps one after the other; '
        'compiling and evaluation come on top',
        (
            'folder',
            'variants',
            'seeds',
            'to do',
            'parameters',
            'GFLOP per step',
            'ms per step',
            'time',
        ),
        lines,
    )
    if failures:
        raise Unfinished(failures, len(plan.trials))
    return table

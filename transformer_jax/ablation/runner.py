"""The execution of a plan: whatever is missing is trained, scored and measured."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import jax
import rich.table

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.durations import duration
from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.run_setting import run_setting, state
from transformer_jax.ablation.settings import Setting
from transformer_jax.ablation.train_seeds import Failure
from transformer_jax.ablation.trial import Trial
from transformer_jax.ablation.tuning import lacking_tries, tune_variants, tuning_summary
from transformer_jax.display.tables import result_table
from transformer_jax.errors import Stopped, UserError
from transformer_jax.process_end import ALWAYS, STOP_SIGNALS, Interrupted
from transformer_jax.profiling import measure

Log = Callable[[str], None]
# Programs that compile faster are not kept for the next run; jax's own limit is a second.
CACHED_COMPILE_SECONDS = 0.1


class Unfinished(UserError):
    """Raised where some runs are not done.

    Attributes:
        exit_code: that of all failures; 1 where they differ, or the program itself failed.
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
    """Train, score and measure all trials that have no sound result; then write results.json.

    Before that variants are tuned, where the experiment says so, see `tuning`.
    A trial that fails does not stop the others. One that another process works on is left to it.
    The same call continues after a stop. Who continues a seed group scores all of its members.

    Args:
        plan: what to run.
        log: receives one-line messages.
        most: how many seeds of a setting may share a program, see `train_seeds`; 0: all.

    Raises:
        ConfigError: this machine cannot run some variants; nothing has run.
        WorkdirError: the root cannot be written.
        Unfinished: some trials failed, or another process works on them.
        Stopped: after SIGINT or SIGTERM.
    """
    plan.require_machine()
    plan.write()
    key = 'jax_persistent_cache_min_compile_time_secs'
    if jax.config.values[key] == 1:  # jax's default: nobody set it
        jax.config.update(key, CACHED_COMPILE_SECONDS)
    with _signals_stop():
        failures = tune_variants(plan, log, most)
    lacking = [trial for trial in plan.trials if trial not in failures and plan.lacks(trial)]
    live_table = LiveTable(plan, {*lacking, *failures}, log)
    for trial in failures:
        live_table.set_state(trial, state(failures[trial]))
    for line in summary(plan, len(lacking) + len(failures)):
        log(line)
    try:
        with live_table.displayed(), _signals_stop():
            for _, members in itertools.groupby(lacking, key=lambda trial: trial.setting.folder):
                for trial, failure in run_setting(plan, list(members), most, live_table):
                    live_table.set_state(trial, state(failure))
                    if failure:
                        live_table.set_remark([trial], failure.message)
                    if failure and trial in lacking:
                        failures[trial] = failure
                # No other setting uses these programs; they would accumulate, some 50 MB each.
                jax.clear_caches()
    except Stopped as stop:
        done = list(live_table.states.values()).count('done')
        raise Stopped(stop.signum, f'{stop} ({done} of {len(plan.trials)} runs are done)') from None
    finally:
        if jax.process_index() == 0:
            plan.finish()
    done = len(plan.trials) - len(failures)
    log(f'{done} of {len(plan.trials)} runs done: {plan.root / results.RESULTS}')
    if failures:
        raise Unfinished(failures, len(plan.trials))


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """Let the first signal raise Stopped at once, where there is nothing to save.

    Training has handlers of its own. Outside of the main thread Python gives no signals.
    """
    received = []

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) == 1:
            raise Interrupted(signum)

    main = threading.current_thread() is threading.main_thread()
    watched = [
        signum
        for signum in STOP_SIGNALS
        if main and (signum in ALWAYS or signal.getsignal(signum) != signal.SIG_IGN)
    ]
    old = {signum: signal.signal(signum, stop) for signum in watched}
    try:
        yield
    except Interrupted as stopped:
        raise Stopped(stopped.signum, f'{stopped}; the same command continues') from None
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def summary(plan: Plan, lacking: int) -> list[str]:
    """Say what is about to run: how many runs, which variants share a config, what was solved."""
    settings = list(dict.fromkeys(trial.setting for trial in plan.trials))
    done = len(plan.trials) - lacking
    configs = '1 config' if len(settings) == 1 else f'{len(settings)} configs'
    runs = '1 run' if len(plan.trials) == 1 else f'{len(plan.trials)} runs'
    lines = [f'{plan.file}: {runs} of {configs}, {done} done']
    lines += [
        f'{", ".join(setting.variants[1:])}: the same config as {setting.variants[0]}, run once'
        for setting in settings
        if len(setting.variants) > 1
    ]
    for name, matched in plan.matched.items():
        if matched.chosen:
            chosen = ', '.join(f'{key}={value}' for key, value in matched.chosen.items())
            lines.append(
                f'{name}: {chosen}, {matched.value:,.0f} {plan.experiment.match} for '
                f'{matched.target:,.0f} ({matched.residual:+.2%})'
            )
    return lines


DRY_RUN_COLUMNS = (
    'folder',
    'variants',
    'seeds',
    'to do',
    'parameters',
    'GFLOP per step',
    'ms per step',
    'time',
)


def dry_run(plan: Plan, log: Log) -> rich.table.Table:
    """Show the plan as a table, with times measured from a few steps of each config.

    Nothing is written.

    Args:
        plan: what would run.
        log: receives one-line messages.

    Raises:
        ConfigError: this machine cannot run some variants.
        Unfinished: some settings fail; all were tried.
    """
    plan.require_machine()
    lacking = {trial for trial in plan.trials if plan.lacks(trial)}
    tries, failures, rows, total = lacking_tries(plan), {}, [], 0.0
    for line in (*tuning_summary(plan), *summary(plan, len(lacking))):
        log(line)
    for setting in dict.fromkeys(trial.setting for trial in plan.trials):
        members = [trial for trial in plan.trials if trial.setting == setting]
        todo = [trial for trial in members if trial in lacking]
        tried = tries.get(setting.folder, [])
        cells = [
            setting.folder,
            ', '.join(setting.variants),
            ' '.join(str(trial.seed) for trial in members),
            f'{len(todo)} + {len(tried)} of tuning' if tried else f'{len(todo)}',
        ]
        try:
            measured, seconds = _try_setting(setting, [*todo, *tried])
        except Exception as error:
            failures[members[0]] = Failure.of(error)
            rows.append([*cells, *'????'])
            continue
        total += seconds
        rows.append([*cells, *measured, duration(seconds)])
        log(f'tried {setting.folder}')
    tuned = sum(map(len, tries.values()))
    title = (
        f'{len(lacking)} of {len(plan.trials)} runs to do, '
        f'{f"{tuned} of tuning, " if tuned else ""}{duration(total)} of training steps one after '
        'the other; compiling and evaluation come on top'
    )
    table = result_table(title, DRY_RUN_COLUMNS, rows)
    if failures:
        raise Unfinished(failures, len(plan.trials))
    return table


def _try_setting(setting: Setting, todo: Sequence[Trial]) -> tuple[list[str], float]:
    """Measure a setting by a few steps.

    Returns:
        the cells 'parameters', 'GFLOP per step' and 'ms per step', and the seconds that the missing
        steps of `todo` would take one after the other.
    """
    components = config_lib.resolve(setting.config)
    size, step = measure.model_size(components), measure.measure_step(components)
    done = [results.last_event(trial.workdir).get('step', 0) for trial in todo]
    missing = sum(trial.config.train.steps - steps for trial, steps in zip(todo, done, strict=True))
    cells = [
        f'{size.params:,}',
        f'{1e-9 * step.step_flops:,.3f}',
        f'{1e3 * step.step_seconds:,.1f}',
    ]
    return cells, missing * step.step_seconds

"""Tuning: the tries of every variant, and the choice of the best one by the validation split.

All variants have the same tries, with seeds that no table has. What is chosen is written down once,
see `choices`; the runs of the table come after it. A variant's choice depends on its own tries
alone.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from transformer_jax import config as config_lib
from transformer_jax.ablation import results
from transformer_jax.ablation.choices import TUNING, at_edges, read_choice
from transformer_jax.ablation.claims import today
from transformer_jax.ablation.experiment_files import PROJECT
from transformer_jax.ablation.field_types import is_finite
from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.run_setting import run_setting, state
from transformer_jax.ablation.settings import Setting
from transformer_jax.ablation.train_seeds import Failure
from transformer_jax.ablation.trial import Trial
from transformer_jax.ablation.tries import Try, make_tries, same_programs
from transformer_jax.ablation.tune import Tune, say_values
from transformer_jax.errors import Diverged, Stopped
from transformer_jax.partitioning.processes import from_primary
from transformer_jax.profiling import measure
from transformer_jax.storage.files import exists, write_text
from transformer_jax.storage.json_text import decode_non_finite, to_json
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.provenance import git_commit
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.training_run import REMEDY

Log = Callable[[str], None]


class Tuning:
    """The tries of the settings that a plan needs and that are not tuned yet.

    Attributes:
        tune: what is tried.
        file: of the plan, for people.
        root: of the plan.
        metrics: the one by which the best try is chosen.
        settings: those that are to be tuned -> their tries.
        trials: all tries.
    """

    def __init__(self, plan: Plan, tune: Tune):
        """Make the tries; nothing is written."""
        self.tune, self.metrics = tune, (tune.metric,)
        self.file, self.root = f'tries of {plan.file}', plan.root
        self.settings = {
            setting: make_tries(setting, tune, plan.root)
            for setting in dict.fromkeys(trial.setting for trial in plan.trials)
            if setting.folder not in plan.choices
        }
        self.trials: list[Trial] = [*itertools.chain.from_iterable(self.settings.values())]

    def lacks(self, trial: Trial) -> str:
        """Say why a try is not done, as process 0 sees it; '' where it is."""
        return from_primary(lambda: self._read_score(trial)[1])

    def choose(self, setting: Setting, most: int, live_table: LiveTable) -> Failure | str:
        """Run the tries of a setting and write down the best one.

        Returns:
            what was chosen, in a line; or why nothing can be.
        """
        tries = self.settings[setting]
        # What fails by itself, such as for want of memory, is tried twice before it counts.
        failed_before = from_primary(
            lambda: [each.name for each in tries if exists(each.workdir / results.FAILURE)]
        )
        failures = self._run(tries, most, live_table)
        undone = {
            each: failure
            for each, failure in failures.items()
            if failure.exit_code != Diverged.exit_code
            and not (failure.traceback and each.name in failed_before)
        }
        if undone:
            return _unfinished(undone, len(tries))
        scores = from_primary(lambda: [self._read_score(each)[0] for each in tries])
        seconds = from_primary(lambda: [_seconds(each) for each in tries])
        runs = [
            {'seed': each.seed, 'score': score, 'failed': why, 'wall_seconds': taken}
            for each, score, taken in zip(tries, scores, seconds, strict=True)
            for why in [_why_failed(failures.get(each), score)]
        ]
        record = self._record(setting, runs)
        if record is None:
            first = f'{tries[0].workdir.name}: {runs[0]["failed"]}'
            return Failure(f'every try failed, none can be chosen: {first}', Diverged.exit_code)
        write_once(lambda: self._write(setting, record))
        return _say_choice(setting, record)

    def _run(self, tries: Sequence[Try], most: int, live_table: LiveTable) -> dict[Try, Failure]:
        """Train and score what is not done; return the failures."""
        failures = {}
        for members in same_programs([each for each in tries if self.lacks(each)]):
            for trial, failure in run_setting(self, members, most, live_table):
                live_table.set_state(trial, state(failure))
                if failure and isinstance(trial, Try):
                    live_table.set_remark([trial], failure.message)
                    failures[trial] = failure
        # No other setting uses these programs; they would accumulate, some 50 MB each.
        jax.clear_caches()
        return failures

    def _read_score(self, trial: Trial) -> tuple[float | None, str]:
        """Return the score of a try, None if it is not finite, and why there is none."""
        flat = json.loads(to_json(config_lib.flatten(trial.setting.config)))
        try:
            result = results.read_run(trial.workdir, trial.seed, flat, {'metrics': ()})
        except results.Damaged as why:
            return None, str(why)
        label = str(self.tune.metric)
        score = decode_non_finite(result['scores'].get(label))
        if not isinstance(score, int | float):
            return None, f'its {label} is not measured'
        return (score if is_finite(score) else None), ''

    def _record(self, setting: Setting, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Return the content of tuning.json; None where every try has a run that failed."""
        tries, count = [], self.tune.seeds
        for place, values in enumerate(self.tune.combinations):
            members = runs[place * count : (place + 1) * count]
            scores = [run['score'] for run in members]
            mean = None if None in scores else sum(scores) / count
            tries.append({'values': values, 'score': mean, 'runs': members})
        scored = [each for each in tries if each['score'] is not None]
        if not scored:
            return None
        sign = 1 if self.tune.metric.lower_is_better else -1
        best = min(scored, key=lambda each: sign * each['score'])  # The first of equal ones.
        config = config_lib.flatten(setting.config)
        del config['train.seed']
        return {
            'tune': self.tune.as_json(),
            'chosen': best['values'],
            'score': best['score'],
            'tries': tries,
            'commit': git_commit(PROJECT),
            'date': today(),
            'config': config,
        }

    def _write(self, setting: Setting, record: Mapping[str, Any]) -> None:
        folder = self.root / setting.folder
        if read_choice(folder) is None:  # Another process may have been as fast.
            write_text(folder / TUNING, to_json(record, indent=1) + '\n')


def tune_variants(plan: Plan, log: Log, most: int) -> dict[Trial, Failure]:
    """Tune what a plan needs, and give its settings and trials the values that were chosen.

    Args:
        plan: what is to run; its experiment.json is written.
        log: receives one-line messages.
        most: how many tries may share a program, see `train_seeds`; 0: all.

    Returns:
        the trials whose setting could not be tuned, each with the reason.

    Raises:
        Stopped: after SIGINT or SIGTERM.
        WorkdirError: what was chosen cannot be written.
    """
    if plan.tune is None:
        return {}
    tuning = Tuning(plan, plan.tune)
    for line in tuning_summary(plan):
        log(line)
    lacking = {trial for trial in tuning.trials if tuning.lacks(trial)}
    live_table, failures = LiveTable(tuning, lacking, log), {}
    try:
        with live_table.displayed():
            for setting in tuning.settings:
                found = tuning.choose(setting, most, live_table)
                if isinstance(found, Failure):
                    failures[setting.folder] = found
                else:
                    log(found)
    except Stopped as stop:
        done = list(live_table.states.values()).count('done')
        count = f'{done} of {len(tuning.trials)} runs of tuning are done'
        raise Stopped(stop.signum, f'{stop} ({count})') from None
    plan.take_choices()
    untuned = {
        trial: failures[trial.setting.folder]
        for trial in plan.trials
        if trial.setting.folder in failures
    }
    for trial, failure in untuned.items():
        if not failure.busy and jax.process_index() == 0:
            failure.write(trial)
    return untuned


def tuning_summary(plan: Plan) -> list[str]:
    """Say how a plan tunes, and how much of it is to do; nothing where it does not."""
    if plan.tune is None:
        return []
    tune, todo = plan.tune, sum(map(len, lacking_tries(plan).values()))
    settings = len(dict.fromkeys(trial.setting for trial in plan.trials))
    count = len(tune.combinations)
    values = '; '.join(
        f'{key}: {", ".join(map(str, values))}' for key, values in tune.tried.items()
    )
    seeds = f' × {tune.seeds} seeds' if tune.seeds > 1 else ''
    return [
        f'tuning: {count} tries{seeds} of each of {settings} configs ({values}), chosen by '
        f'{tune.metric}; {todo} of {count * tune.seeds * settings} runs to do'
    ]


def lacking_tries(plan: Plan) -> dict[str, list[Trial]]:
    """Return the tries that are not done, by the folder of their setting."""
    if plan.tune is None:
        return {}
    tuning = Tuning(plan, plan.tune)
    return {
        setting.folder: [each for each in tries if tuning.lacks(each)]
        for setting, tries in tuning.settings.items()
    }


def _unfinished(failures: Mapping[Try, Failure], count: int) -> Failure:
    """Make the failure of a variant of that of tries that do not count as failed yet."""
    first, failure = next(iter(failures.items()))
    codes = {each.exit_code for each in failures.values()}
    again = '; if it fails again, it counts as the worst' if failure.traceback else ''
    return Failure(
        f'{len(failures)} of {count} runs of tuning are not done, so nothing is chosen yet: '
        f'{first.workdir.name}: {failure.message}{again}',
        codes.pop() if len(codes) == 1 else 1,
        any(each.busy for each in failures.values()),
    )


def _why_failed(failure: Failure | None, score: float | None) -> str:
    if failure:
        return failure.message.removesuffix(f'; {REMEDY}')
    return 'its score is not finite' if score is None else ''


def _seconds(trial: Trial) -> float:
    return measure.logged_seconds(Workdir(trial.workdir).metrics_path)


def _say_choice(setting: Setting, record: Mapping[str, Any]) -> str:
    label, tries = record['tune']['metric']['label'], record['tries']
    failed = sum(each['score'] is None for each in tries)
    parts = [
        f'{", ".join(setting.variants)}: {say_values(record["chosen"])} chosen of {len(tries)} '
        f'tries, {label} {record["score"]:.4g}'
    ]
    parts += [f'{failed} of the tries failed'] if failed else []
    parts += [f'⚠ {edge}' for edge in at_edges(record['tune']['values'], record['chosen'])]
    return '; '.join(parts)

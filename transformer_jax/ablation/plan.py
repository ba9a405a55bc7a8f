"""The plan of an ablation: the distinct configs of an experiment times seeds, under one root."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.ablation import results
from transformer_jax.ablation.checked_configs import check_tries, checked_configs
from transformer_jax.ablation.claims import record_claims, today
from transformer_jax.ablation.experiment import Experiment, impossible_variants
from transformer_jax.ablation.experiment_files import PROJECT
from transformer_jax.ablation.looks import look_if_due, no_looks, take_look
from transformer_jax.ablation.match_sizes import match_sizes
from transformer_jax.ablation.metric import evaluations, lengths_of
from transformer_jax.ablation.pilot import begin_pilot, go_on, plan_seeds
from transformer_jax.ablation.record import make_record, refuse_other_version
from transformer_jax.ablation.settings import Setting, settings_of, tuned_settings
from transformer_jax.ablation.trial import Trial
from transformer_jax.ablation.tune import FIRST_SEED, Tune
from transformer_jax.attention.engines import require_platform
from transformer_jax.config.values import RANGES
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.processes import from_primary
from transformer_jax.storage.files import exists, make_directory, write_text
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.provenance import git_commit


class Plan:
    """An experiment under a root: its settings, and the trials that are to be done.

    Attributes:
        experiment: what is planned.
        overrides: the keys of its base that were replaced.
        file: where the experiment came from.
        root: the folder that holds everything.
        matched: variant -> its config at the size of its reference.
        settings: the distinct configs, in the order of the variants.
        trials: those to be done, the seeds of a setting next to each other.
        metrics: of the experiment.
        record: the content of experiment.json; its configs are without what was tuned.
        tune: how variants are tuned; None where they are not.
        choices: folder -> the content of tuning.json, of settings that are tuned.
    """

    def __init__(
        self,
        experiment: Experiment,
        file: str,
        root: epath.PathLike,
        seeds: int = 0,
        overrides: Mapping[str, Any] | None = None,
        pilot: bool = False,
    ):
        """Plan an experiment; nothing is written yet.

        Args:
            experiment: what to run.
            file: where it came from, for the record.
            root: the folder that holds everything.
            seeds: how many; 0: as a pilot has planned, else as the experiment says.
            overrides: keys of the base to replace, see `Experiment.with_base`.
            pilot: whether these seeds are a pilot, see `ablation.pilot`.

        Raises:
            ConfigError: variants are impossible (all of them are listed), the root holds another
                version of the experiment, or there can be no pilot.
            WorkdirError: the root is no directory, or its experiment.json is damaged.
        """
        self.overrides = dict(overrides or {})
        self.experiment = experiment = experiment.with_base(self.overrides)
        self.file, self.root = file, absolute_path(root)
        if exists(self.root) and not self.root.is_dir():
            raise WorkdirError(f'--root={self.root} is a file: choose a directory')
        self.matched = match_sizes(
            checked_configs(experiment), experiment.compared_with, experiment.match
        )
        self.tune, self.metrics = experiment.tuning, experiment.metrics
        path = self.root / results.EXPERIMENT
        earlier = results.read_experiment(path) if exists(path) else {'variants': {}, 'seeds': []}
        self.settings = self._untuned_settings(earlier['variants'])
        stages = self._stages(earlier, seeds, pilot)
        wanted = self._wanted(stages['pilot'], seeds, pilot)
        self.record = make_record(
            experiment,
            file,
            self.overrides,
            self.settings,
            self.matched,
            seeds=sorted({*earlier['seeds'], *wanted}),
            claims=self._claims(earlier.get('claims', []), len(wanted)),
            **stages,
        )
        refuse_other_version(self.root, earlier, self.record)
        self.trials = [
            Trial(setting, seed, self.root / setting.folder / str(seed))
            for setting in self.settings
            for seed in wanted
        ]
        self.choices: dict[str, dict[str, Any]] = {}
        self.take_choices()

    def take_choices(self) -> None:
        """Give settings and trials the values that tuning has chosen for them by now.

        Raises:
            WorkdirError: a tuning.json is damaged, or of another version of the experiment.
        """
        if self.tune is None:
            return
        self.settings, self.choices = tuned_settings(self.settings, self.tune, self.root)
        tuned = {setting.folder: setting for setting in self.settings}
        self.trials = [
            dataclasses.replace(trial, setting=tuned[trial.setting.folder]) for trial in self.trials
        ]

    def narrow(self, only: Sequence[str], part: str) -> None:
        """Leave only the trials of some variants, and of these only one of several parts.

        Args:
            only: names of variants; none: all.
            part: 'i/n', the i-th of n parts; i counts from 0.

        Raises:
            ConfigError: there is no such variant or part.
        """
        for name in only:
            if name not in self.experiment.variants:
                hint = spec.nearest(name, self.experiment.variants)
                if any(',' in variant for variant in self.experiment.variants):
                    hint += """; a name with a comma is quoted twice: --only='"NAME"' """.rstrip()
                raise ConfigError(f'--only={name}: no such variant; {hint}')
        self.trials = [
            trial for trial in self.trials if not only or set(trial.setting.variants) & set(only)
        ]
        index, _, count = part.partition('/')
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(f'--part={part}: it takes i/n, a part i of n, with 0 ≤ i < n')
        # Neighbors stay together: the seeds of a setting share what is compiled, and its tuning.
        key = (lambda trial: trial.setting.folder) if self.tune else (lambda trial: trial.name)
        units = [list(members) for _, members in itertools.groupby(self.trials, key)]
        first, last = (len(units) * end // int(count) for end in (int(index), int(index) + 1))
        self.trials = [trial for members in units[first:last] for trial in members]

    def require_machine(self) -> None:
        """Raise ConfigError if this machine lacks the engine or mesh of some settings."""
        reasons = []
        for setting in self.settings:
            try:
                require_platform(setting.config.model.engine)
                mesh_sizes(setting.config.parallel.mesh, jax.device_count())
            except ConfigError as error:
                reasons.append(f'{", ".join(setting.variants)}: {error}')
        if reasons:
            raise impossible_variants(reasons)

    def write(self) -> None:
        """Write experiment.json; every process that works under the root writes the same.

        Raises:
            WorkdirError: the root cannot be written.
        """
        write_once(lambda: self._write(self.record))

    def plan_seeds(self, budget: float | None) -> dict[str, Any]:
        """Plan seeds from the pilot that has run; record the plan and return it.

        Args:
            budget: seconds that all runs may take; None: no number is chosen.

        Raises:
            ConfigError: see `pilot.plan_seeds`.
            WorkdirError: the root cannot be written.
        """

        def plan() -> dict[str, Any]:
            record = self._recorded()
            found = plan_seeds(record, results.collect(self.root)['runs'], budget)
            self._write(record | {'pilot': found})
            return found

        return from_primary(plan)

    def finish(self) -> None:
        """Record that verdicts can be seen, where they can, and write results.json; process 0."""
        record = self._recorded()
        looks = look_if_due(record, _now())
        if looks and not results.collect(self.root)['missing']:
            self._write(record | {'looks': looks})
        results.write_results(self.root)

    def _recorded(self) -> dict[str, Any]:
        """Read experiment.json: another process may have added seeds since this one began."""
        return results.read_experiment(self.root / results.EXPERIMENT)

    def _write(self, record: Mapping[str, Any]) -> None:
        make_directory(self.root)
        write_text(self.root / results.EXPERIMENT, to_json(record, indent=1) + '\n')

    def lacks(self, trial: Trial) -> str:
        """Say why a trial is not done, as process 0 sees it; '' where it is."""
        return from_primary(lambda: self._lacks(trial))

    def _lacks(self, trial: Trial) -> str:
        try:
            result = results.read_run(
                trial.workdir, trial.seed, self.flat(trial.setting), self.record
            )
        except results.Damaged as why:
            return str(why)
        for key, members in evaluations(self.experiment.metrics).items():
            if lengths_of(members) != result.get('lengths', {}).get(key, []):
                return f'{key} was measured at other lengths'
        mesh = dataclasses.asdict(trial.setting.config.parallel.mesh)
        if result.get('mesh', mesh) != mesh:
            return 'its step time was measured with another parallel.mesh'
        return ''

    def flat(self, setting: Setting) -> dict[str, Any]:
        """Return the config of a setting as results have it."""
        return json.loads(to_json(config_lib.flatten(setting.config)))

    def _untuned_settings(self, earlier: dict[str, Any]) -> tuple[Setting, ...]:
        """Return the distinct configs before they are tuned; `earlier` are the variants before."""
        configs = {name: matched.config for name, matched in self.matched.items()}
        tuned = self.tune.values if self.tune else ()
        if self.tune:
            check_tries(self.tune, configs, self.overrides)
        return settings_of(
            configs,
            earlier,
            lambda folder, config: results.holds_other(self.root / folder, config, tuned),
        )

    def _claims(self, earlier: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
        """Record the claims, new ones with how many runs had results by then."""
        runs = len([*self.root.glob(f'*/*/{results.RESULT}')])
        now = {**_now(), 'seeds': seeds, 'runs': runs}
        return record_claims(self.experiment.claims, earlier, now)

    def _wanted(self, piloted: Mapping[str, Any] | None, seeds: int, pilot: bool) -> range:
        """Return the seeds to be run: those of a pilot, those asked for, or those planned."""
        if piloted:
            seeds = piloted['seeds'] if pilot else seeds or piloted['planned']
        first = cast(Any, self.experiment.base).train.seed
        wanted = range(first, first + (seeds or self.experiment.seeds))
        _refuse_large_seeds(wanted, self.tune)
        return wanted

    def _stages(self, earlier: Mapping[str, Any], seeds: int, pilot: bool) -> dict[str, Any]:
        """Return the looks that were taken and the pilot, as experiment.json has them."""
        looks, before = earlier.get('looks') or no_looks(), earlier.get('pilot')
        if 'looks' not in earlier and exists(self.root / results.RESULTS):
            looks = take_look(looks, {'seeds': len(earlier['seeds']), 'date': '', 'commit': None})
        if not looks['taken']:
            looks = no_looks(self.experiment.looks)
        if pilot:
            before = begin_pilot(before, seeds, looks, len(self.experiment.claims), _now())
        else:
            before = go_on(before, seeds, looks, self.experiment.seeds)
        return {'looks': looks, 'pilot': before}


def _now() -> dict[str, Any]:
    """Return what a claim, a look or a pilot is recorded with."""
    return {'commit': git_commit(PROJECT), 'date': today()}


def _refuse_large_seeds(seeds: range, tune: Tune | None) -> None:
    """Raise ConfigError if the last of some seeds is more than `train.seed` takes, or tuning's."""
    if tune and seeds[-1] >= FIRST_SEED and seeds[0] <= tune.all_seeds[-1]:
        raise ConfigError(
            f'train.seed={seeds[0]}: seeds from {FIRST_SEED} to {tune.all_seeds[-1]} are those of '
            'tuning, which no table may have: take others'
        )
    if why := RANGES['train.seed'].reject('train.seed', seeds[-1]):
        raise ConfigError(f'{why}: {len(seeds)} seeds count up from {seeds[0]}, lower that')

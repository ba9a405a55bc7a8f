"""The plan of an ablation: the distinct configs of an experiment times seeds, under one root."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.ablation import results
from transformer_jax.ablation.checked_configs import checked_configs
from transformer_jax.ablation.claims import record_claims, today
from transformer_jax.ablation.experiment import (
    Experiment,
    evaluations,
    impossible_variants,
    lengths_of,
)
from transformer_jax.ablation.experiment_files import PROJECT
from transformer_jax.ablation.match_sizes import Matched, match_sizes
from transformer_jax.ablation.settings import Setting, settings_of
from transformer_jax.attention.engines import require_platform
from transformer_jax.config.values import RANGES
from transformer_jax.errors import ConfigError, WorkdirError
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.processes import from_primary
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.files import exists, make_directory, write_text
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.paths import absolute_path
from transformer_jax.storage.processes import write_once
from transformer_jax.storage.provenance import git_commit


@dataclasses.dataclass(frozen=True)
class Trial:
    """A setting with one seed: one run of training, in a workdir of its own."""

    setting: Setting
    seed: int
    workdir: epath.Path

    @property
    def name(self) -> str:
        """The name in the log: the folder under the root."""
        return f'{self.setting.folder}/{self.seed}'

    def with_seed(self, seed: int) -> 'Trial':
        """Return the trial of the same setting with another seed."""
        return Trial(self.setting, seed, self.workdir.parent / str(seed))

    @property
    def config(self) -> ExperimentConfig:
        """The configuration that it trains with."""
        return config_lib.replace(
            self.setting.config,
            train=dataclasses.replace(self.setting.config.train, seed=self.seed),
        )


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
        record: the content of experiment.json.
    """

    def __init__(
        self,
        experiment: Experiment,
        file: str,
        root: epath.PathLike,
        seeds: int = 0,
        overrides: Mapping[str, Any] | None = None,
    ):
        """Plan an experiment; nothing is written yet.

        Args:
            experiment: what to run.
            file: where it came from, for the record.
            root: the folder that holds everything.
            seeds: how many; 0: as the experiment says.
            overrides: keys of the base to replace, see `Experiment.with_base`.

        Raises:
            ConfigError: variants are impossible (all of them are listed), or the root holds another
                version of the experiment.
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
        path = self.root / results.EXPERIMENT
        earlier = results.read_experiment(path) if exists(path) else {'variants': {}, 'seeds': []}
        self.settings = settings_of(
            {name: m.config for name, m in self.matched.items()},
            earlier['variants'],
            lambda folder, config: results.holds_other(self.root / folder, config),
        )
        first = cast(Any, experiment.base).train.seed
        wanted = range(first, first + (seeds or experiment.seeds))
        _refuse_large_seeds(wanted)
        claims = self._claims(earlier.get('claims', []), len(wanted))
        self.record = self._record(sorted({*earlier['seeds'], *wanted}), claims)
        _refuse_other_version(self.root, earlier['variants'], self.record['variants'])
        self.trials = [
            Trial(setting, seed, self.root / setting.folder / str(seed))
            for setting in self.settings
            for seed in wanted
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
        # Neighbors stay together: the seeds of a setting share what is compiled.
        first, last = (len(self.trials) * end // int(count) for end in (int(index), int(index) + 1))
        self.trials = self.trials[first:last]

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

        def write() -> None:
            make_directory(self.root)
            text = to_json(self.record, indent=1) + '\n'
            write_text(self.root / results.EXPERIMENT, text)

        write_once(write)

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
        """Return the config of a setting as experiment.json has it."""
        return self.record['variants'][setting.variants[0]]['config']

    def _claims(self, earlier: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
        """Record the claims, new ones with how many runs had results by then."""
        now = {
            'commit': git_commit(PROJECT),
            'date': today(),
            'seeds': seeds,
            'runs': len([*self.root.glob(f'*/*/{results.RESULT}')]),
        }
        return record_claims(self.experiment.claims, earlier, now)

    def _record(self, seeds: list[int], claims: list[dict[str, Any]]) -> dict[str, Any]:
        experiment = self.experiment
        folders = {name: setting.folder for setting in self.settings for name in setting.variants}

        def variant(name: str, matched: Matched) -> dict[str, Any]:
            config = config_lib.flatten(matched.config)
            del config['train.seed']
            chosen = matched.chosen | {'residual': matched.residual} if matched.chosen else {}
            return {
                'folder': folders[name],
                'overrides': dict(experiment.variants[name]),
                'config': config,
                'matched': chosen,
            }

        record = {
            'file': self.file,
            'overrides': self.overrides,
            'claim': experiment.claim,
            'claims': claims,
            'reference': experiment.compared_with,
            'metrics': [
                dataclasses.asdict(metric)
                | {'lower_is_better': metric.lower_is_better, 'label': str(metric)}
                for metric in experiment.metrics
            ],
            'published': [dataclasses.asdict(published) for published in experiment.published],
            'axis': experiment.axis and dataclasses.asdict(experiment.axis),
            'match': experiment.match,
            'differences': [dataclasses.asdict(each) for each in experiment.differences],
            'seeds': seeds,
            'variants': {name: variant(name, matched) for name, matched in self.matched.items()},
        }
        return json.loads(to_json(record))  # as it will be read: tuples are lists


def _refuse_large_seeds(seeds: range) -> None:
    """Raise ConfigError if the last of some seeds is more than `train.seed` takes."""
    if why := RANGES['train.seed'].reject('train.seed', seeds[-1]):
        raise ConfigError(f'{why}: {len(seeds)} seeds count up from {seeds[0]}, lower that')


def _refuse_other_version(root: epath.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ConfigError if a variant has another config than before.

    Only variants, seeds and metrics may be added and removed.
    """
    reasons = []
    for name in old.keys() & new.keys():
        changed = results.differences(old[name]['config'], new[name]['config'])
        if changed:
            reasons.append(f'{name}: {"; ".join(changed)}')
    if reasons:
        title = (
            f'{root} holds results of another version of the experiment; take another --root, the '
            'old values, or other names for the variants:'
        )
        raise ConfigError('\n  '.join([title, *sorted(reasons)]))

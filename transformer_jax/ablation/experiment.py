"""What a file in `experiments/` says: a table of variants, how they are scored, and what the
paper found.

Such a file defines `get_experiment(scale='small') -> Experiment`. On the command line the scale
follows a colon, as the argument of a config does: `experiments/zoology/mqar.py:small`. The base is
mostly a file of `configs/`: `config_file`.
"""

import ast
import dataclasses
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.errors import ConfigError, UserError
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.schema import ExperimentConfig

MATCHES = ('none', 'params', 'flops')
Setting = TypeVar('Setting')


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number that a variant is scored by.

    `name` is a key of what `evaluate` reports of `split`, for the `checkpoint` that it would take.
    With a `length` it is measured as by `evaluate --lengths`, on the lengths of all of an
    experiment's metrics of that split and checkpoint: an example counts for the smallest of them
    that holds it. `step_seconds` is no key of these, but the measured time of a training step of a
    run alone.
    """

    name: str
    split: str = 'test'
    checkpoint: str = ''  # best, last, avg:N; '': the best, or the last where none was evaluated
    length: int = 0

    def __post_init__(self):
        if self.split not in ('validation', 'test'):
            raise ConfigError(f'split={self.split!r} of {self.name}, it takes validation, test')
        if not re.fullmatch('|best|last|avg:[1-9][0-9]*', self.checkpoint):
            raise ConfigError(
                f'checkpoint={self.checkpoint!r} of {self.name}, it takes best, last, avg:N'
            )
        if self.length < 0 or self.length == 1:
            raise ConfigError(f'length={self.length} of {self.name} must be 2 or more')

    def __str__(self) -> str:
        """Its name in tables and results: 'test accuracy', 'test accuracy at 40',
        'step_seconds'.
        """
        return (
            self.name
            if self.timed
            else f'{self.split} {self.name}' + f' at {self.length}' * bool(self.length)
        )

    @property
    def timed(self) -> bool:
        """Whether it is measured by taking steps, not by an evaluation."""
        return self.name in METRICS and METRICS[self.name].timed

    @property
    def lower_is_better(self) -> bool:
        """True where a lower value is better."""
        return METRICS[self.name].lower_is_better


@dataclasses.dataclass(frozen=True)
class Published:
    """What a paper reports: the values of variants by one measure, and where they stand."""

    source: str  # 'Vaswani et al. (2017), Table 3'
    measure: str  # the paper's: 'BLEU on newstest2013'
    metric: str  # str() of the Metric that answers to it
    values: Mapping[str, float]  # variant -> number; variants that the paper lacks are left out
    lower_is_better: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """What a figure of the first metric has along x: variant -> (the line it belongs to,
    its number).
    """

    label: str
    points: Mapping[str, tuple[str, float]]

    def beside(self, line: str) -> dict[str, str]:
        """Of each variant that of a line at the same number; variants for which there is none are
        left out.
        """
        at = {x: variant for variant, (name, x) in self.points.items() if name == line}
        return {variant: at[x] for variant, (_, x) in self.points.items() if x in at}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table: its rows are `variants`, each the `base` with some keys replaced, its
    columns `metrics`.
    """

    claim: str  # in a sentence: what the paper says that this is to show
    base: ml_collections.ConfigDict
    variants: Mapping[
        str, Mapping[str, Any]
    ]  # name -> {'model.num_heads': 1, …}; {}: the base itself
    metrics: tuple[Metric, ...]  # the first is the one that the verdict is about
    published: tuple[Published, ...] = ()
    # the variant that others are compared with, or a line of the axis; '': the first variant
    reference: str = ''
    seeds: int = 3
    axis: Axis | None = None
    # or params, flops: d_ff (recurrent models: d_model) is solved to equal the reference
    match: str = 'none'

    def __post_init__(self):
        if not self.variants or not self.metrics:
            raise ConfigError('an experiment needs variants and metrics')
        odd = [
            name for name, overrides in self.variants.items() if not isinstance(overrides, Mapping)
        ]
        if odd or not isinstance(self.base, ml_collections.ConfigDict):
            raise ConfigError(
                f'the overrides of {", ".join(odd)} are no mapping'
                if odd
                else 'the base is no ConfigDict'
            )
        if self.match not in MATCHES:
            raise ConfigError(f'match={self.match!r}, it takes {", ".join(MATCHES)}')
        self._check_reference()
        if self.seeds < 1:
            raise ConfigError(f'seeds={self.seeds} must be positive')
        names = [str(metric) for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ConfigError(f'metrics need names of their own: {", ".join(names)}')
        unknown = (
            [name for name in self.axis.points if name not in self.variants] if self.axis else []
        )
        if unknown:
            raise ConfigError(f'the axis has points of {", ".join(unknown)}: no variant')
        for published in self.published:
            unknown = [name for name in published.values if name not in self.variants]
            if unknown:
                raise ConfigError(f'{published.source}: {", ".join(unknown)} is no variant')
            if published.metric not in names:
                raise ConfigError(
                    f'{published.source}: metric={published.metric!r} is none of {", ".join(names)}'
                )
        slugs: dict[str, str] = {}
        for name in self.variants:
            other = slugs.setdefault(slug(name), name)
            if other != name:
                raise ConfigError(
                    f'variants {other!r} and {name!r} would share the folder {slug(name)!r}: rename one'
                )

    @property
    def compared_with(self) -> str | dict[str, str]:
        """The variant that others are compared with; where it is a line of the axis,
        variant -> its own.
        """
        reference = self.reference or next(iter(self.variants))
        return reference if reference in self.variants else self.axis.beside(reference)

    def _check_reference(self) -> None:
        lines = dict.fromkeys(line for line, _ in self.axis.points.values()) if self.axis else {}
        if self.reference and self.reference not in {**self.variants, **lines}:
            raise ConfigError(
                f'reference={self.reference!r} is no variant{" or line of the axis" * bool(lines)}; '
                f'these are: {", ".join([*self.variants, *lines])}'
            )
        homes = self.compared_with
        alone = (
            [name for name in self.variants if name not in homes] if isinstance(homes, dict) else []
        )
        if alone:
            raise ConfigError(
                f'reference={self.reference!r} has no point on the axis beside {", ".join(alone)}'
            )

    def with_base(self, overrides: Mapping[str, Any]) -> 'Experiment':
        """The same with keys of its base replaced, {'data.source_dir': …}; what variants
        set remains.
        """
        base = ml_collections.ConfigDict(self.base)
        with base.unlocked():
            base.update_from_flattened_dict(overrides)
        return dataclasses.replace(self, base=base)

    def configs(self) -> dict[str, ExperimentConfig]:
        """Every variant as a checked configuration, of seed `train.seed` of the base.

        Raises:
            ConfigError: some variants are impossible; all of them are listed with their reasons.
        """
        configs, reasons = {}, []
        for name, overrides in self.variants.items():
            values = self.base.to_dict()
            try:
                if 'train.seed' in overrides:
                    raise ConfigError('train.seed is that of the base, and counts up from there')
                for key, value in overrides.items():
                    _put(values, key.split('.'), value)
                configs[name] = config_lib.from_dict(values)
            except UserError as error:
                reasons.append(f'{name}: {error}')
        if reasons:
            raise impossible(reasons)
        return configs


def evaluations(metrics: Sequence[Metric]) -> dict[str, list[Metric]]:
    """The metrics that one evaluation measures: those of a split and checkpoint, under
    'test best'.
    """
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        if not metric.timed:
            groups.setdefault(f'{metric.split} {metric.checkpoint}'.strip(), []).append(metric)
    return groups


def lengths_of(metrics: Sequence[Metric]) -> list[int]:
    """The lengths at which some metrics of one evaluation are measured, ascending."""
    return sorted({metric.length for metric in metrics if metric.length})


def slug(name: str) -> str:
    """A variant's name as the name of its folder: letters, digits, dots, dashes and underscores."""
    return re.sub(r'[^\w.-]+', '-', name, flags=re.ASCII).strip('-.') or '-'


def impossible(reasons: list[str]) -> ConfigError:
    """One error for all variants that cannot be: 'name: why'."""
    return ConfigError(
        '\n  '.join(
            ['variants that cannot be:', *(reason.replace('\n', '\n  ') for reason in reasons)]
        )
    )


def at_scale(scale: str, settings: Mapping[str, Setting]) -> Setting:
    """The setting of a scale, or a ConfigError that names those there are."""
    if scale not in settings:
        raise ConfigError(f'there is no scale {scale!r}: {spec.nearest(scale, settings)}')
    return settings[scale]


def load(text: str) -> Experiment:
    """The experiment that `FILE.py[:SCALE]` names.

    Raises:
        ConfigError: there is no such file or scale, it does not define `get_experiment`, it fails
            (the line), or a variant's name is there twice.
    """
    path, _, scale = text.partition(':')
    if not Path(path).is_file():
        raise ConfigError(
            f'{path}: there is no such file; name one of experiments/, as in '
            'experiments/zoology/mqar.py:small'
        )
    experiment = _call(Path(path), 'get_experiment', scale)
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f'{path}: get_experiment returned {type(experiment).__name__}, not an Experiment'
        )
    return experiment


def config_file(text: str) -> ml_collections.ConfigDict:
    """What `FILE.py[:ARG]` is as a `--config`; a relative path is looked for here, then beside
    the package.
    """
    path, _, arg = text.partition(':')
    places = [Path(path), Path(__file__).parents[2] / path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigError(f'{path}: there is no such file')
    return _call(found, 'get_config', arg)


def _call(path: Path, name: str, argument: str) -> Any:
    """What a function of a file returns; a file is a program, and may raise anything."""
    _refuse_duplicates(path)
    module_spec = importlib.util.spec_from_file_location(f'{name}_{path.stem}', path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = (
        module  # where dataclasses look for the names in their annotations
    )
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise ConfigError(f'it defines no {name}')
        return getattr(module, name)(*[argument] * bool(argument))
    except UserError as error:
        raise ConfigError(f'{path}: {error}') from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        raise ConfigError(
            f'{path}:{lines[-1] if lines else 0}: {type(error).__name__}: {error}'
        ) from error


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f'{".".join(path)}: {section} is no section of the configuration')
    values[key] = value


def _refuse_duplicates(path: Path) -> None:
    """A dict literal keeps the last of two equal keys without a word: a row of the table would
    be lost.
    """
    try:
        tree = ast.parse(path.read_text(), path)
    except SyntaxError as error:
        raise ConfigError(f'{path}:{error.lineno}: {error.msg}') from error
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from error
    for node in ast.walk(tree):
        keys = (
            [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if isinstance(node, ast.Dict)
            else []
        )
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise ConfigError(
                f'{path}:{node.lineno}: {twice[0]!r} is there twice: variants need names of their own'
            )

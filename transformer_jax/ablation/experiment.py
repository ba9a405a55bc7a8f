"""What an experiment file describes: variants of a configuration, how they are scored, and the
numbers of the paper.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from transformer_jax import config as config_lib
from transformer_jax.ablation.claims import Claim
from transformer_jax.ablation.differences import Difference, check_differences
from transformer_jax.ablation.field_types import check_fields
from transformer_jax.ablation.metric import Metric
from transformer_jax.ablation.tune import Tune
from transformer_jax.errors import ConfigError, UserError
from transformer_jax.ranges import shorten
from transformer_jax.schema import ExperimentConfig

# Values of `Experiment.match`, and what each says of the sizes of the variants.
MATCHES = {
    'none': 'sizes as they come',
    'params': 'at equal non-embedding parameters',
    'flops': 'at equal FLOPs',
}


@dataclasses.dataclass(frozen=True)
class Published:
    """The numbers of a paper for some variants, by one measure.

    Attributes:
        source: where they are printed: 'Vaswani et al. (2017), Table 3'.
        measure: the paper's measure: 'BLEU on newstest2013'.
        metric: str() of the Metric of this experiment that they are compared with.
        values: variant -> number; variants that the paper lacks are left out.
        lower_is_better: whether a lower number of the paper is better.
    """

    source: str
    measure: str
    metric: str
    values: Mapping[str, float]
    lower_is_better: bool = False

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Axis:
    """What the figures of an experiment have along x.

    Attributes:
        label: of the x axis.
        points: variant -> (the line that it belongs to, its x).
    """

    label: str
    points: Mapping[str, tuple[str, float]]

    def __post_init__(self):
        check_fields(self)

    def references_on(self, line: str) -> dict[str, str]:
        """Return for each variant the variant of a line at the same x, where there is one."""
        at = {x: variant for variant, (name, x) in self.points.items() if name == line}
        return {variant: at[x] for variant, (_, x) in self.points.items() if x in at}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table whose rows are variants of one configuration, and whose columns are metrics.

    Attributes:
        claim: what the paper says and this experiment tests, in a sentence.
        base: the configuration that all variants start from.
        variants: name -> the keys that it replaces, {'model.num_heads': 1}; {}: the base itself.
        metrics: the first is the one by which the claim is judged.
        published: the paper's numbers.
        reference: the variant that others are compared with, or a line of the axis, which is the
            reference at each of its points; '': the first variant.
        seeds: how many.
        axis: what figures have along x.
        claims: what is tested, fixed before the runs.
        looks: how often verdicts will be taken, as seeds are added: each time at 5% over this, see
            `ablation.looks`. Fixed before the first.
        match: none, params or flops: `model.d_ff` (recurrent models: `model.d_model`) is solved so
            that each variant has as many as its reference.
        tune: what is chosen for each variant by tries, before it is scored: a Tune, or its `values`
            alone, {'optim.learning_rate': (1e-3, 3e-3, 1e-2)}.
        differences: where this differs from the paper, for its readers.
    """

    claim: str
    base: ml_collections.ConfigDict
    variants: Mapping[str, Mapping[str, Any]]
    metrics: tuple[Metric, ...]
    published: tuple[Published, ...] = ()
    reference: str = ''
    seeds: int = 3
    axis: Axis | None = None
    match: str = 'none'
    claims: tuple[Claim, ...] = ()
    tune: Tune | Mapping[str, Any] | None = None
    looks: int = 1
    differences: tuple[Difference, ...] = ()

    def __post_init__(self):
        check_fields(self)
        if not self.variants or not self.metrics:
            raise ConfigError('an experiment needs variants and metrics')
        if self.match not in MATCHES:
            raise ConfigError(f'match={self.match!r}, it takes {", ".join(MATCHES)}')
        self._check_reference()
        if self.seeds < 1:
            raise ConfigError(f'seeds={self.seeds} must be positive')
        if not 1 <= self.looks <= 20:
            raise ConfigError(f'looks={self.looks}, it takes 1 to 20')
        self._check_names()
        check_differences(self.differences)
        if self.tuning:
            self.tuning.check_keys(self.variants, self.match)

    @property
    def tuning(self) -> Tune | None:
        """How variants are tuned; None where they are not."""
        return self.tune if isinstance(self.tune, Tune | None) else Tune(self.tune)

    @property
    def compared_with(self) -> str | dict[str, str]:
        """The reference of all variants, or variant -> its own where it is a line of the axis."""
        reference = self.reference or next(iter(self.variants))
        if reference in self.variants or self.axis is None:
            return reference
        return self.axis.references_on(reference)

    def _check_reference(self) -> None:
        lines = dict.fromkeys(line for line, _ in self.axis.points.values()) if self.axis else {}
        if self.reference and self.reference not in {**self.variants, **lines}:
            or_line = ' or line of the axis' if lines else ''
            raise ConfigError(
                f'reference={self.reference!r} is no variant{or_line}; '
                f'these are: {", ".join([*self.variants, *lines])}'
            )
        references = self.compared_with
        if isinstance(references, dict) and self.axis:
            without = [name for name in self.variants if name not in references]
            if without:
                raise ConfigError(
                    f'reference={self.reference!r} has no point on the axis beside '
                    f'{", ".join(without)}'
                )
            points = [x for line, x in self.axis.points.values() if line == self.reference]
            if twice := [x for x in points if points.count(x) > 1]:
                raise ConfigError(
                    f'reference={self.reference!r} has several points of the axis at {twice[0]}: '
                    'which of them is compared with is not clear'
                )

    def _check_names(self) -> None:
        """Raise ConfigError for names that are given twice, or that name no variant or metric."""
        metrics = [str(metric) for metric in self.metrics]
        if len(set(metrics)) < len(metrics):
            raise ConfigError(f'metrics need names of their own: {", ".join(metrics)}')
        points = self.axis.points if self.axis else ()
        if unknown := [name for name in points if name not in self.variants]:
            raise ConfigError(f'the axis has points of {", ".join(unknown)}: no variant')
        for published in self.published:
            if unknown := [name for name in published.values if name not in self.variants]:
                raise ConfigError(f'{published.source}: {", ".join(unknown)} is no variant')
            if published.metric not in metrics:
                raise ConfigError(
                    f'{published.source}: metric={published.metric!r} is none of '
                    f'{", ".join(metrics)}'
                )
        lines = dict.fromkeys(line for line, _ in self.axis.points.values()) if self.axis else {}
        for claim in self.claims:
            claim.check_names(self.variants, lines, metrics)
        for name in self.variants:
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f'variant {name!r} is no text ({error.reason}): rename it'
                ) from error

    def with_base(self, overrides: Mapping[str, Any]) -> 'Experiment':
        """Return a copy with keys of the base replaced; what variants set stays as they set it.

        Args:
            overrides: {'data.source_dir': …}.
        """
        base = self.base.copy_and_resolve_references()
        with base.unlocked():
            base.update_from_flattened_dict(overrides)
        return dataclasses.replace(self, base=base)

    def configs(self) -> dict[str, ExperimentConfig]:
        """Return every variant as a checked configuration, with `train.seed` of the base.

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
                    _set_key(values, key.split('.'), value)
                configs[name] = config_lib.from_dict(values)
            except UserError as error:
                reasons.append(f'{name}: {error}')
        if reasons:
            raise impossible_variants(reasons)
        return configs


def slug(name: str) -> str:
    """Turn a name into a file's: ASCII letters, digits, dots, dashes and underscores.

    Different names may become the same; `settings.choose_folder` keeps folders of variants apart.
    """
    return re.sub(r'[^\w.-]+', '-', name, flags=re.ASCII).strip('-.') or '-'


def impossible_variants(reasons: list[str]) -> ConfigError:
    """Make one error of the reasons why variants are impossible, each 'name: why'."""
    return ConfigError(
        '\n  '.join(
            ['variants that cannot be:', *(reason.replace('\n', '\n  ') for reason in reasons)]
        )
    )


def _set_key(values: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, key = path
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f'{".".join(path)}: {section} is no section of the configuration')
    if isinstance(values.get(key), dict):
        hint = f"write '{'.'.join(path)}.KEY': value"
        if isinstance(value, Mapping) and value:
            inner, given = next(iter(value.items()))
            hint = f"write '{'.'.join(path)}.{inner}': {given!r}"
        raise ConfigError(f'{".".join(path)}={shorten(value)}: it is a section; {hint}')
    values[key] = value

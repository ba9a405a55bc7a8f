"""How the variants of an experiment are tuned: what is tried, and by what it is chosen."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from transformer_jax import spec
from transformer_jax.ablation.field_types import check_fields
from transformer_jax.ablation.metric import Metric
from transformer_jax.errors import ConfigError
from transformer_jax.ranges import shorten
from transformer_jax.schema import ExperimentConfig, flatten
from transformer_jax.storage.config_changes import may_change
from transformer_jax.storage.seed_group import MAY_DIFFER

# Tries have seeds of their own, from here on: those of a table are never chosen by their luck.
FIRST_SEED = 1_000_000
SEEDS = ('train.seed', 'train.num_seeds')
# Keys that change what a score says: tries that differ in them cannot be compared.
JUDGED_BY = (
    *('data.task', 'data.source', 'data.target', 'data.tokenizer', 'data.vocab_size'),
    *('evaluate.max_examples', 'evaluate.stride', 'evaluate.bleu_tokenize'),
)
EXAMPLE = "{'optim.learning_rate': (1e-3, 3e-3, 1e-2)}"


@dataclasses.dataclass(frozen=True)
class Tune:
    """Tries of every variant, the same for all, of which its best is chosen.

    Attributes:
        values: key of the configuration -> the values that are tried; there is a try for each
            combination of the values of all keys.
        metric: of the validation split, by whose mean over seeds the best try is chosen; of equal
            ones the first.
        seeds: of each try; they count up from FIRST_SEED.
    """

    values: Mapping[str, tuple[Any, ...]]
    metric: Metric = Metric('loss', 'validation')
    seeds: int = 1

    def __post_init__(self):
        check_fields(self)
        if not self.values:
            raise ConfigError(f'tune names no key: write tune={EXAMPLE}, or leave tune out')
        for key, values in self.values.items():
            _check_key(key)
            _check_values(key, values)
        if self.metric.timed:
            raise ConfigError(
                f'tune: metric={self.metric.name!r} is a time, by which no value is chosen: take a '
                "score, as Metric('loss', 'validation')"
            )
        if self.metric.split != 'validation':
            raise ConfigError(
                f'tune: metric={str(self.metric)!r} is of the {self.metric.split} split, which no '
                f'choice may see: take Metric({self.metric.name!r}, "validation")'
            )
        if self.seeds < 1:
            raise ConfigError(f'tune: seeds={self.seeds} must be positive')

    @property
    def tried(self) -> dict[str, tuple[Any, ...]]:
        """The values as configurations have them, 1 as 1.0 where a key takes any number."""
        defaults = flatten(ExperimentConfig())
        return {
            key: tuple(
                float(value) if type(value) is int and type(defaults[key]) is float else value
                for value in values
            )
            for key, values in self.values.items()
        }

    @property
    def combinations(self) -> tuple[dict[str, Any], ...]:
        """The values of each try; the last key varies fastest."""
        return tuple(
            dict(zip(self.values, chosen, strict=True))
            for chosen in itertools.product(*self.tried.values())
        )

    @property
    def all_seeds(self) -> range:
        """The seeds of each try."""
        return range(FIRST_SEED, FIRST_SEED + self.seeds)

    def check_keys(self, variants: Mapping[str, Mapping[str, Any]], match: str) -> None:
        """Raise ConfigError for a key that an experiment sets elsewhere.

        Args:
            variants: of the experiment.
            match: of the experiment; only sizes that nothing changes can be matched.
        """
        for key in self.values:
            fixed = [name for name, overrides in variants.items() if key in overrides]
            if fixed:
                raise ConfigError(
                    f'tune[{key!r}]: {", ".join(fixed)} sets it: leave it out there, or out of tune'
                )
            if match != 'none' and key.startswith('model.') and key not in MAY_DIFFER:
                raise ConfigError(
                    f'tune[{key!r}]: it may change the size that match={match!r} solves for: leave '
                    "it out, or set match='none'"
                )

    def as_json(self) -> dict[str, Any]:
        """Return what experiment.json holds of it."""
        metric = {'label': str(self.metric), 'lower_is_better': self.metric.lower_is_better}
        return {
            'values': {key: list(values) for key, values in self.tried.items()},
            'metric': dataclasses.asdict(self.metric) | metric,
            'seeds': list(self.all_seeds),
        }


def say_values(values: Mapping[str, Any]) -> str:
    """Write the values of a try: 'optim.learning_rate=0.001, model.dropout=0.1'."""
    return ', '.join(f'{key}={value}' for key, value in values.items())


def _check_key(key: str) -> None:
    keys = flatten(ExperimentConfig())
    if key in SEEDS:
        raise ConfigError(f'tune[{key!r}]: no seed is chosen; Tune(seeds=N) gives each try N seeds')
    if key not in keys:
        raise ConfigError(f'tune[{key!r}]: unknown configuration key; {spec.nearest(key, keys)}')
    if may_change(key):
        raise ConfigError(f'tune[{key!r}]: no score depends on it: leave it out')
    if key in JUDGED_BY:
        raise ConfigError(
            f'tune[{key!r}]: scores of tries that differ in it cannot be compared: leave it out'
        )


def _check_values(key: str, values: tuple[Any, ...]) -> None:
    if len(values) < 2:
        many = f'only the value {shorten(values[0])}' if values else 'no value'
        raise ConfigError(
            f'tune[{key!r}] has {many}: name two values or more, or set the key in the base'
        )
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ConfigError(f'tune[{key!r}] has {shorten(twice[0])} twice: leave one of them out')

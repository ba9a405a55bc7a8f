"""The door to experiments: from a ConfigDict to a checked configuration, and to what it names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from transformer_jax import spec
from transformer_jax.config.components import Components
from transformer_jax.config.resolve import resolve, resolve_architecture
from transformer_jax.errors import ConfigError
from transformer_jax.ranges import shorten
from transformer_jax.renames import new_name
from transformer_jax.schema import ExperimentConfig, flatten

__all__ = [
    'Components',
    'ExperimentConfig',
    'default_config',
    'flatten',
    'from_config_dict',
    'from_dict',
    'from_stored',
    'override',
    'replace',
    'resolve',
    'resolve_architecture',
    'to_dict',
]


def default_config() -> ml_collections.ConfigDict:
    """Make a locked ConfigDict of all keys with their defaults, for files in `configs/`."""
    return ml_collections.ConfigDict(dataclasses.asdict(ExperimentConfig())).lock()


def from_config_dict(config: ml_collections.ConfigDict) -> ExperimentConfig:
    """Convert a ConfigDict strictly, and check it.

    Raises:
        ConfigError: a missing, unknown or wrongly typed key, a value out of range, or an impossible
            combination.
    """
    return from_dict(config.to_dict())


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Convert a nested dictionary, as `config.json` holds it; errors as `from_config_dict`."""
    config = _convert(values, ExperimentConfig, '')
    resolve(config)
    return config


def from_stored(values: Mapping[str, Any], name: object) -> ExperimentConfig:
    """Convert the content of a config.json; errors as `from_dict`, they begin with its `name`."""
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f'{name}: {error}') from error


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return the nested dictionary that `from_dict` reads back as `config`."""
    return dataclasses.asdict(config)


def replace(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    """Replace whole sections of a configuration, and check it again."""
    changed = dataclasses.replace(config, **sections)
    resolve(changed)
    return changed


def override(config: ExperimentConfig, keys: Mapping[str, Any]) -> ExperimentConfig:
    """Replace some keys, as in {'train.steps': 100}; errors as `from_dict`."""
    values = to_dict(config)
    for key, value in keys.items():
        *sections, last = key.split('.')
        section = values
        for name in sections:  # One that there is not is refused with its nearest below.
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f'{key}: {name} is no section of the configuration')
        section[last] = value
    return from_dict(values)


def _convert(values: Mapping[str, Any], cls: type, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(
            f'{prefix[:-1]}={values!r} is no section: it holds the keys of {cls.__name__}'
        )
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            new = new_name(prefix + key)
            hint = f'it is called {new} now' if new else spec.nearest(key, fields)
            raise ConfigError(f'{prefix}{key}: unknown configuration key; {hint}')
    missing = [prefix + key for key in fields if key not in values]
    if missing:
        raise ConfigError(
            f'missing configuration key {", ".join(missing)}; start from transformer_jax.config.'
            'default_config(), which holds every key'
        )
    converted = {}
    for key, hint in fields.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            converted[key] = _convert(values[key], hint, f'{prefix}{key}.')
            continue
        converted[key] = spec.convert(values[key], hint)
        if converted[key] is None:
            raise ConfigError(
                f'{prefix}{key}={shorten(values[key])} is of type {type(values[key]).__name__}, '
                f'it takes {spec.type_name(hint)}'
            )
    return cls(**converted)

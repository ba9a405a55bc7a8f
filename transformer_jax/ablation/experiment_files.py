"""Experiment files: how they are found, executed and checked.

Such a file defines `get_experiment(scale='small') -> Experiment`. On the command line the scale
follows a colon, like the argument of a config: `experiments/zoology/mqar.py:small`. The base of an
experiment is usually a file of `configs/`, which `config_file` reads.
"""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.ablation.experiment import Experiment
from transformer_jax.errors import ConfigError, UserError
from transformer_jax.models import no_decoding
from transformer_jax.profiling.state_size import config_state
from transformer_jax.schema import ExperimentConfig

T = TypeVar('T')
PROJECT = Path(__file__).parents[2]  # where configs/ is


def at_scale(scale: str, settings: Mapping[str, T]) -> T:
    """Return the setting of a scale, or raise ConfigError that names the scales there are."""
    if scale not in settings:
        raise ConfigError(f'there is no scale {scale!r}: {spec.nearest(scale, settings)}')
    return settings[scale]


def load_experiment(text: str) -> Experiment:
    """Load the experiment that `FILE.py[:SCALE]` names.

    Raises:
        ConfigError: there is no such file or scale, it does not define `get_experiment`, it fails
            (the message has the line), or a variant's name is there twice.
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
    """Load the configuration that `FILE.py[:ARG]` names, as `--config` does.

    A relative path is looked for in the current directory, then next to the package.

    Raises:
        ConfigError: there is no such file, or it fails (the message has the line).
    """
    path, _, argument = text.partition(':')
    candidates = [Path(path), PROJECT / path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ConfigError(f'{path}: there is no such file')
    return _call(found, 'get_config', argument)


def state_bytes(
    config: ExperimentConfig | ml_collections.ConfigDict,
    length: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> int:
    """Count the bytes that a model keeps of one sequence while it decodes, over all layers.

    An experiment file can put them on an axis:

        points = {name: (name, state_bytes(base, 64, keys)) for name, keys in variants.items()}

    Args:
        config: the experiment.
        length: tokens of the sequence, a prompt included; of an encoder-decoder, of source and
            target alike. None: the longest row of `data.batching`.
        overrides: keys to replace, as in {'model.attention': 'linear'}.

    Raises:
        ConfigError: an impossible configuration, a model that does not decode, or a length that it
            does not reach.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config_lib.from_config_dict(config)
    if overrides:
        config = config_lib.override(config, overrides)
    components = config_lib.resolve(config)
    size = config_state(components, length)
    if size is None:
        raise ConfigError(f'no decoding state: {no_decoding(components.architecture)}')
    return size.bytes


def _call(path: Path, name: str, argument: str) -> Any:
    """Execute a file, which is a program and may raise anything, and call one of its functions."""
    _refuse_duplicate_keys(path)
    module_spec = importlib.util.spec_from_file_location(f'{name}_{path.stem}', path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f'{path} is no Python file: its name must end in .py')
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses look for the names in their annotations in sys.modules.
    sys.modules[module.__name__] = module
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise ConfigError(f'it defines no {name}')
        function = getattr(module, name)
        return function(argument) if argument else function()
    except UserError as error:
        raise ConfigError(f'{path}: {error}') from error
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path.absolute())
        ]
        raise ConfigError(
            f'{path}:{lines[-1] if lines else 0}: {type(error).__name__}: {error}'
        ) from error


def _refuse_duplicate_keys(path: Path) -> None:
    """Raise ConfigError for a dict literal with two equal keys.

    Python keeps the last of them without a word: a row of the table would be lost.
    """
    try:
        tree = ast.parse(path.read_text(), path)
    except SyntaxError as error:
        raise ConfigError(f'{path}:{error.lineno}: {error.msg}') from error
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict):
            continue
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            raise ConfigError(
                f'{path}:{node.lineno}: {twice[0]!r} is there twice: '
                'variants need names of their own'
            )

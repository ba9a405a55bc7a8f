"""Transformers in JAX: train, ablate, reproduce.

The names in `__all__` are for notebooks and for programs of your own; each is imported when it is
first used, so that `import transformer_jax` costs nothing.

    >>> import transformer_jax
    >>> config = transformer_jax.load_config('configs/number_words.py:en-de', {'train.steps': 100})
    >>> run = transformer_jax.train(config, 'runs/notebook')
    >>> run.translate(['twenty-four'])

Array names carry their shape as a suffix, one letter a dimension, and einsum letters equal
the suffixes:

    B batch   T query/target length   S key/source length   N query heads   K key-value heads
    G = N/K   H head dim   D model dim   F feed-forward dim   V vocabulary   C chunk of tokens
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_jax.api import (
        build_model,
        init_state,
        load_config,
        load_data,
        make_program,
        open_run,
        train,
        train_step,
    )
    from transformer_jax.display.data_table import Table
    from transformer_jax.errors import (
        ConfigError,
        DataError,
        Diverged,
        Stopped,
        UserError,
        WorkdirError,
    )
    from transformer_jax.host_memory import tune_host_memory
    from transformer_jax.inference.run import Run
    from transformer_jax.schema import ExperimentConfig

__version__ = '0.1.0'

__all__ = [
    'ConfigError',
    'DataError',
    'Diverged',
    'ExperimentConfig',
    'Run',
    'Stopped',
    'Table',
    'UserError',
    'WorkdirError',
    'build_model',
    'init_state',
    'load_config',
    'load_data',
    'make_program',
    'open_run',
    'train',
    'train_step',
    'tune_host_memory',
]

# Public name -> the module that it is imported from when it is first used: JAX and what is built on
# it take seconds to import, and `tune_host_memory` must come before JAX looks for devices.
_MODULES = {
    'tune_host_memory': 'transformer_jax.host_memory',
    'load_config': 'transformer_jax.api',
    'train': 'transformer_jax.api',
    'open_run': 'transformer_jax.api',
    'Run': 'transformer_jax.inference.run',
    'Table': 'transformer_jax.display.data_table',
    'build_model': 'transformer_jax.api',
    'init_state': 'transformer_jax.api',
    'train_step': 'transformer_jax.api',
    'make_program': 'transformer_jax.api',
    'load_data': 'transformer_jax.api',
    'ExperimentConfig': 'transformer_jax.schema',
    'UserError': 'transformer_jax.errors',
    'ConfigError': 'transformer_jax.errors',
    'DataError': 'transformer_jax.errors',
    'WorkdirError': 'transformer_jax.errors',
    'Diverged': 'transformer_jax.errors',
    'Stopped': 'transformer_jax.errors',
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """List what is there and what can be imported."""
    return sorted({*globals(), *__all__})

"""The processes of a job: how a command joins the others, and what all must be given alike."""

import os
from typing import Any

import jax
import ml_collections
from absl import logging

from transformer_jax.cli.flags import Flags
from transformer_jax.cli.streams import discard_results, keep_results_apart
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.joining import join, join_cluster
from transformer_jax.partitioning.same_start import require_same_start, shared_keys
from transformer_jax.storage.paths import absolute_path

# Flags of which each process has its own.
OWN_FLAGS = ('process_id', 'coordinator', 'config', 'debug', 'help')
FOLDERS = ('workdir', 'root')


def join_processes(values: Flags) -> None:
    """Join the other processes of the job, where the flags name any.

    From there on process 0 alone prints results and remarks.

    Raises:
        ConfigError: flags that do not fit together, processes that cannot be joined, or that were
            not started alike.
    """
    if values.distributed and values.coordinator:
        raise ConfigError('--distributed finds the other processes itself: leave out --coordinator')
    if values.distributed:
        keep_results_apart()
        join_cluster()
    elif values.coordinator:
        keep_results_apart()
        join(values.coordinator, values.num_processes, values.process_id)
    else:
        if values['num_processes'].present or values['process_id'].present:
            raise ConfigError('--num_processes and --process_id need --coordinator=HOST:PORT')
        return
    if jax.process_index() != 0:
        discard_results()
        logging.set_verbosity(logging.ERROR)
    require_same_start(_facts(values))


def _facts(values: Flags) -> dict[str, Any]:
    """Collect what all processes must be given alike."""
    facts: dict[str, Any] = {}
    for name in sorted(values):
        value = values[name].value
        if isinstance(value, ml_collections.ConfigDict):
            facts |= shared_keys(value.to_dict())
        elif name in FOLDERS and value:
            facts[f'--{name}'] = os.fspath(absolute_path(value))
        elif name not in OWN_FLAGS and '.' not in name:
            facts[f'--{name}'] = value
    return facts

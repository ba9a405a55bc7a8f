"""The version of stored configurations, and how those of earlier versions are read.

config.json of a workdir, and the configurations in experiment.json and results.json of an
ablation, may have been written by an earlier version of this package. `migrate_config` reads them
as today's, by the tables of `renames` and by ADDED_KEYS.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformer_jax.errors import WorkdirError
from transformer_jax.renames import RENAMED_KEYS, RENAMED_NAMES, RENAMED_OPTIONS
from transformer_jax.schema import flatten

VERSION = 4  # of what is written today; files without a version are of version 1

# Keys that files of a version, or of an earlier one, may lack, with the value that this meant. A
# new key needs a new version, and its row here.
ADDED_KEYS: dict[int, dict[str, Any]] = {
    1: {
        'model.attention_bias': 'none',
        'model.attention_dropout': False,
        'model.engine': 'auto',
        'model.rnn': 'lstm',
        'model.block': 'sequential',
        'model.pooling': 'mean',
        'model.towers': 1,
        'model.embedding_scale': 'sqrt',
        'model.embedding_norm': False,
        'model.logit_softcap': 0.0,
        'data.tokenizer': 'bpe',
        'train.num_seeds': 1,
        'train.ema': 0.0,
        'optim.decay_embeddings': True,
        'evaluate.stride': 0,
        'evaluate.bleu_tokenize': '13a',
    },
    2: {'train.init_from': ''},
    3: {
        'model.scan_layers': False,
        'model.remat': 'none',
        'parallel.mesh.context': 1,
        'parallel.rules': '',
    },
}
# The keys whose values are specs; the strings of others, such as paths, are left alone.
SPEC_KEYS = ('attention', 'schedule')


def with_version(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested configuration as config.json holds it, with its version."""
    return {'version': VERSION, **config}


def migrate_config(stored: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read the nested configuration of a config.json of any version.

    Args:
        stored: the content of the file.
        name: of the file, for messages.

    Returns:
        today's nested configuration, without a version and without the identity of the run.

    Raises:
        WorkdirError: a later version of this package wrote it.
    """
    values = dict(stored)
    for key in ('run', 'first_checkpoint'):  # of the run, not of its configuration
        values.pop(key, None)
    version = values.pop('version', 1)
    if version not in range(1, VERSION + 1):
        raise WorkdirError(
            f'{name} has version {version}, this package reads up to {VERSION}: update it'
        )
    if version == VERSION:
        return values
    nested: dict[str, Any] = {}
    for key, value in migrate_flat_config(flatten(values), version).items():
        *sections, last = key.split('.')
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return nested


def migrate_flat_config(flat: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
    """Read a flat configuration of an earlier version, {'train.steps': 100, …}, as today's.

    Today's configurations are returned as they are.
    """
    found = dict(flat)
    if version == 1:
        found = {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}
        found = {key: _migrate_value(key, value) for key, value in found.items()}
    for since, added in ADDED_KEYS.items():
        if version <= since:
            found = {key: value for key, value in added.items() if key not in found} | found
    return found


def _migrate_value(key: str, value: Any) -> Any:
    if not isinstance(value, str) or not key.endswith(SPEC_KEYS):
        return value
    for old, new in RENAMED_OPTIONS.items():
        value = re.sub(rf'\b{old}(?=\s*=)', new, value)
    for old, new in RENAMED_NAMES.items():
        value = re.sub(rf'\b{old}\b(?!\s*=)', new, value)
    return value

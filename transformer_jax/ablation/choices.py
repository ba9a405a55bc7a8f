"""The choices of tuning: ROOT/VARIANT/tuning.json, written once and then read only.

Beside the values that were chosen it has every try: its values, its score and that of each seed, or
why that failed, and the seconds that it took.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from transformer_jax.ablation.field_types import is_finite
from transformer_jax.config.values import RANGES
from transformer_jax.storage.config_changes import config_changes
from transformer_jax.storage.config_versions import migrate_flat_config
from transformer_jax.storage.files import exists
from transformer_jax.storage.json_files import NUMBER, read_json_if_there

TUNING = 'tuning.json'
SCORE = (*NUMBER, None)
RUN = {'seed': int, 'score': SCORE, 'failed': str, 'wall_seconds': SCORE}
TRY = {'values': dict, 'score': SCORE, 'runs': [RUN]}
# The shape of `Tune.as_json`.
TUNE = {
    'values': {str: list},
    'metric': {
        **dict.fromkeys(('name', 'split', 'checkpoint', 'label'), str),
        'length': int,
        'lower_is_better': bool,
    },
    'seeds': [int],
}
CHOICE = {'tune': TUNE, 'config': dict, 'chosen': dict, 'score': NUMBER, 'tries': [TRY]}


def read_choice(folder: epath.Path) -> dict[str, Any] | None:
    """Read what was chosen for the variant in a folder under a root; None where nothing was.

    Raises:
        WorkdirError: the file is damaged.
    """
    remedy = 'delete it, ablate chooses again from the tries, and the runs beside it'
    choice = read_json_if_there(folder / TUNING, CHOICE, remedy)
    if choice is not None:
        choice['config'] = migrate_flat_config(choice['config'])
    return choice


def add_choices(experiment: dict[str, Any], root: epath.Path) -> None:
    """Put what was chosen into the content of an experiment.json.

    The configuration of each variant becomes the one that its runs have, and its key `tuning` has
    the content of tuning.json.
    """
    if not experiment.get('tune'):
        return
    for entry in experiment['variants'].values():
        if choice := read_choice(root / entry['folder']):
            entry['config'] |= choice['chosen']
            entry['tuning'] = choice


def tune_changes(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """List the differences of two `Tune.as_json`: "tune['model.dropout']: [0, 0.1] -> (absent)"."""
    changes = config_changes(_flat(old), _flat(new))
    return list(changes.values())


def at_edges(values: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any]) -> list[str]:
    """Say which chosen numbers lie at an edge of the values that were tried.

    Beyond an edge there may be a better value. A bound of the key, such as a dropout of 0, is none.
    """
    found = []
    for key, tried in values.items():
        value = chosen[key]
        if not all(map(is_finite, tried)):
            continue
        for name, edge, direction in (
            ('smallest', min(tried), -math.inf),
            ('largest', max(tried), math.inf),
        ):
            beyond = math.nextafter(value, direction)
            if isinstance(value, int):
                beyond = value + int(math.copysign(1, direction))
            if value == edge and (key not in RANGES or beyond in RANGES[key]):
                found.append(f'{key}={value} is the {name} of the values tried')
    return found


def holds_tuning(root: epath.Path) -> bool:
    """Whether anything under a root was begun by now that depends on how variants are tuned."""
    patterns = (f'*/{TUNING}', '*/tries/*/config.json', '*/*/config.json')
    return exists(root) and any(itertools.chain.from_iterable(map(root.glob, patterns)))


def _flat(tune: Mapping[str, Any] | None) -> dict[str, Any]:
    if not tune:
        return {}
    metric = tune['metric']
    return {
        **{f'tune[{key!r}]': values for key, values in tune['values'].items()},
        'tune: metric': metric['label'],
        'tune: checkpoint': metric['checkpoint'],
        'tune: seeds': len(tune['seeds']),
    }

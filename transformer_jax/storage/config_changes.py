"""The differences between two configurations, and which of them a run may continue with."""

import re
from collections.abc import Mapping
from typing import Any

from transformer_jax.storage.json_text import to_json

# Keys (or groups, ending in a dot) that may change between the runs of one workdir: no update
# depends on them beyond the order of floating-point sums. Where the data lies may change: the data
# itself is compared, see `data.fingerprints`. Not among them are train.steps, on which many
# schedules depend, and parallel.mode, since pmap draws other dropout masks than jit.
MAY_CHANGE = (
    'parallel.mesh.',
    'parallel.rules',
    'model.remat',
    'checkpoint.',
    'train.log_every',
    'data.prefetch',
    'data.cache_dir',
    'data.source_dir',
)


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in which two flat configurations differ, each with 'key: old -> new'."""

    def value_text(flat: Mapping[str, Any], key: str) -> str:
        return to_json(flat[key]) if key in flat else '(absent)'

    def canonical(flat: Mapping[str, Any], key: str) -> str:
        # In a spec a name needs no quotes: talking='both' is talking=both.
        return re.sub(r"'([A-Za-z_]\w*)'", r'\1', value_text(flat, key))

    return {
        key: f'{key}: {value_text(old, key)} -> {value_text(new, key)}'
        for key in sorted(old.keys() | new.keys())
        if canonical(old, key) != canonical(new, key)
    }


def refused_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], steps_may_grow: bool
) -> list[str]:
    """Return 'key: old -> new' of each difference that a run cannot continue with.

    Args:
        old: a flat configuration.
        new: a later one.
        steps_may_grow: no update depends on `train.steps`, so that it may be larger than before.
    """

    def grew(key: str) -> bool:
        return steps_may_grow and key == 'train.steps' and old[key] <= new[key]

    changes = config_changes(old, new)
    return [line for key, line in changes.items() if not may_change(key) and not grew(key)]


def may_change(key: str) -> bool:
    """Whether a key may have another value when a run is resumed, see MAY_CHANGE."""
    return any(
        key.startswith(allowed) if allowed.endswith('.') else key == allowed
        for allowed in MAY_CHANGE
    )

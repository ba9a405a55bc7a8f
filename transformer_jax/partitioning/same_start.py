"""All processes of a job must begin alike: configuration, flags, devices, settings and code.

Otherwise each would compute steps of its own, and the sums over all of them would be those of a
model that no configuration describes.
"""

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from transformer_jax import outside
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.processes import KeyValues
from transformer_jax.schema import ExperimentConfig, flatten
from transformer_jax.storage.jax_settings import jax_settings
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.provenance import package_versions

# Keys of which each process has its own: no number depends on them.
OWN_KEYS = ('data.cache_dir', 'data.prefetch')
MOST_NAMED = 4  # processes that a message lists

_starts = itertools.count()


def require_same_start(facts: Mapping[str, Any]) -> None:
    """Raise ConfigError on all processes, where they do not begin alike.

    The message names what differs, with the processes. Every process must call this.

    Args:
        facts: what all must have alike, as JSON values: keys of a configuration, flags. The code
            and the versions of packages are compared too.
    """
    if jax.process_count() == 1:
        return
    keys = KeyValues(f'start/{next(_starts)}')
    keys.offer(str(jax.process_index()), to_json({**facts, **_code()}))
    found = [
        parse_json(keys.wait_for(str(index)), f'what process {index} says', {}, 'start all again')
        for index in range(jax.process_count())
    ]
    differences = describe_differences(found)
    if differences:
        raise ConfigError(
            f'the processes of a run must be started alike, these differ: {"; ".join(differences)}'
        )


def describe_differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what differs between processes, 'key: value (process 0), value (processes 1, 2)'."""
    lines = []
    for key in dict.fromkeys(key for facts in found for key in facts):
        values: dict[str, list[int]] = {}
        for index, facts in enumerate(found):
            text = to_json(facts[key]) if key in facts else '(absent)'
            values.setdefault(text, []).append(index)
        if len(values) > 1:
            lines.append(
                f'{key}: ' + ', '.join(f'{text} ({_named(of)})' for text, of in values.items())
            )
    return lines


def _named(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f'process {indices[0]}'
    more = len(indices) - MOST_NAMED
    shown = ', '.join(map(str, indices[:MOST_NAMED]))
    return f'processes {shown}{f" and {more} more" if more > 0 else ""}'


def shared_keys(config: ExperimentConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that all processes must have alike."""
    return {key: value for key, value in flatten(config).items() if key not in OWN_KEYS}


def _code() -> dict[str, str]:
    versions = {f'version of {package}': text for package, text in package_versions().items()}
    code = {'code': _code_hash()} | {f'code of {name}': h for name, h in outside.sources().items()}
    # JAX fails at the first collective where the processes have not as many devices.
    devices = f'{jax.local_device_count()} x {jax.local_devices()[0].device_kind}'
    settings = {name.upper(): value for name, value in jax_settings().items()}
    return {'devices of a process': devices} | settings | code | versions


@functools.cache
def _code_hash() -> str:
    """Hash the source of the package, which a process may have imported from another copy."""
    root, sha256 = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob('*.py')):
        sha256.update(f'{file.relative_to(root)}\n'.encode() + file.read_bytes())
    return f'sha256 {sha256.hexdigest()[:16]}'

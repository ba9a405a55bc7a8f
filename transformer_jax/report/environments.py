"""The environments of the runs of a table in words, and in what they differ."""

import collections
from collections.abc import Mapping
from typing import Any

from transformer_jax.report.run_groups import NOT_RECORDED, fact_of, name_runs
from transformer_jax.report.tables import Report, Result

# Of an environment in `facts`: its keys -> what a difference is called.
_PARTS = {
    'python': 'Python',
    'os': 'operating system',
    'devices': 'devices',
    'packages_sha256': 'packages',
    'flags': 'flags',
    'settings': 'settings of JAX',
}


def environment(report: Report) -> str:
    """Say in which environments the runs were trained, and in what these differ."""
    whose: dict[str, list[Result]] = collections.defaultdict(list)
    found: dict[str, Mapping[str, Any]] = {}
    without = []
    for run in report.runs:
        environments = fact_of(run, 'environments', [])
        if not environments:
            without.append(run)
        for one in environments:
            key = repr([one[part] for part in _PARTS])
            found[key] = one
            whose[key].append(run)
    if not found:
        return NOT_RECORDED
    parts = [
        _environment_words(one) + ('' if len(found) == 1 else f' ({name_runs(report, whose[key])})')
        for key, one in found.items()
    ]
    if without:
        parts.append(f'{NOT_RECORDED} ({name_runs(report, without)})')
    if len(found) == 1:
        return '; '.join(parts) + ('' if without else '; the same in all runs')
    apart = [
        words
        for part, words in _PARTS.items()
        if len({repr(one[part]) for one in found.values()}) > 1
    ]
    return f'{len(found)} that differ in {", ".join(apart)}: {"; ".join(parts)}'


def _environment_words(one: Mapping[str, Any]) -> str:
    count = 'an unknown number of' if one['packages'] is None else one['packages']
    flags = ', '.join(f'{name}={value}' for name, value in one['flags'].items()) or 'no flags'
    return (
        f'Python {one["python"]} on {one["os"]}, {one["devices"] or "unknown devices"}, {count} '
        f'packages (SHA-256 of the list {one["packages_sha256"]}), {flags}'
    )

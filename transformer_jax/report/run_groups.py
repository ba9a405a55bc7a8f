"""Runs by what is recorded of them, and how they are named: 'all runs', 'base (seeds 0, 1)'."""

import collections
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from transformer_jax.ablation.run_facts import sound_facts
from transformer_jax.report.tables import Report, Result

NOT_RECORDED = 'not recorded'


def fact_of(run: Result, key: str, default: Any) -> Any:
    """Return one of the `facts` of a run, or a default where it is not recorded."""
    return sound_facts(run).get(key, default)


def group_runs(report: Report, find: Callable[[Result], Hashable]) -> dict[Any, str]:
    """Group the runs by what is found of them: {value: 'all runs'}, or which runs they are."""
    groups = collections.defaultdict(list)
    for run in report.runs:
        groups[find(run)].append(run)
    return {value: name_runs(report, runs) for value, runs in groups.items()}


def name_runs(report: Report, runs: Sequence[Result]) -> str:
    """Name some runs by their variants, with seeds where other seeds are not among them."""
    if len(runs) == len(report.runs):
        return 'all runs'
    own, every = (_seeds_by_folder(some) for some in (runs, report.runs))
    names = collections.defaultdict(list)
    for variant, entry in report.experiment['variants'].items():
        names[entry['folder']].append(variant)
    parts = []
    for folder, some in own.items():
        numbered = f' (seeds {", ".join(map(str, some))})' if some != every[folder] else ''
        parts.append(f'{", ".join(names[folder])}{numbered}')
    return '; '.join(parts)


def _seeds_by_folder(runs: Iterable[Result]) -> dict[str, list[int]]:
    found = collections.defaultdict(list)
    for run in runs:
        found[run['folder']].append(run['seed'])
    return found


def config_of(report: Report, run: Result) -> Mapping[str, Any]:
    """Return the configuration of a run, flat."""
    entries = report.experiment['variants'].values()
    return next(entry['config'] for entry in entries if entry['folder'] == run['folder'])

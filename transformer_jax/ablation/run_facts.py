"""What a reviewer asks of one run, gathered from the files of its workdir.

`results.collect` adds it to each run, as `facts`, so that results.json alone answers. A file that
is missing or damaged leaves out what it would have said, and is named; no run is lost by it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from transformer_jax.ablation.field_types import is_finite
from transformer_jax.errors import WorkdirError
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.storage.json_files import (
    NUMBER,
    Optional,
    find_misfit,
    read_json_if_there,
)
from transformer_jax.storage.json_text import decode_non_finite
from transformer_jax.storage.metrics_writer import read_sound_events

HASH = 64  # hexadecimal digits of a SHA-256
BEST, LAST = 'best', 'last'
# Of run.json: what of an environment is kept beside the hash of its packages.
_ENVIRONMENT = {
    'python': str,
    'os': str,
    'packages_sha256': str,
    'packages': Optional({str: str}),
    'flags': {str: str},
}
_SPLITS = {str: str}
_EVALUATION = {'split': str, 'steps': [int]}
# Of `facts` in results.json; each is left out where it was not recorded.
SHAPES = {
    'splits': _SPLITS,
    'environments': [
        {
            'python': str,
            'os': str,
            'packages_sha256': str,
            'packages': (int, None),
            'flags': {str: str},
            'devices': (str, None),
            'settings': (dict, None),
        }
    ],
    'validation': {str: NUMBER},
    'evaluations': int,
    'damaged': [str],
}


def run_facts(
    workdir: epath.Path,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    best_metric: str,
) -> dict[str, Any]:
    """Gather the facts of a run that was scored.

    Args:
        workdir: of the run.
        result: the content of its result.json.
        metrics: those of experiment.json.
        best_metric: its `evaluate.best_metric`; '' where that is unknown.

    Returns:
        `splits`: split -> SHA-256; `environments`: of all starts, each once, with devices and
        settings of JAX; `validation`: label of a test metric -> the value on the validation split
        at the checkpoints that were scored; `evaluations`: how many training made; `damaged`: the
        names of files that could not be used. What is not recorded is left out.
    """
    damaged: list[str] = []
    starts = _read(workdir / 'run.json', damaged)
    made = _read(workdir / 'evaluations.json', damaged)
    logged = read_sound_events(workdir / 'metrics.jsonl')
    events = [event for event in logged if event['split'] == 'validation']
    facts = {
        'splits': _splits(starts, made, result, damaged),
        'environments': _environments(starts, damaged),
        'validation': {
            metric['label']: value
            for metric in metrics
            if (value := _validation(metric, metrics, result, made, events)) is not None
        },
        'damaged': sorted(set(damaged)),
    }
    if best_metric and logged:
        values = [decode_non_finite(event.get(best_metric)) for event in events]
        facts['evaluations'] = sum(isinstance(value, int | float) for value in values)
    return {key: value for key, value in facts.items() if value or key == 'evaluations'}


def sound_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `facts` of a run as results.json has them, without those of another shape."""
    facts = run.get('facts')
    if not isinstance(facts, dict):
        return {}
    return {
        key: facts[key]
        for key, shape in SHAPES.items()
        if key in facts and not find_misfit(facts[key], shape)
    }


def _read(path: epath.Path, damaged: list[str]) -> list[dict[str, Any]]:
    try:
        return read_json_if_there(path, [dict], 'restore it') or []
    except WorkdirError:
        damaged.append(path.name)
        return []


def _splits(
    starts: Sequence[Mapping[str, Any]],
    made: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    damaged: list[str],
) -> dict[str, str]:
    """Return split -> SHA-256, of the last start that trained and of the last scoring."""
    splits: dict[str, Any] = {}
    for evaluation in made:
        if 'split_sha256' in evaluation and isinstance(evaluation.get('split'), str):
            splits[evaluation['split']] = evaluation['split_sha256']
    splits |= result.get('splits', {})
    for start in starts:
        recorded = start.get('splits', {})
        if find_misfit(recorded, _SPLITS):
            damaged.append('run.json')
        else:
            splits |= recorded
    return {split: value for split, value in splits.items() if _is_hash(value)}


def _is_hash(value: Any) -> bool:
    digits = set('0123456789abcdef')
    return isinstance(value, str) and len(value) == HASH and set(value) <= digits


def _environments(starts: Sequence[Mapping[str, Any]], damaged: list[str]) -> list[dict[str, Any]]:
    """Return the environments of all starts, each once, with the number of their packages."""
    counts: dict[str, int] = {}
    found: list[dict[str, Any]] = []
    for start in starts:
        if 'environment' not in start:
            continue
        environment = start['environment']
        if find_misfit(environment, _ENVIRONMENT):
            damaged.append('run.json')
            continue
        digest = environment['packages_sha256']
        if 'packages' in environment:
            counts[digest] = len(environment['packages'])
        devices, settings = start.get('devices'), start.get('settings')
        short = {key: environment[key] for key in ('python', 'os', 'packages_sha256', 'flags')} | {
            'packages': counts.get(digest),
            'devices': devices if isinstance(devices, str) else None,
            'settings': settings if isinstance(settings, dict) else None,
        }
        if short not in found:
            found.append(short)
    return found


def _validation(
    metric: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    made: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
) -> float | None:
    """Return the value of a test metric on the validation split, at the same checkpoints.

    It is that of a metric of the experiment, else of an evaluation of these checkpoints, else of
    the evaluation during training at this step; None where there is none of them.
    """
    steps = result.get('checkpoints', {}).get(metric['label'])
    if metric['split'] != 'test' or METRICS[metric['name']].timed or not steps:
        return None
    alike = [
        other['label']
        for other in metrics
        if (other['name'], other['length'], other.get('part', ''), other['split'])
        == (metric['name'], metric['length'], metric.get('part', ''), 'validation')
        and result.get('checkpoints', {}).get(other['label']) == steps
    ]
    found = [result['scores'].get(label) for label in alike]
    if not metric['length']:
        found += [
            one.get(metric['name'])
            for one in reversed(made)
            if not find_misfit(one, _EVALUATION)
            and (one['split'], one['steps']) == ('validation', list(steps))
        ]
        if len(steps) == 1:
            found += [event.get(metric['name']) for event in events if event['step'] == steps[0]][
                ::-1
            ]
    return next((value for value in found if is_finite(value) and math.isfinite(value)), None)

"""The shapes of an ablation's files, and what else their readers rely on."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.ablation.choices import CHOICE, TUNE
from transformer_jax.ablation.claims import read_claim
from transformer_jax.ablation.experiment import MATCHES
from transformer_jax.ablation.field_types import is_finite
from transformer_jax.ablation.seed_values import references_of
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.storage.config_versions import migrate_flat_config
from transformer_jax.storage.json_files import NUMBER, Optional, find_misfit
from transformer_jax.storage.json_text import decode_non_finite

# Keys of a result.json that are numbers; None where nothing was measured.
COSTS = (
    'params',
    'non_embedding_params',
    'flops',
    'step_seconds',
    'step_spread',
    'memory_bytes',
    'wall_seconds',
)
# The same, in the results of later versions.
LATER_COSTS = ('mfu', 'goodput', 'state_bytes', 'state_length')
# The keys of a result.json whose values are objects, by metric or by split.
BY_METRIC = ('scores', 'examples', 'lengths', 'checkpoints', 'selected', 'splits')
_COST = (*NUMBER, None)
_RESULT = {
    'seed': int,
    **dict.fromkeys(COSTS, _COST),
    **dict.fromkeys(('step_spread', *LATER_COSTS), Optional(_COST)),
    'steps': int,
    'step': int,
    'machine': ({'versions': Optional(dict)}, str, None),
    'commit': (str, None),
    'date': str,
    'scores': dict,
    'examples': Optional({str: str}),
    'lengths': Optional({str: [int]}),
    'checkpoints': Optional({str: [int]}),
    'selected': Optional({str: str}),
    'splits': Optional({str: str}),
}
_OUTLINE = {'metrics': [dict], 'published': [dict], 'variants': {str: {'config': dict}}}
_METRIC = {
    'name': str,
    'split': str,
    'checkpoint': str,
    'length': int,
    'part': Optional(str),
    'lower_is_better': bool,
    'label': str,
}
_PUBLISHED = {
    'source': str,
    'measure': str,
    'metric': str,
    'values': {str: NUMBER},
    'lower_is_better': bool,
}
_VARIANT = {
    'folder': str,
    'config': {'train.steps': int},
    'matched': Optional(({str: NUMBER}, None)),
    'tuning': Optional(CHOICE),
}
_CLAIM = {
    'text': str,
    'metric': str,
    'variant': [str],
    'against': str,
    'direction': str,
    'margin': (*NUMBER, None),
    'over': str,
    'stated': {'commit': (str, None), 'date': str, 'seeds': int, 'runs': int},
    'withdrawn': bool,
}
_LOOKS = {
    'planned': int,
    'taken': [{'seeds': int, 'date': str, 'commit': (str, None)}],
}
_PLANNED_CLAIM = {
    'text': str,
    'pair': [str],
    'difference': NUMBER,
    'from': str,
    'step': NUMBER,
    'sd': NUMBER,
    'seeds': (int, None),
    'power': {str: NUMBER},
    'half_width': {str: NUMBER},
}
_PILOT = {
    'seeds': int,
    'date': str,
    'commit': (str, None),
    'planned': int,
    'budget': _COST,
    'seconds_per_seed': _COST,
    'claims': [_PLANNED_CLAIM],
}
_DIFFERENCE = {'what': str, 'paper': str, 'here': str}
_EXPERIMENT = {
    'file': str,
    'overrides': Optional(dict),
    'claim': str,
    'claims': Optional([_CLAIM]),
    'looks': Optional(_LOOKS),
    'pilot': Optional((_PILOT, None)),
    'differences': Optional([_DIFFERENCE]),
    'reference': (str, {str: str}),
    'metrics': [_METRIC],
    'published': [_PUBLISHED],
    'axis': ({'label': str, 'points': {str: list}}, None),
    'match': str,
    'tune': Optional((TUNE, None)),
    'seeds': [int],
    'variants': {str: _VARIANT},
}


def read_result(result: Any) -> tuple[dict[str, Any], str]:
    """Return the content of a result.json, with None for costs that are not finite, and its fault.

    The fault is '' where there is none.
    """
    if not isinstance(result, dict):
        return {}, 'it is not an object'
    known = (*COSTS, *LATER_COSTS)
    written = [key for key in known if isinstance(decode_non_finite(result.get(key)), float)]
    decoded = result | {key: None for key in written if not is_finite(result[key])}
    fault = find_misfit(decoded, _RESULT)
    costs = [key for key in known if not (decoded.get(key) is None or is_finite(decoded[key]))]
    return decoded, fault or (f'{costs[0]!r} is not a finite number' if costs else '')


def migrate_experiment(experiment: Any) -> str:
    """Bring the content of an experiment.json to its present form; return its fault, '' if none."""
    if fault := find_misfit(experiment, _OUTLINE):
        return fault
    for entry in (*experiment['metrics'], *experiment['published']):
        if 'falling' in entry:  # Its name in version 1.
            entry['lower_is_better'] = entry.pop('falling')
    for variant in experiment['variants'].values():
        variant['config'] = migrate_flat_config(variant['config'])
    return find_misfit(experiment, _EXPERIMENT) or _contradiction(experiment)


def _contradiction(experiment: Mapping[str, Any]) -> str:
    """Say which parts of an experiment.json of the right shape do not fit together."""
    variants, labels = experiment['variants'], [entry['label'] for entry in experiment['metrics']]
    if not variants or not labels or not all(entry['folder'] for entry in variants.values()):
        return 'it lacks variants, their folders or metrics'
    if experiment['match'] not in MATCHES:
        return f"'match' is {experiment['match']!r}"
    for entry in experiment['metrics']:
        if entry['name'] not in METRICS:
            return f'the metric {entry["name"]!r} is unknown'
    for entry in experiment['published']:
        numbers = entry['values'].items()
        if odd := [name for name, value in numbers if name not in variants or not is_finite(value)]:
            return f'published numbers of {odd[0]!r}, which is no variant or has no finite number'
        if entry['metric'] not in labels:
            return f'published numbers by {entry["metric"]!r}, which is no metric'
    axis = experiment['axis'] or {'points': {}}
    lines = [point[0] for point in axis['points'].values() if point]
    for entry in experiment.get('claims', ()):
        try:
            claim = read_claim(entry)
            if not entry['withdrawn']:
                claim.check_names(variants, lines, labels)
        except ConfigError as error:
            return str(error)
    for name, point in (experiment['axis'] or {'points': {}})['points'].items():
        line, x = point if len(point) == 2 else (None, None)
        if name not in variants or not isinstance(line, str) or not is_finite(x):
            return f'the point of {name!r} on the axis is {point}'
    try:
        references_of(variants, experiment['reference'])
    except ValueError as error:
        return str(error)
    return ''

"""Names of metrics for people, as figures show them: 'BLEU (test)', 'loss (training)'."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.evaluation.metrics import METRICS

# What training logs beside the metrics of evaluations.
LOGGED = {'nll': 'loss without smoothing', 'grad_norm': 'norm of the gradient'}
SPLITS = {'train': 'training'}


def metric_name(metric: Mapping[str, Any]) -> str:
    """Name a metric of an experiment, 'accuracy (test, length 40)', 'seconds per step'."""
    kind = METRICS[metric['name']]
    if kind.timed:
        return kind.label
    part = f' of {metric["part"]}' if metric.get('part') else ''
    length = f', length {metric["length"]}' if metric.get('length') else ''
    return f'{kind.label}{part} ({metric["split"]}{length})'


def curve_name(name: str) -> str:
    """Name a learning curve: 'validation bleu' is 'BLEU (validation)'."""
    split, _, key = name.partition(' ')
    label = METRICS[key].label if key in METRICS else LOGGED.get(key, key.replace('_', ' '))
    return f'{label} ({SPLITS.get(split, split)})'


def higher_is_better(name: str) -> bool:
    """Tell curves of scores, which have an upper bound, from those that may span decades."""
    key = name.partition(' ')[2]
    return key in METRICS and not METRICS[key].lower_is_better

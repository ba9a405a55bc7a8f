"""By which rule the checkpoint of a score was chosen, in words."""

import collections
from collections.abc import Mapping
from typing import Any

from transformer_jax.ablation.run_facts import BEST, LAST
from transformer_jax.report.run_groups import NOT_RECORDED, config_of, fact_of, group_runs
from transformer_jax.report.tables import Report, Result

EVALUATES = ('evaluate.every', 'evaluate.every_epochs')


def selection(report: Report, metric: Mapping[str, Any]) -> str:
    """Say by which rule the checkpoint of a metric was chosen."""
    counts: dict[str, set[int]] = collections.defaultdict(set)

    def rule(run: Result) -> str:
        config, made = config_of(report, run), fact_of(run, 'evaluations', None)
        words = _rule(metric['checkpoint'], config, made)
        if made is not None:
            counts[words].add(made)
        return words

    groups = group_runs(report, rule)
    said = []
    for words, whose in groups.items():
        if words.startswith('the best') and words in counts:
            low, high = min(counts[words]), max(counts[words])
            number = f'{low} to {high}' if low != high else f'{low}'
            words += f' of {number} evaluation{"" if high == 1 else "s"}'
        elif words.startswith('the best'):
            words += f' (of how many evaluations: {NOT_RECORDED})'
        said.append(words if len(groups) == 1 else f'{words} ({whose})')
    return '; '.join(said) or NOT_RECORDED


def _rule(checkpoint: str, config: Mapping[str, Any], made: int | None) -> str:
    """Return the words of `Metric.checkpoint` for a run that has made so many evaluations."""
    if checkpoint.startswith('avg:'):
        return f'the average of the last {checkpoint.removeprefix("avg:")} checkpoints'
    if not checkpoint and made is None and not all(key in config for key in EVALUATES):
        return f'the best by validation, or the last one (which: {NOT_RECORDED})'
    evaluates = bool(made) if made is not None else any(config.get(key) for key in EVALUATES)
    if (checkpoint or (BEST if evaluates else LAST)) == LAST:
        return 'the last checkpoint'
    known = 'evaluate.best_metric' in config
    return f'the best validation {config["evaluate.best_metric"]}' if known else 'the best'

"""What a reviewer asks of a table, in words: data, checkpoints, compute, seeds, environment.

All of it comes from results.json; what an earlier version did not record is said to be so.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.ablation.compute import OUTSIDE, SECONDS, SOUND, UNFINISHED
from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report import numbers
from transformer_jax.report.environments import environment
from transformer_jax.report.run_groups import NOT_RECORDED, fact_of, group_runs
from transformer_jax.report.seed_sources import FIXED, seed_sources
from transformer_jax.report.selection import EVALUATES, selection
from transformer_jax.report.tables import Report

DIFFERENCE_HEADS = ('what', 'in the paper', 'here')
FINGERPRINT_HEADS = ('split', 'SHA-256 of its examples', 'runs')
DETERMINISM = (
    'On the same devices and versions, a run that was stopped and resumed has bit for bit the '
    'parameters, optimizer state and order of the data of one that was not. Another number of '
    'devices, platform or version, or seeds side by side in one program, adds floating-point '
    'numbers in another order, so that such runs agree up to rounding only: '
    'docs/explanation/exact-resume.md.'
)


def difference_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return (what, in the paper, here) of each difference that the experiment states."""
    return [
        (each['what'], each['paper'], each['here'])
        for each in report.experiment.get('differences', ())
    ]


def difference_note(report: Report) -> str:
    """Say why there is no table of differences; '' where there is one."""
    if 'differences' not in report.experiment:
        return f'Differences from the paper: {NOT_RECORDED}.'
    return '' if difference_rows(report) else 'The experiment states none.'


def fingerprint_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return (split, SHA-256, which runs) of each content that a split has had."""
    rows = []
    for split in SPLITS:
        groups = group_runs(report, lambda run, key=split: fact_of(run, 'splits', {}).get(key))
        if not groups or (set(groups) == {None} and not _reads(report, split)):
            rows.append((split, NOT_RECORDED if not groups else 'not read', numbers.NONE))
            continue
        rows += [(split, found or NOT_RECORDED, whose) for found, whose in groups.items()]
    return rows


def answers(report: Report) -> Iterator[tuple[str, str]]:
    """Yield (question, answer): checkpoints, validation, compute, seeds, environment, bits."""
    for metric in report.experiment['metrics']:
        if not METRICS[metric['name']].timed:
            yield f'checkpoint of {metric["label"]}', selection(report, metric)
    if tested := [metric for metric in report.experiment['metrics'] if _has_test(metric)]:
        yield 'validation beside test', _validation(report, tested)
    yield 'compute', compute(report)
    yield 'varies with the seed', seeds(report)
    yield 'environment', environment(report)
    yield 'determinism', DETERMINISM
    if damaged := _damaged(report):
        yield 'damaged files', f'{", ".join(damaged)}: what they would say is not recorded'


def compute(report: Report) -> str:
    """Say what all runs have cost, those that failed and were withdrawn included."""
    spent = report.compute
    if spent is None:
        return NOT_RECORDED
    parts = [spent[SOUND], spent[UNFINISHED], spent[OUTSIDE]]
    whole = {key: sum(part[key] for part in parts) for key in parts[0]}
    kinds = ', '.join(f'{key} {numbers.seconds(whole[key])}' for key in SECONDS)
    said = f'{_time(whole)} in {_runs(whole["runs"])} ({kinds}), {_flops(whole)}'
    lost = (
        (UNFINISHED, 'failed, stopped or unfinished'),
        (OUTSIDE, 'of withdrawn variants or otherwise not in the table'),
    )
    included = [
        f'{_runs(spent[key]["runs"])} {words}: {_time(spent[key])}'
        for key, words in lost
        if spent[key]['runs']
    ]
    return f'{said}; {"of it " + "; ".join(included) if included else "no run failed"}'


def seeds(report: Report) -> str:
    """Say what varies with the seed, of each variant by its configuration."""
    experiment = report.experiment
    whose: dict[tuple[str, ...] | None, list[str]] = collections.defaultdict(list)
    for name, entry in experiment['variants'].items():
        whose[seed_sources(entry['config'], experiment['metrics'])].append(name)
    said = {
        found: NOT_RECORDED if found is None else ', '.join(found) or 'nothing' for found in whose
    }
    if len(whose) == 1:
        [words] = said.values()
        return words if words == NOT_RECORDED else f'{words}. {FIXED}'
    parts = [f'{said[found]} ({", ".join(names)})' for found, names in whose.items()]
    return f'{"; ".join(parts)}. {FIXED}'


def _has_test(metric: Mapping[str, Any]) -> bool:
    return metric['split'] == 'test' and not METRICS[metric['name']].timed


def _reads(report: Report, split: str) -> bool:
    """Whether the runs read a split: in training, or to be scored."""
    metrics = report.experiment['metrics']
    if any(m['split'] == split and not METRICS[m['name']].timed for m in metrics):
        return True
    configs = [entry['config'] for entry in report.experiment['variants'].values()]
    evaluates = any(config.get(key, True) for config in configs for key in EVALUATES)
    return split == 'train' or (split == 'validation' and evaluates)


def _validation(report: Report, metrics: Sequence[Mapping[str, Any]]) -> str:
    """Say for which test metrics the table has a value on the validation split."""
    said = []
    for metric in metrics:
        label = metric['label']
        known = sum(label in fact_of(run, 'validation', {}) for run in report.runs)
        if not known:
            said.append(f'{label}: {NOT_RECORDED}')
        elif known < len(report.runs):
            said.append(f'{label}: {known} of {len(report.runs)} runs')
        else:
            said.append(f'{label}: all runs')
    return f'at the checkpoints that were scored; {"; ".join(said)}'


def _runs(count: int) -> str:
    return f'{count} run{"" if count == 1 else "s"}'


def _time(part: Mapping[str, float]) -> str:
    return numbers.seconds(sum(part[key] for key in SECONDS))


def _flops(part: Mapping[str, float]) -> str:
    lacking = part['without_flops']
    if not part['flops']:
        return f'FLOPs {NOT_RECORDED}'
    rest = f', of {_runs(int(lacking))} {NOT_RECORDED}' if lacking else ''
    return f'{numbers.count(part["flops"])} FLOPs of training steps{rest}'


def _damaged(report: Report) -> list[str]:
    """Name the files that could not be used: 'base/0/run.json'."""
    of_runs = [
        f'{run["folder"]}/{run["seed"]}/{name}'
        for run in report.runs
        for name in fact_of(run, 'damaged', [])
    ]
    return [*of_runs, *(report.compute['damaged'] if report.compute else [])]

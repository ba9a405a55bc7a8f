"""What the results of an ablation say: for each metric a row a variant, its uncertainty, its
verdict and its cost.
"""

import collections
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from transformer_jax.ablation import statistics as stats
from transformer_jax.ablation.bootstrap import Resampled, bootstrap
from transformer_jax.ablation.rank_agreement import RankAgreement, rank_agreement
from transformer_jax.ablation.results import SENTENCES, load_results
from transformer_jax.ablation.statistics import Comparison, Runs, Summary
from transformer_jax.report.traces import Curve, Heads, read_curves, read_heads
from transformer_jax.storage.files import absolute_path

Result = Mapping[str, Any]  # a run's result.json


class Cost(NamedTuple):
    """What a variant takes; None where nothing was measured."""

    params: int | None = None
    non_embedding_params: int | None = None
    flops: float | None = None  # forward, per target token
    step_seconds: float | None = None  # the median over runs
    memory_bytes: float | None = None  # the most of any run
    wall_seconds: float | None = None  # the mean over runs
    matched: Mapping[str, Any] = {}  # what was solved for, {'model.d_ff': 240}, and the 'residual'


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """A variant by one metric."""

    variant: str
    reference: str  # the variant that it is compared with
    values: Runs  # of the sound runs
    planned: int
    cost: Cost
    summary: Summary
    comparison: Comparison | None = None  # None: it is a reference, or has its runs, or nothing
    resampled: Resampled | None = None  # over sentences, where those are there
    same_as: str = ''  # the earlier variant with the same config, whose runs these are

    @property
    def verdict(self) -> str:
        """better, worse, open (not distinguishable), untested, missing (no sound run), reference or
        same (its runs).
        """
        if not self.values:
            return 'missing'
        if self.comparison is None:
            return 'same' if self.same_as else 'reference'
        return {'not distinguishable': 'open', 'not tested': 'untested'}.get(
            self.comparison.verdict, self.comparison.verdict
        )


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper's numbers beside ours."""

    source: str
    measure: str
    values: Mapping[str, float]
    sides: Mapping[
        str, str
    ]  # variant -> agrees, contradicts; same sign, other sign where ours is not clear
    agreement: RankAgreement


@dataclasses.dataclass(frozen=True)
class Table:
    """All variants by one metric."""

    label: str
    lower_is_better: bool
    rows: tuple[VariantResult, ...]
    papers: tuple[Paper, ...]
    sentences: int = 0  # that were resampled

    @property
    def references(self) -> list[str]:
        """The variants that others are compared with: one, or a line along an axis."""
        return list(dict.fromkeys(row.reference for row in self.rows))

    @property
    def reference(self) -> str:
        """'softmax', or where there are several, how to find that of a variant."""
        return (
            self.references[0]
            if len(self.references) == 1
            else 'the reference at the same point of the axis'
        )

    def row(self, variant: str) -> VariantResult:
        """That of a variant."""
        return next(row for row in self.rows if row.variant == variant)


class Missing(NamedTuple):
    """Runs that are not there, for the same reason; `variants` share a folder."""

    variants: list[str]
    seeds: list[int]
    why: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All that there is to say."""

    experiment: Mapping[str, Any]
    runs: Sequence[Result]  # sound ones
    tables: tuple[Table, ...]
    missing: tuple[Missing, ...]
    curves: Mapping[str, Mapping[str, Curve]]
    heads: Mapping[str, Heads]


class _Ablation(NamedTuple):
    """Results by folder: variants with the same config share one, and are compared once, by the
    name of the first.
    """

    experiment: Mapping[str, Any]
    runs: Mapping[str, Sequence[Result]]  # by folder, in the order of seeds
    firsts: Mapping[str, str]  # folder -> variant; a reference is the first of its own
    references: Mapping[str, str]  # variant -> that it is compared with
    root: epath.Path | None

    def first(self, variant: str) -> str:
        return self.firsts[self.experiment['variants'][variant]['folder']]


def analyze(path: epath.PathLike) -> Report:
    """The report of an ablation's root, or of its results.json, which has no curves, heads
    and sentences.

    Raises:
        ConfigError: it is neither.
        WorkdirError: it is damaged.
    """
    results, path = load_results(path), absolute_path(path)
    experiment = results['experiment']
    variants = experiment['variants']
    references = stats.references_of(variants, experiment['reference'])
    firsts = {
        variants[name]['folder']: name for name in (*reversed(variants), *references.values())
    }
    runs = {
        folder: sorted(
            (run for run in results['runs'] if run['folder'] == folder), key=lambda run: run['seed']
        )
        for folder in firsts
    }
    ablation = _Ablation(experiment, runs, firsts, references, path if path.is_dir() else None)
    gaps = collections.defaultdict(list)
    for gap in results['missing']:
        gaps[gap['folder'], gap['why']].append(gap['seed'])
    missing = tuple(
        Missing([name for name in variants if variants[name]['folder'] == folder], seeds, why)
        for (folder, why), seeds in gaps.items()
    )
    tables = tuple(_table(ablation, metric) for metric in experiment['metrics'])
    return Report(experiment, results['runs'], tables, missing, *_traces(ablation))


def _traces(ablation: _Ablation) -> tuple[dict, dict]:
    """Curves, those of validation by the first metric in front, and heads."""
    if ablation.root is None:
        return {}, {}
    places = {
        name: [(folder, run['seed']) for run in ablation.runs[folder]]
        for name, entry in ablation.experiment['variants'].items()
        if ablation.first(name) == name
        for folder in [entry['folder']]
    }
    curves = read_curves(ablation.root, places)
    first = [f'validation {metric["name"]}' for metric in ablation.experiment['metrics']]
    validation = [name for name in curves if name.startswith('validation')]
    order = [*first, *validation, 'train loss', *curves]
    return dict(sorted(curves.items(), key=lambda item: order.index(item[0]))), read_heads(
        ablation.root, places
    )


def _table(ablation: _Ablation, metric: Mapping[str, Any]) -> Table:
    experiment, label, lower_is_better = (
        ablation.experiment,
        metric['label'],
        metric['lower_is_better'],
    )
    values = {
        first: {run['seed']: run['scores'][label] for run in ablation.runs[folder]}
        for folder, first in ablation.firsts.items()
    }
    # In the order of the variants, which the draws of `agreement` depend on.
    values = {name: values[name] for name in experiment['variants'] if name in values}
    references = {name: ablation.first(ablation.references[name]) for name in values}
    comparisons = stats.compare(values, references, lower_is_better)
    sentences = _sentences(ablation, label)
    sentences = {name: found for name, found in sentences.items() if references[name] in sentences}
    resampled = bootstrap(sentences, references)
    rows = []
    for name, entry in experiment['variants'].items():
        first = ablation.first(name)
        rows.append(
            VariantResult(
                name,
                ablation.references[name],
                values[first],
                len(experiment['seeds']),
                _cost(entry.get('matched') or {}, ablation.runs[entry['folder']]),
                stats.summarize(values[first]),
                comparisons.get(first),
                resampled.get(first),
                '' if first == name else first,
            )
        )
    papers = tuple(
        _paper(ablation, entry, values, references, comparisons, lower_is_better)
        for entry in experiment['published']
        if entry['metric'] == label
    )
    count = len(next(iter(next(iter(sentences.values())).values()))) if resampled else 0
    return Table(label, lower_is_better, tuple(rows), papers, count)


def _sentences(ablation: _Ablation, label: str) -> dict[str, dict[int, list]]:
    """Variant -> seed -> what the score is made of; a variant of whose runs one lacks it is
    left out.
    """
    found: dict[str, dict[int, list]] = {}
    for folder, first in ablation.firsts.items():
        for run in ablation.runs[folder] if ablation.root else ():
            try:
                content = json.loads(
                    (ablation.root / folder / str(run['seed']) / SENTENCES).read_text()
                )
                found.setdefault(first, {})[run['seed']] = [list(row) for row in content[label]]
            except (OSError, ValueError, KeyError, TypeError):
                continue
    whole = {
        first: found[first]
        for folder, first in ablation.firsts.items()
        if first in found and len(found[first]) == len(ablation.runs[folder])
    }
    shapes = {
        (len(rows), *map(len, rows[:1])) for by_seed in whole.values() for rows in by_seed.values()
    }
    return (
        whole if len(shapes) == 1 else {}
    )  # Runs that were not scored on the same sentences cannot be paired.


def _paper(
    ablation: _Ablation,
    entry: Mapping[str, Any],
    values: Mapping[str, Runs],
    references: Mapping[str, str],
    comparisons: Mapping[str, Comparison],
    lower_is_better: bool,
) -> Paper:
    theirs, sides = {}, {}
    for name, value in entry['values'].items():
        theirs.setdefault(ablation.first(name), value)
    for name, value in entry['values'].items():
        first = ablation.first(name)
        comparison, home = comparisons.get(first), theirs.get(references[first])
        if home is None or value == home or comparison is None or comparison.difference is None:
            continue
        better = (value > home) != entry['lower_is_better']
        same = better == ((comparison.difference > 0) != lower_is_better)
        clear = comparison.verdict in ('better', 'worse')
        sides[name] = (
            ('agrees' if same else 'contradicts')
            if clear
            else 'same sign'
            if same
            else 'other sign'
        )
    return Paper(
        entry['source'],
        entry['measure'],
        entry['values'],
        sides,
        rank_agreement(values, theirs, references, lower_is_better, entry['lower_is_better']),
    )


def _cost(matched: Mapping[str, Any], runs: Sequence[Result]) -> Cost:
    def over(reduce: Callable[[Iterable[float]], float], key: str) -> float | None:
        measured = [run[key] for run in runs if run[key] is not None]
        return reduce(measured) if measured else None

    return Cost(
        over(max, 'params'),
        over(max, 'non_embedding_params'),
        over(max, 'flops'),
        over(statistics.median, 'step_seconds'),
        over(max, 'memory_bytes'),
        over(statistics.mean, 'wall_seconds'),
        matched,
    )

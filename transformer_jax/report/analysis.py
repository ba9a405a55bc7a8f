"""The analysis of an ablation's results: statistics, verdicts and costs of every variant."""

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from transformer_jax.ablation.bootstrap import bootstrap
from transformer_jax.ablation.compute import sound_compute
from transformer_jax.ablation.families import Family, families, first_names
from transformer_jax.ablation.looks import level
from transformer_jax.ablation.pilot import waits
from transformer_jax.ablation.rank_agreement import rank_agreement
from transformer_jax.ablation.results import SENTENCES, load_results
from transformer_jax.ablation.run_facts import sound_facts
from transformer_jax.ablation.seed_values import SeedValues, references_of
from transformer_jax.ablation.statistics import (
    DIFFERENT,
    NOT_TESTED,
    Comparison,
    Pair,
    summarize,
)
from transformer_jax.errors import WorkdirError
from transformer_jax.evaluation.metrics import METRICS
from transformer_jax.report.claims import judge_claims
from transformer_jax.report.tables import (
    Cost,
    MissingRuns,
    PaperNumbers,
    Report,
    Result,
    Side,
    Table,
    VariantResult,
)
from transformer_jax.report.traces import Curve, Heads, read_curves, read_heads
from transformer_jax.storage.json_files import NUMBER, read_json
from transformer_jax.storage.paths import absolute_path


class _Ablation(NamedTuple):
    """Results by folder.

    Variants with the same config share a folder; they are compared once, under the name of the
    first of them.

    Attributes:
        experiment: the content of experiment.json.
        runs: folder -> the sound results, in the order of seeds.
        firsts: folder -> the name that stands for it; a reference stands for its own folder.
        references: variant -> the one that it is compared with.
        root: of the ablation; None where only a results.json was given.
    """

    experiment: Mapping[str, Any]
    runs: Mapping[str, Sequence[Result]]
    firsts: Mapping[str, str]
    references: Mapping[str, str]
    root: epath.Path | None

    def first(self, variant: str) -> str:
        """The variant under whose name a variant is compared."""
        return self.firsts[self.experiment['variants'][variant]['folder']]


def analyze(path: epath.PathLike) -> Report:
    """Analyze the root of an ablation, or its results.json, which has no curves, heads, sentences.

    Raises:
        ConfigError: it is neither.
        WorkdirError: it is damaged.
    """
    results, path = load_results(path), absolute_path(path)
    experiment = results['experiment']
    variants, firsts = experiment['variants'], first_names(experiment)
    runs = {
        folder: sorted(
            (run for run in results['runs'] if run['folder'] == folder), key=lambda run: run['seed']
        )
        for folder in firsts
    }
    references = references_of(variants, experiment['reference'])
    ablation = _Ablation(experiment, runs, firsts, references, path if path.is_dir() else None)
    gaps = collections.defaultdict(list)
    for gap in results['missing']:
        gaps[gap['folder'], gap['why']].append(gap['seed'])
    missing = tuple(
        MissingRuns([name for name in variants if variants[name]['folder'] == folder], seeds, why)
        for (folder, why), seeds in gaps.items()
    )
    found = families(experiment, results['runs'])
    compared = {label: _compare(experiment, family) for label, family in found.items()}
    tables = tuple(
        _analyze_metric(ablation, metric, found[label].values, compared[label])
        for metric in experiment['metrics']
        for label in [metric['label']]
    )
    claims = judge_claims(experiment, compared)
    traces = _read_traces(ablation)
    compute = sound_compute(results)
    return Report(experiment, results['runs'], tables, missing, *traces, claims, compute)


def _compare(experiment: Mapping[str, Any], family: Family) -> dict[Pair, Comparison]:
    """Compare the pairs of a family; while a pilot waits for its seeds nothing is judged."""
    if why := waits(experiment):
        return {pair: Comparison(NOT_TESTED, reason=why) for pair in family.pairs}
    return family.compare(level(experiment))


def _read_traces(
    ablation: _Ablation,
) -> tuple[dict[str, dict[str, Curve]], dict[str, Heads]]:
    """Read curves, those of validation by the first metric in front, and attention heads."""
    if ablation.root is None:
        return {}, {}
    runs = {}
    for name, entry in ablation.experiment['variants'].items():
        if ablation.first(name) == name:
            folder = entry['folder']
            runs[name] = [(folder, run['seed']) for run in ablation.runs[folder]]
    curves = read_curves(ablation.root, runs)
    first = [f'validation {metric["name"]}' for metric in ablation.experiment['metrics']]
    validation = [name for name in curves if name.startswith('validation')]
    order = [*first, *validation, 'train loss', *curves]
    ordered = dict(sorted(curves.items(), key=lambda item: order.index(item[0])))
    return ordered, read_heads(ablation.root, runs)


def _analyze_metric(
    ablation: _Ablation,
    metric: Mapping[str, Any],
    values: Mapping[str, SeedValues],
    compared: Mapping[Pair, Comparison],
) -> Table:
    experiment, label = ablation.experiment, metric['label']
    lower_is_better = metric['lower_is_better']
    references = {name: ablation.first(ablation.references[name]) for name in values}
    comparisons = {name: compared[name, home] for name, home in references.items() if name != home}
    sentences = _read_sentences(ablation, label)
    sentences = {name: found for name, found in sentences.items() if references[name] in sentences}
    resampled = bootstrap(sentences, references)
    rows = []
    for name, entry in experiment['variants'].items():
        first = ablation.first(name)
        rows.append(
            VariantResult(
                variant=name,
                reference=ablation.references[name],
                values=values[first],
                planned=len(experiment['seeds']),
                cost=_cost(entry.get('matched') or {}, ablation.runs[entry['folder']]),
                summary=summarize(values[first]),
                comparison=comparisons.get(first),
                resampled=resampled.get(first),
                same_as='' if first == name else first,
                validation=_validation(ablation.runs[entry['folder']], label),
            )
        )
    papers = tuple(
        _compare_with_paper(ablation, entry, values, comparisons, lower_is_better)
        for entry in experiment['published']
        if entry['metric'] == label
    )
    count = len(next(iter(next(iter(sentences.values())).values()))) if resampled else 0
    scale = METRICS[metric['name']].scale
    at = level(experiment)
    return Table(label, lower_is_better, tuple(rows), papers, count, scale, at)


def _validation(runs: Sequence[Result], label: str) -> SeedValues:
    """Return the values on the validation split beside those of a test metric."""
    found = {run['seed']: sound_facts(run).get('validation', {}) for run in runs}
    return {seed: values[label] for seed, values in found.items() if label in values}


def _read_sentences(ablation: _Ablation, label: str) -> dict[str, dict[int, list]]:
    """Read variant -> seed -> what the score is made of, sentence by sentence.

    A variant with a run that lacks it is left out. {} where the runs were not scored on the same
    sentences, so that they cannot be paired.
    """
    found: dict[str, dict[int, list]] = {}
    if ablation.root is None:
        return found
    for folder, first in ablation.firsts.items():
        for run in ablation.runs[folder]:
            path = ablation.root / folder / str(run['seed']) / SENTENCES
            try:
                content = read_json(path, {label: [[NUMBER]]}, 'delete it')
            except WorkdirError:
                continue
            found.setdefault(first, {})[run['seed']] = content[label]
    whole = {
        first: found[first]
        for folder, first in ablation.firsts.items()
        if first in found and len(found[first]) == len(ablation.runs[folder])
    }
    shapes = {
        (len(rows), *sorted({*map(len, rows)}))
        for by_seed in whole.values()
        for rows in by_seed.values()
    }
    return whole if [len(shape) for shape in shapes] == [2] else {}


def _compare_with_paper(
    ablation: _Ablation,
    entry: Mapping[str, Any],
    values: Mapping[str, SeedValues],
    comparisons: Mapping[str, Comparison],
    lower_is_better: bool,
) -> PaperNumbers:
    """Put a paper's numbers next to ours; `entry` is one of `published` in experiment.json."""
    references = {name: ablation.first(ablation.references[name]) for name in values}
    theirs_lower_is_better = entry['lower_is_better']
    theirs, sides = {}, {}
    for name, value in entry['values'].items():
        theirs.setdefault(ablation.first(name), value)
    for name, value in entry['values'].items():
        first = ablation.first(name)
        comparison, home = comparisons.get(first), theirs.get(references[first])
        if home is None or value == home or comparison is None or comparison.difference is None:
            continue
        better_in_paper = (value > home) != theirs_lower_is_better
        same = better_in_paper == ((comparison.difference > 0) != lower_is_better)
        if comparison.verdict in DIFFERENT:
            sides[name] = Side.AGREES if same else Side.CONTRADICTS
        else:
            sides[name] = Side.SAME_SIGN if same else Side.OTHER_SIGN
    agreement = rank_agreement(
        values, theirs, references, lower_is_better, theirs_lower_is_better, comparisons
    )
    return PaperNumbers(entry['source'], entry['measure'], entry['values'], sides, agreement)


def _cost(matched: Mapping[str, Any], runs: Sequence[Result]) -> Cost:
    def over(reduce: Callable[[Iterable], Any], key: str) -> Any:
        measured = [run[key] for run in runs if run.get(key) is not None]
        return reduce(measured) if measured else None

    return Cost(
        params=over(max, 'params'),
        non_embedding_params=over(max, 'non_embedding_params'),
        flops=over(max, 'flops'),
        step_seconds=over(statistics.median, 'step_seconds'),
        step_spread=over(max, 'step_spread'),
        memory_bytes=over(max, 'memory_bytes'),
        wall_seconds=over(statistics.mean, 'wall_seconds'),
        mfu=over(statistics.median, 'mfu'),
        goodput=over(statistics.mean, 'goodput'),
        state_bytes=over(max, 'state_bytes'),
        state_length=over(max, 'state_length'),
        matched=matched,
    )

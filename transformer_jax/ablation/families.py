"""The families of an ablation: the comparisons that share one chance of a false verdict.

A metric is a family: all its rows, each against its reference, and all claims by it. A quantity
over the axis by which claims are made, a slope, is another.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation.claims import Claim, derive, read_claim
from transformer_jax.ablation.many_to_one import LEVEL
from transformer_jax.ablation.scales import PLAIN, SCALES, Scale
from transformer_jax.ablation.seed_values import SeedValues, references_of
from transformer_jax.ablation.statistics import NOT_TESTED, Comparison, Pair, compare_pairs
from transformer_jax.evaluation.metrics import METRICS


class Family(NamedTuple):
    """Values, and what is compared.

    Attributes:
        values: variant, or line of the axis -> seed -> value. Of variants with the same runs only
            one is there.
        margins: each pair that is compared -> the largest margin that a claim states for it, or 0.
        claimed: each pair that a claim names -> the pair that is compared for it.
        lower_is_better: whether a lower value is better.
        scale: on which runs are compared.
    """

    values: Mapping[str, SeedValues]
    margins: dict[Pair, float]
    claimed: dict[Pair, Pair]
    lower_is_better: bool
    scale: Scale

    @property
    def pairs(self) -> list[Pair]:
        """All pairs that are asked for, those of `margins` and those of `claimed`."""
        return list(dict.fromkeys([*self.margins, *self.claimed]))

    def compare(self, level: float = LEVEL) -> dict[Pair, Comparison]:
        """Compare all pairs, so that any verdict is false with the chance `level`."""
        found = compare_pairs(
            self.values, list(self.margins), self.lower_is_better, self.scale, self.margins, level
        )
        same = Comparison(NOT_TESTED, reason='they are the same runs')
        return found | {names: found.get(pair, same) for names, pair in self.claimed.items()}


def standing_claims(experiment: Mapping[str, Any]) -> list[Claim]:
    """List the claims of an experiment.json that were not withdrawn."""
    entries = experiment.get('claims', ())
    return [read_claim(entry) for entry in entries if not entry['withdrawn']]


def first_names(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Return folder -> the variant that stands for all that share it.

    A reference stands for its own folder, else the first variant does.
    """
    variants = experiment['variants']
    references = references_of(variants, experiment['reference'])
    names = (*reversed(variants), *references.values())  # the last assignment wins
    return {variants[name]['folder']: name for name in names}


def families(experiment: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Family]:
    """Make the families of an ablation by their labels: 'test loss', 'slope of test loss'.

    Args:
        experiment: the content of experiment.json.
        runs: the sound results, each with its `folder`, as of `results.load_results`.
    """
    found = {
        metric['label']: _of_metric(experiment, runs, metric) for metric in experiment['metrics']
    }
    for claim in standing_claims(experiment):
        if claim.over and claim.label not in found:
            found[claim.label] = _of_quantity(experiment, claim, found[claim.metric])
    return found


def _of_metric(
    experiment: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]
) -> Family:
    variants, label = experiment['variants'], metric['label']
    references = references_of(variants, experiment['reference'])
    firsts = first_names(experiment)
    stands_for = {name: firsts[entry['folder']] for name, entry in variants.items()}
    by_folder: dict[str, dict[int, float]] = {folder: {} for folder in firsts}
    for run in sorted(runs, key=lambda run: run['seed']):
        by_folder.setdefault(run['folder'], {})[run['seed']] = run['scores'][label]
    # In the order of the variants, which the draws of `rank_agreement` depend on.
    rows = [name for name in variants if stands_for[name] == name]
    claims = [
        claim for claim in standing_claims(experiment) if claim.metric == label and not claim.over
    ]
    claimed = {
        pair: (stands_for[pair[0]], stands_for[pair[1]])
        for claim in claims
        for pair in claim.pairs(experiment)
    }
    margins = {(name, stands_for[references[name]]): 0.0 for name in rows}
    for claim in claims:
        for pair in claim.pairs(experiment):
            margins[claimed[pair]] = max(claim.margin or 0.0, margins.get(claimed[pair], 0.0))
    return Family(
        {name: by_folder[variants[name]['folder']] for name in rows},
        {pair: margin for pair, margin in margins.items() if pair[0] != pair[1]},
        claimed,
        metric['lower_is_better'],
        SCALES[METRICS[metric['name']].scale],
    )


def _of_quantity(experiment: Mapping[str, Any], first: Claim, metric: Family) -> Family:
    """Make the family of all claims by the same quantity over the axis as `first`."""
    variants, firsts = experiment['variants'], first_names(experiment)
    values = {name: metric.values[firsts[entry['folder']]] for name, entry in variants.items()}
    margins: dict[Pair, float] = {}
    for claim in standing_claims(experiment):
        if claim.label == first.label:
            for pair in claim.pairs(experiment):
                margins[pair] = max(claim.margin or 0.0, margins.get(pair, 0.0))
    return Family(
        derive(first.over, experiment['axis'], values),
        margins,
        {pair: pair for pair in margins},
        metric.lower_is_better,
        PLAIN,
    )

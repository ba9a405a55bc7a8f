"""The claims of an experiment in a report: how each ended, and when it was stated."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation.claims import Claim, Outcome, derive, judge, read_claim
from transformer_jax.ablation.seed_values import SeedValues
from transformer_jax.ablation.statistics import Comparison, Pair, compare_pairs
from transformer_jax.report import numbers

MARKS = {
    Outcome.SUPPORTED: '✓',
    Outcome.CONTRADICTED: '✗',
    Outcome.EQUIVALENT: '=',
    Outcome.UNDECIDED: '?',
}
HEADS = ('claim', 'by', 'verdict', 'differences [95%]', 'stated')


class ClaimResult(NamedTuple):
    """A claim and how it ended.

    Attributes:
        claim: what was said.
        stated: when: commit, date, seeds, and the runs that had results by then.
        withdrawn: whether the experiment no longer has it.
        outcome: None of a claim that was withdrawn.
        seeds_needed: how many seeds would decide; None where that is not known.
        comparisons: what it was judged by.
    """

    claim: Claim
    stated: Mapping[str, Any]
    withdrawn: bool
    outcome: Outcome | None
    seeds_needed: int | None
    comparisons: Mapping[Pair, Comparison]

    @property
    def verdict(self) -> str:
        """The outcome in words: 'undecided (16 seeds would decide)'."""
        if self.outcome is None:
            return 'withdrawn'
        if self.outcome != Outcome.UNDECIDED:
            return str(self.outcome)
        needed = f'{self.seeds_needed} seeds would decide' if self.seeds_needed else ''
        return f'undecided ({needed or "more than 100 seeds would be needed"})'


def stated_claims(experiment: Mapping[str, Any]) -> list[tuple[Claim, Mapping[str, Any]]]:
    """List the claims that an experiment.json has, each with its record."""
    return [(read_claim(entry), entry) for entry in experiment.get('claims', ())]


def claimed_margins(experiment: Mapping[str, Any], label: str) -> dict[Pair, float]:
    """Return the pairs that claims compare by a metric, each with its largest margin or 0."""
    found: dict[Pair, float] = {}
    for claim, entry in stated_claims(experiment):
        if claim.metric == label and not claim.over and not entry['withdrawn']:
            for pair in claim.pairs(experiment):
                found[pair] = max(found.get(pair, 0.0), claim.margin or 0.0)
    return found


def judge_claims(
    experiment: Mapping[str, Any],
    values: Mapping[str, Mapping[str, SeedValues]],
    comparisons: Mapping[str, Mapping[Pair, Comparison]],
) -> tuple[ClaimResult, ...]:
    """Judge all claims.

    Args:
        experiment: the content of experiment.json.
        values: metric -> variant -> seed -> value.
        comparisons: metric -> pair -> its comparison.
    """
    lower = {metric['label']: metric['lower_is_better'] for metric in experiment['metrics']}
    families = {**comparisons}
    derived: dict[str, list[Claim]] = {}
    for claim, entry in stated_claims(experiment):
        if claim.over and not entry['withdrawn']:
            derived.setdefault(claim.label, []).append(claim)
    for label, claims in derived.items():
        first = claims[0]
        numbers_of = derive(first.over, experiment['axis'], values[first.metric])
        margins = {pair: c.margin or 0.0 for c in claims for pair in c.pairs(experiment)}
        families[label] = compare_pairs(
            numbers_of, list(margins), lower[first.metric], margins=margins
        )
    results = []
    for claim, entry in stated_claims(experiment):
        pairs = [] if entry['withdrawn'] else claim.pairs(experiment)
        found = {pair: families[claim.label][pair] for pair in pairs}
        outcome = None if entry['withdrawn'] else judge(claim, [*found.values()])
        results.append(
            ClaimResult(
                claim, entry['stated'], entry['withdrawn'], *(outcome or (None, None)), found
            )
        )
    return tuple(results)


def claim_rows(claims: Sequence[ClaimResult], seeds: Sequence[int]) -> list[list[str]]:
    """Write claims as rows of text, with the columns HEADS; `seeds` are those of the experiment."""
    return [
        [
            result.claim.text,
            _measure(result.claim),
            f'{MARKS[result.outcome]} {result.verdict}' if result.outcome else result.verdict,
            '; '.join(_difference(*item) for item in result.comparisons.items()) or numbers.NONE,
            _stated(result, seeds),
        ]
        for result in claims
    ]


NOTE = (
    'Verdicts on claims are read off simultaneous 95% intervals: the rows and the claims of one '
    'metric are one family of 5%, each quantity over the axis is another.'
)


def _measure(claim: Claim) -> str:
    margin = f', margin {claim.margin:g}' if claim.margin else ''
    return f'{claim.label}: {claim.direction}{margin}'


def _difference(pair: Pair, found: Comparison) -> str:
    names = f'{pair[0]} − {pair[1]}'
    if found.difference is None or found.low is None or found.high is None:
        return f'{names}: {found.reason}'
    low, value, high = (
        numbers.signed(number) for number in (found.low, found.difference, found.high)
    )
    return f'{names}: {value} [{low}, {high}]'


def _stated(result: ClaimResult, seeds: Sequence[int]) -> str:
    stated = result.stated
    when = 'before the runs' if not stated['runs'] else f'after {stated["runs"]} runs'
    commit = f' at {stated["commit"][:7]}' if stated['commit'] else ''
    planned = f'{stated["seeds"]} seeds'
    if len(seeds) != stated['seeds']:
        planned += f', now {len(seeds)}'
    return f'{when}, {stated["date"]}{commit}; {planned}'

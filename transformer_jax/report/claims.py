"""The claims of an experiment in a report: how each ended, and when it was stated."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation.claims import Claim, Outcome, judge, read_claim
from transformer_jax.ablation.pilot import foreseen
from transformer_jax.ablation.statistics import Comparison, Pair
from transformer_jax.report import numbers

MARKS = {
    Outcome.SUPPORTED: '✓',
    Outcome.CONTRADICTED: '✗',
    Outcome.EQUIVALENT: '=',
    Outcome.UNDECIDED: '?',
}
HEADS = ('claim', 'by', 'verdict', 'differences [together]', 'stated')


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
        untested = [found.reason for found in self.comparisons.values() if found.low is None]
        needed = f'{self.seeds_needed} seeds would decide' if self.seeds_needed else ''
        reason = '; '.join(dict.fromkeys(untested)) or needed
        return f'undecided ({reason or "more than 100 seeds would be needed"})'


def judge_claims(
    experiment: Mapping[str, Any], comparisons: Mapping[str, Mapping[Pair, Comparison]]
) -> tuple[ClaimResult, ...]:
    """Judge all claims.

    Args:
        experiment: the content of experiment.json.
        comparisons: label of a family -> pair -> its comparison.
    """
    results = []
    for entry in experiment.get('claims', ()):
        claim, withdrawn = read_claim(entry), entry['withdrawn']
        pairs = [] if withdrawn else claim.pairs(experiment)
        found = {pair: comparisons[claim.label][pair] for pair in pairs}
        outcome, seeds = (None, None) if withdrawn else judge(claim, [*found.values()])
        results.append(ClaimResult(claim, entry['stated'], withdrawn, outcome, seeds, found))
    return tuple(results)


def claim_rows(claims: Sequence[ClaimResult], experiment: Mapping[str, Any]) -> list[list[str]]:
    """Write claims as rows of text, with the columns HEADS.

    Args:
        claims: to be written.
        experiment: the content of experiment.json.
    """
    return [
        [
            _with_source(result.claim),
            _measure(result.claim),
            f'{MARKS[result.outcome]} {result.verdict}' if result.outcome else result.verdict,
            '; '.join(difference_text(*item) for item in result.comparisons.items())
            or numbers.NONE,
            '; '.join(filter(None, [_stated(result, experiment), _planned(result, experiment)])),
        ]
        for result in claims
    ]


def doubts(claims: Sequence[ClaimResult]) -> list[str]:
    """Say what would change our mind about each claim, where the experiment says it."""
    standing = (result.claim for result in claims if result.outcome)
    return [f'{claim.text}: {claim.doubt}' for claim in standing if claim.doubt]


NOTE = (
    'Verdicts on claims are read off simultaneous intervals: the rows and the claims of one metric '
    'are one family, at the level of its table; each quantity over the axis is another.'
)


def _with_source(claim: Claim) -> str:
    return f'{claim.text} ({claim.source})' if claim.source else claim.text


def _measure(claim: Claim) -> str:
    margin = f', margin {claim.margin:g}' if claim.margin else ''
    return f'{claim.label}: {claim.direction}{margin}'


def difference_text(pair: Pair, found: Comparison) -> str:
    """Write a difference with its interval for all comparisons together: 'a − b: −1 [−2, 0]'."""
    names = f'{pair[0]} − {pair[1]}'
    if found.difference is None or found.low is None or found.high is None:
        return f'{names}: {found.reason}'
    low, value, high = (
        numbers.signed(number) for number in (found.low, found.difference, found.high)
    )
    return f'{names}: {value} [{low}, {high}]'


def _planned(result: ClaimResult, experiment: Mapping[str, Any]) -> str:
    """Say what a pilot foresaw for a claim, and what came of it."""
    pilot = experiment.get('pilot') or {'claims': (), 'planned': 0}
    claims = [claim for claim in pilot['claims'] if claim['text'] == result.claim.text]
    if not claims or not pilot['planned']:
        return ''
    said = (
        f'a pilot of {pilot["seeds"]} seeds foresaw a chance of '
        f'{foreseen(claims[0]["power"], pilot["planned"]):.0%} to decide it with '
        f'{pilot["planned"]}, by {claims[0]["difference"]:.3g} ({claims[0]["from"]}), and ± '
        f'{foreseen(claims[0]["half_width"], pilot["planned"]):.3g}'
    )
    found = result.comparisons.get((claims[0]['pair'][0], claims[0]['pair'][1]))
    if found is None or found.low is None or found.high is None:
        return said
    return f'{said}; found ± {(found.high - found.low) / 2:.3g}'


def _stated(result: ClaimResult, experiment: Mapping[str, Any]) -> str:
    stated, seeds = result.stated, experiment['seeds']
    when = 'before the runs' if not stated['runs'] else f'after {stated["runs"]} runs'
    commit = f' at {stated["commit"][:7]}' if stated['commit'] else ''
    planned = f'{stated["seeds"]} seeds'
    if len(seeds) != stated['seeds']:
        planned += f', now {len(seeds)}'
    return f'{when}, {stated["date"]}{commit}; {planned}'

"""Claims for people who read no report: one table of all claims, and a line for each experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.ablation.claims import Outcome
from transformer_jax.report import numbers
from transformer_jax.report.claims import MARKS, ClaimResult, difference_text
from transformer_jax.report.markdown import bullets, escape, grid
from transformer_jax.report.tables import Report

HEADS = ('claim', 'paper', 'our size', 'verdict', 'found')
ORDER = (Outcome.SUPPORTED, Outcome.EQUIVALENT, Outcome.CONTRADICTED, Outcome.UNDECIDED)
MOST = 2  # differences of a claim that are shown


def claims_table(reports: Sequence[tuple[Report, str]], heads: Sequence[str] = HEADS) -> str:
    """Write a line for each claim that stands, sorted by verdict.

    Args:
        reports: each with the link to its page.
        heads: the first of HEADS, or all of them.
    """
    found = [
        (report, link, claim)
        for report, link in reports
        for claim in report.claims
        if claim.outcome
    ]
    if not found:
        return 'No experiment with claims has been run yet.'
    found.sort(key=lambda entry: ORDER.index(entry[2].outcome))
    rows = [_row(*entry)[: len(heads)] for entry in found]
    return grid(heads, rows, [True] * len(heads))


def claim_lines(report: Report) -> str:
    """Write a line for each claim of an experiment: the verdict, and what it was read off."""
    return bullets(
        f'{_verdict(claim)}: {claim.claim.text} ({_found(claim)})'
        for claim in report.claims
        if claim.outcome
    )


def our_size(experiment: Mapping[str, Any]) -> str:
    """Say what was trained here: 'text_file, 2 layers of width 64, 1,000 steps, 5 seeds'."""
    reference = experiment['reference']
    first = reference if isinstance(reference, str) else next(iter(reference.values()))
    config = experiment['variants'][first]['config']
    parts = {'encoder_decoder': ('encoder', 'decoder'), 'classifier': ('encoder',)}
    sides = parts.get(config['model.kind'], ('decoder',))
    layers = ' + '.join(str(config[f'model.{side}_layers']) for side in sides)
    return (
        f'{config["data.task"].partition("(")[0]}, {layers} layers of width '
        f'{config["model.d_model"]}, {config["train.steps"]:,} steps, '
        f'{len(experiment["seeds"])} seeds'
    )


def _row(report: Report, link: str, claim: ClaimResult) -> list[str]:
    return [
        f'[{escape(claim.claim.text)}]({link})',
        escape(claim.claim.source or numbers.NONE),
        escape(our_size(report.experiment)),
        _verdict(claim),
        escape(_found(claim)),
    ]


def _verdict(claim: ClaimResult) -> str:
    late = f', stated after {claim.stated["runs"]} runs' if claim.stated['runs'] else ''
    mark = f'{MARKS[claim.outcome]} ' if claim.outcome else ''
    return f'{mark}{claim.verdict}{late}'


def _found(claim: ClaimResult) -> str:
    """Write the differences that a claim was read off, the first of many."""
    shown = [difference_text(*item) for item in claim.comparisons.items()]
    more = f'; and {len(shown) - MOST} more' if len(shown) > MOST else ''
    return f'{claim.claim.label}: {"; ".join(shown[:MOST])}{more}'

"""The sentences of a report, which all of its forms share."""

import collections
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.ablation.experiment import MATCHES
from transformer_jax.ablation.power import POWER, power
from transformer_jax.ablation.rank_agreement import RankAgreement
from transformer_jax.ablation.scales import SCALES
from transformer_jax.ablation.statistics import BLOCKED, MODERATED, PERMUTATION
from transformer_jax.report import numbers
from transformer_jax.report.columns import VERDICTS
from transformer_jax.report.tables import Report, Table, VariantResult, Verdict

TESTS = {
    MODERATED: 'a t test with moderated variances',
    BLOCKED: 'a t test with moderated variances and seeds as blocks, since runs of the same seed '
    'vary together',
    PERMUTATION: 'the permutation test of all runs where no run differs from others of its variant',
}
TALLIED = (Verdict.BETTER, Verdict.WORSE, Verdict.OPEN, Verdict.UNTESTED, Verdict.MISSING)
EFFECT = 2.0  # standard deviations of one run: the difference whose chance to be found is stated
# Step times are called noisy where the quartiles are farther apart, as a share of the median.
NOISY_SPREAD = 0.1


def tally(table: Table) -> list[tuple[Verdict, str]]:
    """Count the verdicts of a table: [(Verdict.BETTER, '3 better')]."""
    counts = collections.Counter(row.verdict for row in table.rows if not row.same_as)
    return [
        (verdict, f'{counts[verdict]} {VERDICTS[verdict][1]}')
        for verdict in TALLIED
        if counts[verdict]
    ]


def direction(table: Table) -> str:
    """Say in which direction the metric of a table is better."""
    return 'less is better' if table.lower_is_better else 'more is better'


def subtitle(report: Report) -> list[str]:
    """Say what is compared: file, size, reference, matching and dates."""
    experiment = report.experiment
    seeds, variants = len(experiment['seeds']), len(experiment['variants'])
    return [
        experiment['file'],
        f'{variants} variants × {seeds} {"seed" if seeds == 1 else "seeds"}',
        f'reference: {_references(report)}',
        MATCHES[experiment['match']],
        dates(report),
    ]


def _references(report: Report) -> str:
    """Name the reference: a variant, or a line of the axis; several lines are listed by variant."""
    names, axis = report.tables[0].references, report.experiment['axis']
    lines = {axis['points'][name][0] for name in names if name in axis['points']} if axis else ()
    return f'{next(iter(lines))} at each point' if len(lines) == 1 else ', '.join(names)


def notes(table: Table, with_detectable: bool = True) -> Iterator[str]:
    """Yield what a reader of a table must know: the test, its power, and the paper's order.

    Args:
        table: of results.
        with_detectable: whether to explain "detectable", which short tables do not show.
    """
    compared = [row for row in table.compared if not row.same_as]
    if compared:
        yield _test(table, compared)
        yield _power(table, compared, with_detectable)
    elif any(row.comparison for row in table.rows):
        yield 'Nothing could be tested: a test needs two seeds of the variant and of the reference.'
    yield from _reasons(table, tested=bool(compared))
    yield from _noisy_times(table)
    if table.sentences:
        yield (
            f'Over sentences: the paired bootstrap over the {table.sentences} sentences that were '
            'scored, for these trained models; p after Holm. It says what other test sets might '
            'show, not what other seeds might.'
        )
    for paper in table.papers:
        yield f'{paper.source}, {paper.measure}: {agreement(paper.agreement)}.'
    if any(paper.sides for paper in table.papers):
        yield (
            "✓: our test finds a difference, with the paper's sign; ✗: with the other sign; "
            '≈: it finds none.'
        )


def _test(table: Table, compared: Sequence[VariantResult]) -> str:
    used = {row.comparison.test for row in compared if row.comparison}
    test = ', or '.join(words for kind, words in TESTS.items() if kind in used)
    comparisons = f'{len(compared)} comparison' + ('s' if len(compared) > 1 else '')
    scale = SCALES[table.scale].words
    on_scale = f', on the scale {scale}' if scale else ''
    return (
        f'Differences from {table.reference} by {test}{on_scale}. Verdicts hold at '
        f'{100 * table.level:.3g}% for the {comparisons} of this table together, and so do the '
        'intervals in brackets; "alone" is the interval of one difference by itself.'
    )


def _power(table: Table, compared: Sequence[VariantResult], with_detectable: bool) -> str:
    seeds = compared[0].planned
    chance = power(EFFECT, seeds, len(compared) + 1, table.level)
    rows = (*compared, *map(table.row, table.references))
    fewer = ' (less with fewer seeds)' if any(len(row.values) < seeds for row in rows) else ''
    detectable = '; "detectable" is the difference that is found with a chance of '
    return (
        f'With {seeds} seeds, a difference of {EFFECT:g} standard deviations of one run is found '
        f'with a chance of {100 * chance:.0f}%{fewer}'
        + (f'{detectable}{100 * POWER:.0f}%.' if with_detectable else '.')
    )


def _reasons(table: Table, tested: bool) -> Iterator[str]:
    """Yield why cells are empty, and of which variants; of tests only where some were `tested`."""
    whose = collections.defaultdict(list)
    for row in table.rows:
        for found in (row.summary, row.comparison if tested else None):
            if row.values and found and found.reason:
                whose[found.reason].append(row.variant)
    for reason, variants in whose.items():
        all_of_them = len(variants) == sum(bool(row.values) for row in table.rows)
        names = 'all variants' if all_of_them else ', '.join(variants)
        yield f'{reason[0].upper()}{reason[1:]}: {names}.'


def _noisy_times(table: Table) -> Iterator[str]:
    """Warn of step times that scatter, as on a machine that does other work."""
    spreads = {row.variant: row.cost.step_spread or 0.0 for row in table.rows}
    noisy = {name: spread for name, spread in spreads.items() if spread > NOISY_SPREAD}
    if noisy:
        worst = max(noisy, key=lambda name: noisy[name])
        yield (
            f'⚠ The step times are noisy: the quartiles of single steps are up to '
            f'{100 * noisy[worst]:.0f}% of the median apart ({worst}; over '
            f'{100 * NOISY_SPREAD:.0f}% in {len(noisy)} of {len(spreads)} variants). Compare times '
            'that were measured on a machine with nothing else to do.'
        )


def agreement(found: RankAgreement) -> str:
    """Say how far our table agrees with the paper's."""
    parts = []
    if found.directions:
        parts.append(
            f"{found.agreeing} of {found.directions} variants are on the paper's side of the "
            f'reference (of those that our test finds different: {found.clear_agreeing} of '
            f'{found.clear})'
        )
    if found.tau is None:
        parts.append(f'no rank agreement: {found.reason}')
    else:
        interval = (
            ''
            if found.low is None or found.high is None
            else f', 95% interval {numbers.interval(found.low, found.high, 2)}'
        )
        tau = numbers.fixed(found.tau, 2)
        parts.append(f"Kendall's τ of the ranks of {found.variants} variants {tau}{interval}")
    return '; '.join(parts)


def missing_runs(report: Report) -> str:
    """Say how many runs are missing; '' if none is."""
    lost = sum(len(gap.seeds) for gap in report.missing)
    if not lost:
        return ''
    return (
        f'{lost} of {lost + len(report.runs)} runs are missing or damaged. They are not replaced: '
        'each mean is over the sound runs that its row counts.'
    )


def missing_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return (variants, seeds, why) of the runs that are missing."""
    return [
        (', '.join(gap.variants), ', '.join(map(str, gap.seeds)), gap.why) for gap in report.missing
    ]


def command(experiment: Mapping[str, Any]) -> str:
    """Return the command that makes these results; one for each range of seeds without a gap."""
    overrides = experiment.get('overrides', {})
    base = [f'--config.{key}={value}' for key, value in overrides.items() if key != 'train.seed']
    seeds, commands = sorted(experiment['seeds']), []
    firsts = [seed for seed in seeds if seed - 1 not in seeds]
    for first in firsts:
        count = next(number for number in itertools.count(1) if first + number not in seeds)
        start = [f'--config.train.seed={first}'] if first or 'train.seed' in overrides else []
        arguments = [experiment['file'], '--root=DIR', f'--seeds={count}', *start, *base]
        commands.append(shlex.join(['transformer-jax', 'ablate', *arguments]))
    return ' && '.join(commands)


def config_differences(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the keys of the config that differ between variants, and each variant's values.

    Returns:
        (keys, rows): a row is a variant and its values as text.
    """
    configs = {variant: entry['config'] for variant, entry in report.experiment['variants'].items()}
    everything = dict.fromkeys(key for config in configs.values() for key in config)
    keys = [
        key for key in everything if len({repr(config.get(key)) for config in configs.values()}) > 1
    ]
    rows = [
        [variant, *(str(config.get(key, numbers.NONE)) for key in keys)]
        for variant, config in configs.items()
    ]
    return keys, rows


def dates(report: Report) -> str:
    """Return the first and last date of the runs: '2026-11-20 to 2026-11-22'."""
    found = sorted({str(run['date']) for run in report.runs})
    return ' to '.join(dict.fromkeys(found[:1] + found[-1:])) or 'no dates'


def provenance(report: Report) -> Iterator[tuple[str, str]]:
    """Yield (what, its value): machines, dates, commits, seeds and steps of the runs."""
    for machine in machines(report):
        yield 'machine', machine
    yield 'dates', dates(report)
    commits = dict.fromkeys(run['commit'] or 'unknown' for run in report.runs)
    yield 'commits', ', '.join(commits) or numbers.NONE
    yield 'seeds', ', '.join(map(str, report.experiment['seeds']))
    yield 'steps', steps(report)


def machines(report: Report) -> list[str]:
    """Return the machines that the runs were on, each once."""
    return list(dict.fromkeys(_machine(run['machine']) for run in report.runs))


def steps(report: Report) -> str:
    """Return how many steps the runs took, separated by commas where they differ."""
    return ', '.join(dict.fromkeys(f'{run["steps"]:,}' for run in report.runs)) or numbers.NONE


def short_commits(report: Report) -> str:
    """Return the commits that made the runs, with 7 letters each: '3bae248+changes, 6372c79'."""
    commits = dict.fromkeys(run['commit'] or 'unknown' for run in report.runs)
    shortened = (re.sub(r'^(\w{7})\w*', r'\1', commit) for commit in commits)
    return ', '.join(dict.fromkeys(shortened)) or numbers.NONE


def _machine(facts: Any) -> str:
    """Write a machine as '1 x cpu cpu, 2 CPUs; python 3.11, jax 0.10.2'."""
    if not isinstance(facts, Mapping):
        return str(facts)
    known = {'devices': '{}', 'cpus': '{} CPUs'}
    rest = [
        known.get(str(key), f'{key} {{}}').format(value)
        for key, value in facts.items()
        if key != 'versions'
    ]
    versions = [f'{name} {version}' for name, version in facts.get('versions', {}).items()]
    return '; '.join(filter(None, (', '.join(rest), ', '.join(versions))))

"""The columns, cells and sentences of a report, which all of its forms share."""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformer_jax.ablation import statistics as stats
from transformer_jax.ablation.rank_agreement import RankAgreement
from transformer_jax.report import numbers
from transformer_jax.report.analysis import Paper, Report, Table, VariantResult

# By a sign too: colour alone would not do.
MARKS = {
    'better': '▲',
    'worse': '▼',
    'open': '≈',
    'untested': '?',
    'missing': '∅',
    'reference': '●',
    'same': '=',
}
VERDICTS = {
    'better': 'better',
    'worse': 'worse',
    'open': 'not distinguishable',
    'untested': 'not tested',
    'missing': 'missing',
    'reference': 'reference',
    'same': 'reference',
}
TALLIED = ('better', 'worse', 'open', 'untested', 'missing')
SIDES = {'agrees': '✓', 'contradicts': '✗', 'same sign': '≈', 'other sign': '≈'}
EFFECT = 2.0  # standard deviations of one run: the difference whose chance of being found is told


class Column(NamedTuple):
    """One of a table of results."""

    key: str
    title: str
    group: str
    meaning: str
    text: bool = False  # aligned to the left


class Cell(NamedTuple):
    """What stands in a column; `value` is what it is sorted by, None: last."""

    text: str
    value: float | str | None
    remarks: tuple[str, ...] = ()


def columns(table: Table, drawn: bool = False) -> list[Column]:
    """Those that the table has something for; `drawn`: also one for a drawing of the
    differences.
    """
    against = f'against {table.reference}'
    found = [
        Column('variant', 'variant', '', 'what was changed', text=True),
        Column('n', 'seeds', 'quality', 'sound runs, of those planned'),
        Column(
            'mean', 'mean ± sd [95%]', 'quality', 'over seeds, with the 95% interval of the mean'
        ),
        Column(
            'difference', 'difference [95%]', against, 'of the means, with its own 95% interval'
        ),
    ]
    if drawn:
        found.append(
            Column('drawn', 'drawn', against, 'the difference and its 95% interval about 0')
        )
    found += [
        Column(
            'p', 'p (Holm)', against, "after Holm's correction for all comparisons of this table"
        ),
        Column('verdict', 'verdict', against, 'at 5% for the table as a whole', text=True),
    ]
    if table.sentences:
        found.append(
            Column(
                'resampled',
                'over sentences [95%]',
                against,
                'by the paired bootstrap over the test set',
            )
        )
    found += [
        Column(
            f'paper {number}',
            f'paper: {paper.measure}',
            'published',
            f'{paper.source}: {paper.measure}',
        )
        for number, paper in enumerate(table.papers)
    ]
    return [
        *found,
        Column('params', 'parameters', 'cost', 'all, and those outside embeddings'),
        Column('flops', 'FLOPs', 'cost', 'forward, of matrix products, per target token'),
        Column('step', 'step', 'cost', 'measured time of a training step, the median over runs'),
        Column(
            'memory', 'memory', 'cost', 'of the compiled training step: arguments and temporaries'
        ),
        Column(
            'wall',
            'wall time',
            'cost',
            'of a run, the mean over runs; seeds side by side have shares of it',
        ),
    ]


def cell(table: Table, row: VariantResult, column: Column) -> Cell:
    """What a row has in a column."""
    key, _, number = column.key.partition(' ')
    if key == 'paper':
        return _paper(row, table.papers[int(number)])
    return _COST[key](row.cost) if key in _COST else _QUALITY[key](row, places(table))


def places(table: Table) -> int:
    """Digits after the point, the same in all rows."""
    return numbers.decimals(row.summary.sd for row in table.rows if row.summary.sd is not None)


def _n(row: VariantResult, places: int) -> Cell:
    return Cell(
        str(len(row.values))
        if len(row.values) == row.planned
        else f'{len(row.values)} of {row.planned}',
        len(row.values),
    )


def _mean(row: VariantResult, places: int) -> Cell:
    mean, sd, low, high = row.summary.mean, row.summary.sd, row.summary.low, row.summary.high
    if math.isnan(mean):
        return Cell(numbers.NONE, None)
    if sd is None:
        return Cell(numbers.fixed(mean, places), mean)
    return Cell(
        f'{numbers.fixed(mean, places)} ± {numbers.fixed(sd, places)}',
        mean,
        (numbers.interval(low, high, places),),
    )


def _difference(row: VariantResult, places: int) -> Cell:
    found = row.comparison
    if found is None or found.difference is None:
        return Cell(numbers.NONE, None)
    return Cell(
        numbers.fixed(found.difference, places, signed=True),
        found.difference,
        (numbers.interval(found.low, found.high, places, signed=True),),
    )


def _drawn(row: VariantResult, places: int) -> Cell:
    return Cell('', row.comparison and row.comparison.difference)


def _p(row: VariantResult, places: int) -> Cell:
    if row.comparison is None or row.comparison.adjusted is None:
        return Cell(numbers.NONE, None)
    return Cell(numbers.p_value(row.comparison.adjusted), row.comparison.adjusted)


def _verdict(row: VariantResult, places: int) -> Cell:
    remarks = []
    if row.same_as:
        remarks.append(f'same config and runs as {row.same_as}')
    if row.verdict == 'missing':
        remarks.append('no sound run')
    elif row.verdict == 'open' and row.comparison.detectable is not None:
        remarks.append(f'detectable: {numbers.fixed(row.comparison.detectable, places)}')
    return Cell(VERDICTS[row.verdict], list(VERDICTS).index(row.verdict), tuple(remarks))


def _resampled(row: VariantResult, places: int) -> Cell:
    found = row.resampled
    if found is None:
        return Cell(numbers.NONE, None)
    return Cell(
        numbers.fixed(found.difference, places, signed=True),
        found.difference,
        (
            numbers.interval(found.low, found.high, places, signed=True),
            f'p {numbers.p_value(found.adjusted)}',
        ),
    )


def _paper(row: VariantResult, paper: Paper) -> Cell:
    value, side = paper.values.get(row.variant), paper.sides.get(row.variant)
    return Cell(
        numbers.printed(value, paper.values.values()),
        value,
        (f'{SIDES[side]} {side}',) if side else (),
    )


def _params(cost: Any) -> Cell:
    if cost.params is None:
        return Cell(numbers.NONE, None)
    remarks = [f'{numbers.count(cost.non_embedding_params)} non-emb.']
    chosen = [
        f'{key.removeprefix("model.")} {value}'
        for key, value in cost.matched.items()
        if key != 'residual'
    ]
    if cost.matched:
        remarks.append(
            ', '.join(chosen)
            + f' ({numbers.fixed(100 * cost.matched.get("residual", 0.0), 2, True)}%)'
        )
    return Cell(numbers.count(cost.params), cost.params, tuple(remarks))


_QUALITY = {
    'variant': lambda row, places: Cell(row.variant, row.variant),
    'n': _n,
    'mean': _mean,
    'difference': _difference,
    'drawn': _drawn,
    'p': _p,
    'verdict': _verdict,
    'resampled': _resampled,
}
_COST = {
    'params': _params,
    'flops': lambda cost: Cell(numbers.count(cost.flops), cost.flops),
    'step': lambda cost: Cell(numbers.seconds(cost.step_seconds), cost.step_seconds),
    'memory': lambda cost: Cell(numbers.size(cost.memory_bytes), cost.memory_bytes),
    'wall': lambda cost: Cell(numbers.seconds(cost.wall_seconds), cost.wall_seconds),
}


# --- Sentences ------------------------------------------------------------------------------------


def tally(table: Table) -> list[tuple[str, str]]:
    """(verdict, '3 better') of all variants that have one."""
    counts = collections.Counter(row.verdict for row in table.rows if not row.same_as)
    return [
        (verdict, f'{counts[verdict]} {VERDICTS[verdict]}')
        for verdict in TALLIED
        if counts[verdict]
    ]


def subtitle(report: Report) -> list[str]:
    """What is compared, in a few words each."""
    experiment = report.experiment
    matched = {
        'none': 'sizes as they come',
        'params': 'at equal non-embedding parameters',
        'flops': 'at equal FLOPs',
    }
    seeds, variants = len(experiment['seeds']), len(experiment['variants'])
    return [
        experiment['file'],
        f'{variants} variants × {seeds} seed{"s" * (seeds != 1)}',
        f'reference: {", ".join(report.tables[0].references)}',
        matched[experiment['match']],
        dates(report),
    ]


def notes(table: Table) -> Iterator[str]:
    """What must be known to read a table: how it was tested, what it could have shown, what the
    paper's order is.
    """
    compared = [
        row
        for row in table.rows
        if row.comparison and row.comparison.p is not None and not row.same_as
    ]
    if compared:
        kinds = {row.comparison.test for row in compared}
        test = (
            'the t test paired by seed, since runs of a seed vary together'
            if 'paired' in kinds
            else "Welch's test"
        )
        yield (
            f'Differences from {table.reference} by {test}; verdicts at 5% over the {len(compared)} '
            f'comparison{"s" * (len(compared) > 1)} of this table together (Holm); each interval is of its '
            'difference alone.'
        )
        yield _power(table, compared)
    elif any(row.comparison for row in table.rows):
        yield 'Nothing could be tested: a test needs two seeds of the variant and of the reference.'
    yield from _lacks(table, tested=bool(compared))
    if table.sentences:
        yield (
            f'Over sentences: the paired bootstrap over the {table.sentences} that were scored, of the models as '
            'they are, p after Holm; it speaks of other test sets, not of other seeds.'
        )
    for paper in table.papers:
        yield f'{paper.source}, {paper.measure}: {agreement(paper.agreement)}.'
    if any(paper.sides for paper in table.papers):
        yield (
            "✓ and ✗: our test tells the variant from the reference, on the paper's side of it or on the other; "
            '≈: it does not.'
        )


def _lacks(table: Table, tested: bool) -> Iterator[str]:
    """Why cells are empty, and whose; of tests, where some were `tested`."""
    whose = collections.defaultdict(list)
    for row in table.rows:
        for found in (row.summary, tested and row.comparison):
            if row.values and found and found.reason:
                whose[found.reason].append(row.variant)
    for reason, variants in whose.items():
        all_of_them = len(variants) == sum(bool(row.values) for row in table.rows)
        names = 'all variants' if all_of_them else ', '.join(variants)
        yield f'{reason[0].upper()}{reason[1:]}: {names}.'


def _power(table: Table, compared: Sequence[VariantResult]) -> str:
    seeds = compared[0].planned
    chance = stats.power(EFFECT, seeds, len(compared) + 1)
    fewer = any(len(row.values) < seeds for row in (*compared, *map(table.row, table.references)))
    return (
        f'With {seeds} seeds a difference of {EFFECT:g} standard deviations of one run is found with a chance of '
        f'{100 * chance:.0f}%{", with fewer it is less" * fewer}; "detectable" is what is found with one of '
        f'{100 * stats.POWER:.0f}%.'
    )


def agreement(found: RankAgreement) -> str:
    """How far our table says what the paper's says."""
    parts = []
    if found.directions:
        parts.append(
            f"{found.agreeing} of {found.directions} variants lie on the paper's side of the reference "
            f'({found.clear_agreeing} of the {found.clear} that our test tells apart)'
        )
    if found.tau is None:
        parts.append(f'no rank agreement: {found.reason}')
    else:
        ends = (
            ''
            if found.low is None
            else f', 95% interval {numbers.interval(found.low, found.high, 2)}'
        )
        parts.append(
            f"Kendall's τ of the ranks of {found.variants} variants {numbers.fixed(found.tau, 2)}{ends}"
        )
    return '; '.join(parts)


def missing(report: Report) -> str:
    """How many runs are missing; '' if none is."""
    lost = sum(len(gap.seeds) for gap in report.missing)
    if not lost:
        return ''
    return (
        f'{lost} of {lost + len(report.runs)} runs are missing or damaged. Nothing stands in for them: means are '
        'over the sound runs that their rows count.'
    )


def missing_rows(report: Report) -> list[tuple[str, str, str]]:
    """(variants, seeds, why) of what is missing."""
    return [
        (', '.join(gap.variants), ', '.join(map(str, gap.seeds)), gap.why) for gap in report.missing
    ]


def command(experiment: Mapping[str, Any]) -> str:
    """What makes these results."""
    return (
        f'transformer-jax ablate {experiment["file"]} --root=DIR --seeds={len(experiment["seeds"])}'
    )


def differences(report: Report) -> tuple[list[str], list[list[str]]]:
    """The keys of the config that are not the same in all variants, and each variant with
    its values.
    """
    configs = {variant: entry['config'] for variant, entry in report.experiment['variants'].items()}
    everything = dict.fromkeys(key for config in configs.values() for key in config)
    keys = [
        key for key in everything if len({repr(config.get(key)) for config in configs.values()}) > 1
    ]
    return keys, [
        [variant, *(str(config.get(key, numbers.NONE)) for key in keys)]
        for variant, config in configs.items()
    ]


def dates(report: Report) -> str:
    """'2026-11-20 to 2026-11-22'."""
    found = sorted({str(run['date']) for run in report.runs})
    return ' to '.join(dict.fromkeys(found[:1] + found[-1:])) or 'no dates'


def provenance(report: Report) -> Iterator[tuple[str, str]]:
    """Where the numbers come from."""
    for machine in dict.fromkeys(_machine(run['machine']) for run in report.runs):
        yield 'machine', machine
    yield 'dates', dates(report)
    yield (
        'commits',
        ', '.join(dict.fromkeys(run['commit'] or 'unknown' for run in report.runs)) or numbers.NONE,
    )
    yield 'seeds', ', '.join(map(str, report.experiment['seeds']))
    yield (
        'steps',
        ', '.join(dict.fromkeys(f'{run["steps"]:,}' for run in report.runs)) or numbers.NONE,
    )


def _machine(facts: Any) -> str:
    """'1 x cpu cpu, 2 CPUs; python 3.11, jax 0.10.2'."""
    if not isinstance(facts, Mapping):
        return str(facts)
    known = {'devices': '{}', 'cpus': '{} CPUs'}
    rest = [
        known.get(key, key + ' {}').format(value)
        for key, value in facts.items()
        if key != 'versions'
    ]
    versions = [f'{name} {version}' for name, version in facts.get('versions', {}).items()]
    return '; '.join(filter(None, (', '.join(rest), ', '.join(versions))))

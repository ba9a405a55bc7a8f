"""The columns and cells of a table of results, which all forms of a report share."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from transformer_jax.ablation.statistics import PERMUTATION, summarize
from transformer_jax.report import numbers
from transformer_jax.report.tables import PaperNumbers, Side, Table, VariantResult, Verdict

# Verdict -> (its mark, its words). A mark, since color alone would not do.
VERDICTS = {
    Verdict.BETTER: ('▲', 'better'),
    Verdict.WORSE: ('▼', 'worse'),
    Verdict.OPEN: ('≈', 'not distinguishable'),
    Verdict.UNTESTED: ('?', 'not tested'),
    Verdict.MISSING: ('∅', 'missing'),
    Verdict.REFERENCE: ('●', 'reference'),
    Verdict.SAME: ('=', 'reference'),
}
SIDES = {Side.AGREES: '✓', Side.CONTRADICTS: '✗', Side.SAME_SIGN: '≈', Side.OTHER_SIGN: '≈'}


class Column(NamedTuple):
    """A column of a table of results.

    Attributes:
        key: 'mean'; of a paper 'paper 0'.
        title: its heading.
        group: the heading above several columns; '': none.
        meaning: what it holds, in a few words.
        text: whether it is text, aligned to the left; numbers are aligned to the right.
    """

    key: str
    title: str
    group: str
    meaning: str
    text: bool = False


class Cell(NamedTuple):
    """A cell of a table of results.

    Attributes:
        text: what it says.
        value: by which rows are sorted; None: to the end.
        remarks: what is written smaller: intervals, '[37.10, 38.20]', and others.
    """

    text: str
    value: float | str | None
    remarks: tuple[str, ...] = ()

    @property
    def intervals(self) -> list[str]:
        """The remarks that are intervals."""
        return [remark for remark in self.remarks if remark.startswith('[')]


def table_columns(table: Table, with_plot: bool = False) -> list[Column]:
    """Return the columns for which a table has something.

    Args:
        table: of results.
        with_plot: whether to add a column for a plot of the differences.
    """
    against = f'against {table.reference}'
    paired = 'by the paired bootstrap over the test set'
    confidence, at = table.confidence, f'{100 * table.level:.3g}%'
    drawn = f'the difference and its {confidence} interval about 0'
    plot = Column('drawn', 'drawn', against, drawn)
    resampled = Column('resampled', 'over sentences [95%]', against, paired)
    return [
        Column('variant', 'variant', '', 'what was changed', text=True),
        Column('n', 'seeds', 'quality', 'sound runs, of those planned'),
        Column(
            'mean', 'mean ± sd [95%]', 'quality', 'over seeds, with the 95% interval of the mean'
        ),
        *([_VALIDATION] if any(row.validation for row in table.rows) else []),
        Column(
            'difference',
            f'difference [{confidence}]',
            against,
            f'of the means, with the {confidence} interval for all comparisons together; alone: '
            'of this one',
        ),
        *([plot] if with_plot else []),
        Column('p', 'p (together)', against, 'for all comparisons of this table together'),
        Column(
            'verdict',
            'verdict',
            against,
            f'at {at} for the table as a whole',
            text=True,
        ),
        *([resampled] if table.sentences else []),
        *(
            Column(f'paper {number}', f'paper: {paper.measure}', 'published', paper.name)
            for number, paper in enumerate(table.papers)
        ),
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
        *(column for column in _LATER if _has(table, column)),
    ]


_VALIDATION = Column(
    'validation', 'validation', 'quality', 'mean ± sd on it, at the checkpoints that were scored'
)
# Left out of a table without them: results of earlier versions have none.
_LATER = (
    Column('mfu', 'MFU', 'cost', 'model FLOPs over the peak of the devices, while steps run'),
    Column('goodput', 'goodput', 'cost', "share of a run's time spent on steps that count"),
    Column(
        'state_bytes',
        'decoding state',
        'cost',
        'what decoding keeps of one sequence; – where the model does not decode',
    ),
)


def _has(table: Table, column: Column) -> bool:
    return any(getattr(row.cost, column.key) is not None for row in table.rows)


def cell(table: Table, row: VariantResult, column: Column) -> Cell:
    """Return what a row has in a column."""
    key, _, number = column.key.partition(' ')
    if key == 'paper':
        return _paper(row, table.papers[int(number)])
    return _COST[key](row.cost) if key in _COST else _QUALITY[key](row, decimal_places(table))


def decimal_places(table: Table) -> int:
    """Return how many digits all rows have after the point."""
    return numbers.decimals(row.summary.sd for row in table.rows if row.summary.sd is not None)


def _runs(row: VariantResult, places: int) -> Cell:
    runs = len(row.values)
    return Cell(str(runs) if runs == row.planned else f'{runs} of {row.planned}', runs)


def _mean(row: VariantResult, places: int) -> Cell:
    mean, sd, low, high = row.summary.mean, row.summary.sd, row.summary.low, row.summary.high
    if math.isnan(mean):
        return Cell(numbers.NONE, None)
    if sd is None or low is None or high is None:
        return Cell(numbers.fixed(mean, places), mean)
    return Cell(
        f'{numbers.fixed(mean, places)} ± {numbers.fixed(sd, places)}',
        mean,
        (numbers.interval(low, high, places),),
    )


def _validation(row: VariantResult, places: int) -> Cell:
    if not row.validation:
        return Cell(numbers.NONE, None)
    found = summarize(row.validation)
    sd = '' if found.sd is None else f' ± {numbers.fixed(found.sd, places)}'
    seeds, all_seeds = len(row.validation), len(row.values)
    fewer = (f'{seeds} of {all_seeds} seeds',) if seeds < all_seeds else ()
    return Cell(f'{numbers.fixed(found.mean, places)}{sd}', found.mean, fewer)


def _difference(row: VariantResult, places: int) -> Cell:
    found = row.difference
    if found is None:
        return Cell(numbers.NONE, None)
    permuted = row.comparison is not None and row.comparison.test == PERMUTATION
    text = numbers.fixed(found.value, places, signed=True)
    if permuted or row.comparison is None:
        return Cell(text, found.value)
    ends = row.comparison.alone_low, row.comparison.alone_high
    together, alone = (
        numbers.interval(low, high, places, signed=True)
        for low, high in ((found.low, found.high), ends)
        if low is not None and high is not None
    )
    return Cell(text, found.value, (together, f'alone {alone}'))


def _p(row: VariantResult, places: int) -> Cell:
    if row.comparison is None or row.comparison.adjusted is None:
        return Cell(numbers.NONE, None)
    return Cell(numbers.p_value(row.comparison.adjusted), row.comparison.adjusted)


def _verdict(row: VariantResult, places: int) -> Cell:
    remarks = []
    if row.same_as:
        remarks.append(f'same config and runs as {row.same_as}')
    if row.verdict == Verdict.MISSING:
        remarks.append('no sound run')
    elif row.verdict == Verdict.OPEN and row.comparison is not None:
        detectable = row.comparison.detectable
        if detectable is not None:
            remarks.append(f'detectable: {numbers.fixed(detectable, places)}')
    _, words = VERDICTS[row.verdict]
    return Cell(words, list(VERDICTS).index(row.verdict), tuple(remarks))


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


def _paper(row: VariantResult, paper: PaperNumbers) -> Cell:
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
    if cost.matched:
        chosen = [
            f'{key.removeprefix("model.")} {value}'
            for key, value in cost.matched.items()
            if key != 'residual'
        ]
        residual = numbers.fixed(100 * cost.matched.get('residual', 0.0), 2, signed=True)
        remarks.append(f'{", ".join(chosen)} ({residual}%)')
    return Cell(numbers.count(cost.params), cost.params, tuple(remarks))


def _step(cost: Any) -> Cell:
    spread = () if cost.step_spread is None else (f'spread {100 * cost.step_spread:.0f}%',)
    return Cell(numbers.seconds(cost.step_seconds), cost.step_seconds, spread)


def _state(cost: Any) -> Cell:
    at = () if cost.state_length is None else (f'at {cost.state_length:,.0f} tokens',)
    return Cell(numbers.size(cost.state_bytes), cost.state_bytes, at)


_QUALITY: dict[str, Callable[[VariantResult, int], Cell]] = {
    'variant': lambda row, places: Cell(row.variant, row.variant),
    'n': _runs,
    'mean': _mean,
    'validation': _validation,
    'difference': _difference,
    'drawn': lambda row, places: Cell('', None if row.difference is None else row.difference.value),
    'p': _p,
    'verdict': _verdict,
    'resampled': _resampled,
}
_COST: dict[str, Callable[[Any], Cell]] = {
    'params': _params,
    'flops': lambda cost: Cell(numbers.count(cost.flops), cost.flops),
    'step': _step,
    'memory': lambda cost: Cell(numbers.size(cost.memory_bytes), cost.memory_bytes),
    'wall': lambda cost: Cell(numbers.seconds(cost.wall_seconds), cost.wall_seconds),
    'mfu': lambda cost: Cell(numbers.percent(cost.mfu), cost.mfu),
    'goodput': lambda cost: Cell(numbers.percent(cost.goodput), cost.goodput),
    'state_bytes': _state,
}

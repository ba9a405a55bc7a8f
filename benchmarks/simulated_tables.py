"""False verdicts, false equivalences and power of the statistics of a table, over simulated tables.

    python benchmarks/simulated_tables.py docs/explanation/statistics.md

writes two tables between the markers of that page, in half an hour on a CPU; with `stages` as a
second argument the second table alone, in minutes. In the first a row is a number of
variants, the reference among them, and of seeds. Columns are shares of tables; where a column
stands for several kinds of tables, it has the worst of them:

- equal: all variants equal, normal runs of one spread; seeds independent
- correlated: the same with a correlation of 0.4 or 0.8 between runs of a seed
- spreads: the reference's spread is 2, 3 or 5 times that of the others, or a fifth; or one
  variant's is 2.5 or 5 times; or spreads rise from 1 to 5, the reference the first or the last; or
  half have 5, the reference among them or not; the last three correlated by 0.6 too
- floors: shares of 500 examples whose error is 0.2% or 20% in all; or 0.2% in half, the others far
  away; the errors of runs vary by a third
- equivalence: a difference of exactly the margin is called equivalent; equal spreads, and spreads
- power: a difference of 2 standard deviations is found, by these tests; by Welch's test or the test
  paired by seed, with Holm's correction, as this project had them before

The second table has false verdicts of tables that grow, of equal variants and one spread, where who
looks stops at the first verdict:

- one look: at 3 seeds, at 5%
- two planned: at 3 and at 10 seeds, each at 2.5%
- not planned: at 3 seeds at 5%, and if nothing was found at 10 seeds at 2.5%
- at 5% twice: what is prevented
- pilot: no look at 3 seeds; then as many as find a difference of 1.5 standard deviations by the
  spread of the pilot, at most 20, and one look at 4%; and, to see why not, at 5%
"""

import math
import re
import sys
from pathlib import Path

import numpy as np
from scipy import special

from transformer_jax.ablation.bootstrap import holm
from transformer_jax.ablation.looks import AFTER_A_PILOT
from transformer_jax.ablation.many_to_one import LEVEL, balanced, equal_tables, measure
from transformer_jax.ablation.power import SEARCHED, detectable_difference
from transformer_jax.ablation.scales import SCALES
from transformer_jax.ablation.seed_correlation import varies_by_seed
from transformer_jax.ablation.statistics import DIFFERENT, compare

VARIANTS, SEEDS = (2, 3, 5, 9, 18), (2, 3, 5, 10)
TABLES, POWER_TABLES, COUNTED_TABLES = 10_000, 40_000, 500
EFFECT = 2.0  # standard deviations
CORRELATIONS = (0.4, 0.8)
BESIDE_SPREADS = 0.6  # the correlation of seeds where spreads differ too
MARGIN = {2: 12.0, 3: 8.0, 5: 4.0, 10: 2.5}  # standard deviations: such that equality can be found
EXAMPLES = 500
FEW, MANY, MOST, STAGED_EFFECT = 3, 10, 20, 1.5
STAGED_HEADS = (
    'variants',
    'one look',
    'two planned',
    'not planned',
    'at 5% twice',
    'pilot',
    'pilot at 5%',
)
HEADS = (
    'variants × seeds',
    'equal',
    'correlated',
    'spreads',
    'floors',
    'equivalence',
    'equivalence, spreads',
    'power',
    'power before',
)


def many_to_one(variants: int) -> tuple[tuple[int, int], ...]:
    """Pair every variant with the first."""
    return tuple((variant, 0) for variant in range(1, variants))


def spreads(variants: int) -> dict[str, np.ndarray]:
    """Return the spreads of variants in tables whose spreads differ, the reference's first."""

    def with_one(place, spread):
        return np.where(np.arange(variants) == place, spread, 1.0)

    return {
        'reference 2': with_one(0, 2),
        'reference 3': with_one(0, 3),
        'reference 5': with_one(0, 5),
        'reference 1/5': with_one(0, 0.2),
        'one 2.5': with_one(1, 2.5),
        'one 5': with_one(1, 5),
        'rising': 5 ** np.linspace(0, 1, variants),
        'falling': 5 ** np.linspace(1, 0, variants),
        'half above': np.where(np.arange(variants) < variants // 2, 1.0, 5.0),
        'half below': np.where(np.arange(variants) < (variants + 1) // 2, 5.0, 1.0),
    }


def draw(spread_V, seeds, correlation=0.0, tables=TABLES, seed=1) -> np.ndarray:
    """Draw normal runs, [tables, variants, seeds], those of a seed with a correlation."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((tables, len(spread_V), seeds))
    common = rng.standard_normal((tables, 1, seeds))
    both = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    return both * np.asarray(spread_V)[:, None]


def judge(
    runs_BVC: np.ndarray, margin: float = 0.0, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Compare all variants with the first: (found different, found equivalent), [tables, pairs]."""
    tables, variants, seeds = runs_BVC.shape
    pairs = many_to_one(variants)
    different, equivalent = np.zeros((2, tables, len(pairs)), bool)
    runs_BN, layout = runs_BVC.reshape(tables, -1), balanced(seeds, pairs, level=level)
    by_seed = varies_by_seed(runs_BN, layout)
    for blocks in (False, True):
        rows = by_seed == blocks
        if rows.any():
            layout = layout._replace(blocks=blocks)
            found = measure(runs_BN[rows], layout)
            half = equal_tables(layout).critical * found.errors
            different[rows] = abs(found.differences) > half
            equivalent[rows] = abs(found.differences) + half < margin
    return different, equivalent


def false_verdicts(runs_BVC: np.ndarray) -> float:
    """Return the share of tables in which any variant is found different from the first."""
    return float(judge(runs_BVC)[0].any(1).mean())


def false_equivalences(runs_BVC: np.ndarray, spread_V) -> float:
    """Return the share of tables in which any difference of the margin is found equivalent."""
    margin = MARGIN[runs_BVC.shape[-1]] * float(np.mean(spread_V))
    shifted = runs_BVC.copy()
    shifted[:, 1:] += margin
    return float(judge(shifted, margin)[1].any(1).mean())


def false_verdicts_of_shares(variants: int, seeds: int, error: float, mixed: bool) -> float:
    """Return the share of tables of accuracies with a false verdict, tables of one error rate.

    Args:
        variants: the reference among them.
        seeds: of each.
        error: the share of examples that are wrong.
        mixed: whether every second variant has half of them wrong instead; its difference is true.
    """
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(COUNTED_TABLES):
        rates = np.full(variants, error)
        if mixed:
            rates[2::2] = 0.5
        run_rates = np.clip(rates[:, None] * np.exp(rng.normal(0, 1 / 3, (variants, seeds))), 0, 1)
        shares = 1 - rng.binomial(EXAMPLES, run_rates) / EXAMPLES
        values = {f'v{v}': dict(enumerate(row)) for v, row in enumerate(shares.tolist())}
        found = compare(values, 'v0', False, SCALES['share'])
        equal = [f'v{v}' for v in range(1, variants) if rates[v] == error]
        wrong += any(found[name].verdict in DIFFERENT for name in equal)
    return wrong / COUNTED_TABLES


def power_before(runs_BVC: np.ndarray) -> float:
    """Return how often the second variant was found by Welch's or the paired test, with Holm."""
    seeds = runs_BVC.shape[-1]
    gap_BVC = runs_BVC[:, 1:] - runs_BVC[:, :1]
    errors = runs_BVC.var(-1, ddof=1) / seeds
    a, b = errors[:, 1:], errors[:, :1]
    dof = (a + b) ** 2 / ((a**2 + b**2) / (seeds + 1)) - 2
    dof = np.minimum(dof, 2 * seeds - 2) if seeds < 3 else dof
    welch = 2 * special.stdtr(dof, -abs(gap_BVC.mean(-1)) / np.sqrt(a + b))
    paired_t = abs(gap_BVC.mean(-1)) / gap_BVC.std(-1, ddof=1) * math.sqrt(seeds)
    paired = 2 * special.stdtr(seeds - 1, -paired_t)
    layout = balanced(seeds, many_to_one(runs_BVC.shape[1]))
    by_seed = varies_by_seed(runs_BVC.reshape(len(runs_BVC), -1), layout)
    p = np.where(by_seed[:, None], paired, welch)
    return float(np.mean([holm(row)[0] <= 0.05 for row in p]))


def row(variants: int, seeds: int) -> list[float]:
    """Compute a row of the table."""
    one = np.ones(variants)
    unequal = spreads(variants)
    late = ('rising', 'half above', 'half below')
    shifted = draw(one, seeds, tables=POWER_TABLES, seed=3)
    shifted[:, 1] += EFFECT
    return [
        false_verdicts(draw(one, seeds)),
        max(false_verdicts(draw(one, seeds, correlation)) for correlation in CORRELATIONS),
        max(
            *(false_verdicts(draw(spread, seeds)) for spread in unequal.values()),
            *(false_verdicts(draw(unequal[name], seeds, BESIDE_SPREADS)) for name in late),
        ),
        max(
            false_verdicts_of_shares(variants, seeds, error, mixed)
            for error, mixed in ((0.002, False), (0.2, False), (0.002, True))
        ),
        false_equivalences(draw(one, seeds), one),
        max(false_equivalences(draw(spread, seeds), spread) for spread in unequal.values()),
        float(judge(shifted)[0][:, 0].mean()),
        power_before(shifted),
    ]


def after_a_pilot(runs_BVC: np.ndarray, level: float) -> float:
    """Return the share of false verdicts where the spread of few seeds chose how many there are."""
    variants = runs_BVC.shape[1]
    pilot_BVC, pairs = runs_BVC[..., :FEW], many_to_one(variants)
    layout = balanced(FEW, pairs)
    measured = measure(pilot_BVC.reshape(len(pilot_BVC), -1), layout)
    sd_B = np.sqrt(measured.variances[:, [0, 1]].mean(1))
    choices = np.array([FEW, 4, 5, 6, 8, 10, 12, 16, MOST])
    found_N = [detectable_difference(balanced(n, pairs), 0, SEARCHED) for n in choices]
    enough_BN = np.array(found_N) <= STAGED_EFFECT / sd_B[:, None]
    enough_BN[:, -1] = True
    seeds_B, wrong = choices[enough_BN.argmax(1)], 0.0
    for seeds in set(seeds_B.tolist()):
        chosen_BVC = runs_BVC[seeds_B == seeds][..., :seeds]
        wrong += float(judge(chosen_BVC, level=level)[0].any(1).sum())
    return wrong / len(runs_BVC)


def staged_row(variants: int) -> list[float]:
    """Compute a row of the table of tables that grow."""
    runs_BVC = draw(np.ones(variants), MOST, tables=POWER_TABLES, seed=5)

    def found(seeds: int, level: float) -> np.ndarray:
        return judge(runs_BVC[..., :seeds], level=level)[0].any(1)

    few, many = found(FEW, LEVEL), found(MANY, LEVEL / 2)
    return [
        float(few.mean()),
        float((found(FEW, LEVEL / 2) | many).mean()),
        float((few | many).mean()),
        float((few | found(MANY, LEVEL)).mean()),
        after_a_pilot(runs_BVC, AFTER_A_PILOT),
        after_a_pilot(runs_BVC, LEVEL),
    ]


def write_table(path: str, name: str, heads: tuple[str, ...], rows: list[list[str]]) -> None:
    """Write a table between the markers of a page."""
    lines = [heads, ['--:'] * len(heads), *rows]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    marked = re.compile(rf'(<!-- begin {name} -->\n).*?(<!-- end {name} -->)', re.DOTALL)
    page = Path(path)
    page.write_text(marked.sub(lambda match: f'{match[1]}{table}\n{match[2]}', page.read_text()))


def cells(label: str, values: list[float]) -> list[str]:
    """Write a row of a table, and show it."""
    line = [label, *(f'{value:.3f}' for value in values)]
    print(' '.join(line), file=sys.stderr, flush=True)
    return line


def main(path: str, only: str = '') -> None:
    """Write the tables into a page."""
    if only != 'stages':
        grid = [(variants, seeds) for variants in VARIANTS for seeds in SEEDS]
        rows = [cells(f'{variants} × {seeds}', row(variants, seeds)) for variants, seeds in grid]
        write_table(path, 'simulation', HEADS, rows)
    staged = [cells(str(variants), staged_row(variants)) for variants in VARIANTS]
    write_table(path, 'stages', STAGED_HEADS, staged)


if __name__ == '__main__':
    main(*sys.argv[1:])

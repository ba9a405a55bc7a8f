"""Pilots: a few seeds tell how much runs vary, and so how many seeds decide each claim.

A pilot shows no verdict. From its runs comes the spread; what is to be found comes from the claims:
a difference as large as the margin, or an equality within it. Where a claim has no margin, the
difference that the pilot happened to have is taken, and the plan says so. The runs of the pilot
count among the planned ones (an internal pilot, Wittes & Brittain 1990); what that does to false
verdicts is simulated in docs/explanation/statistics.md.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.ablation.claims import EQUAL, Claim
from transformer_jax.ablation.families import Family, families, standing_claims
from transformer_jax.ablation.looks import Looks, level
from transformer_jax.ablation.many_to_one import EqualTables, balanced, equal_tables
from transformer_jax.ablation.measured_table import MeasuredTable, Pair, measure_table
from transformer_jax.ablation.power import POWER, SEARCHED, SEEDS
from transformer_jax.errors import ConfigError

PILOT_SEEDS = 3
FROM_MARGIN, FROM_PILOT = 'its margin', 'the pilot'  # where a difference to be found comes from


def begin_pilot(
    earlier: Mapping[str, Any] | None, seeds: int, looks: Looks, claims: int, now: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a pilot: the earlier one, or one that has not run yet.

    Args:
        earlier: what experiment.json has.
        seeds: that were asked for; 0: as the earlier one, or PILOT_SEEDS.
        looks: that were taken.
        claims: how many there are.
        now: date and commit.

    Raises:
        ConfigError: verdicts were taken already, there are no claims, or too few or other seeds.
    """
    if not claims:
        raise ConfigError('a pilot plans seeds for claims: the experiment has no claims=')
    if earlier:
        if seeds not in (0, earlier['seeds']):
            raise ConfigError(
                f'--seeds={seeds} of a pilot: that under --root had {earlier["seeds"]}, go on with '
                'these'
            )
        return dict(earlier)
    if looks['taken']:
        raise ConfigError(
            f'verdicts were taken with {looks["taken"][-1]["seeds"]} seeds, and a pilot comes '
            'before the first: take another --root'
        )
    if seeds == 1:
        raise ConfigError('--seeds=1 of a pilot: a spread needs 2 or more')
    unknown = {'planned': 0, 'budget': None, 'seconds_per_seed': None, 'claims': []}
    return {'seeds': seeds or PILOT_SEEDS, **now, **unknown}


def go_on(
    earlier: Mapping[str, Any] | None, seeds: int, looks: Looks, default: int
) -> dict[str, Any] | None:
    """Return the record of an earlier pilot with the seeds that follow it; None if there is none.

    Args:
        earlier: what experiment.json has.
        seeds: that were asked for; 0: as planned.
        looks: that were taken; after the first the plan stays.
        default: seeds, where nothing was planned.
    """
    if not earlier:
        return None
    if looks['taken']:
        return dict(earlier)
    return {**earlier, 'planned': seeds or earlier['planned'] or default}


def waits(experiment: Mapping[str, Any]) -> str:
    """Say why there are no verdicts yet: a pilot was run, and not what it planned; '' if not so."""
    pilot, looks = experiment.get('pilot'), experiment.get('looks') or {'taken': ()}
    if not pilot or looks['taken']:
        return ''
    if pilot['planned']:
        return f'verdicts are taken with the {pilot["planned"]} seeds that a pilot planned'
    return f'a pilot of {pilot["seeds"]} seeds: ablate with --budget or --seeds goes on'


def plan_seeds(
    experiment: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], budget: float | None
) -> dict[str, Any]:
    """Return the record of a pilot that has run, with what it says of each claim.

    Args:
        experiment: the content of experiment.json, with `pilot`.
        runs: the sound results, each with its `folder`.
        budget: seconds that all runs may take, the pilot's among them; None: nothing is planned.

    Raises:
        ConfigError: no claim can be planned for, or the budget is too small.
    """
    pilot = experiment['pilot']
    if budget is not None and experiment['looks']['taken']:
        raise ConfigError('verdicts were taken already: --budget no longer changes the plan')
    first = min(experiment['seeds'])
    runs = [run for run in runs if run['seed'] < first + pilot['seeds']]
    found = families(experiment, runs)
    at = level(experiment)
    tables = {label: _measured(label, family, at) for label, family in found.items()}
    claims = [
        _plan_claim(claim, experiment, found[claim.label], tables[claim.label])
        for claim in standing_claims(experiment)
    ]
    # Runs side by side take their time together.
    shares = [(run['wall_seconds'] or 0.0) / (run.get('side_by_side') or 1) for run in runs]
    seconds = sum(shares) / pilot['seeds']
    record = {**pilot, 'seconds_per_seed': seconds, 'claims': claims}
    if budget is not None:
        record |= {'budget': budget, 'planned': _afford(record, budget)}
    return record


def _measured(label: str, family: Family, at: float) -> MeasuredTable:
    table = measure_table(family.values, list(family.margins), family.scale, at)
    if table is None:
        raise ConfigError(
            f'no run of the pilot differs from the others of its variant by {label}: it cannot say '
            'how many seeds decide; choose a number with --seeds'
        )
    return table


def _plan_claim(
    claim: Claim, experiment: Mapping[str, Any], family: Family, table: MeasuredTable
) -> dict[str, Any]:
    """Plan for the comparison of a claim that needs most seeds."""
    compared = {names: family.claimed[names] for names in claim.pairs(experiment)}
    plans = [
        {'pair': list(names), **_plan_pair(claim, pair, table)}
        for names, pair in compared.items()
        if pair in table.pairs
    ]
    if not plans:
        raise ConfigError(f'claim {claim.text!r} compares nothing: its variants are the same runs')
    worst = max(plans, key=lambda plan: (plan['seeds'] or math.inf, plan['sd'] / plan['step']))
    return {'text': claim.text, **worst}


def _plan_pair(claim: Claim, pair: Pair, table: MeasuredTable) -> dict[str, Any]:
    number = table.pairs.index(pair)
    sd, found = table.sd(number), table.difference(number)
    towards, source = found, FROM_PILOT
    # On the side of what was found: a share of 1 can only get smaller.
    margin = math.copysign(claim.margin, found) if claim.margin else None
    if margin and (on_scale := table.on_scale(number, margin)):
        towards, source = on_scale, FROM_MARGIN
    step = abs(towards)
    power = {n: _power(claim, n, number, step / sd, table) for n in SEEDS}
    seeds = next((n for n in SEEDS if power[n] >= POWER), None)
    return {
        'difference': abs(float(table.scale.shift(table.center(number), np.array([towards]))[0])),
        'from': source,
        'step': step,
        'sd': sd,
        'seeds': seeds,
        'power': {str(n): power[n] for n in SEEDS},
        'half_width': {str(n): _half_width(n, number, table) for n in SEEDS},
    }


def _tables(seeds: int, table: MeasuredTable) -> EqualTables:
    layout = table.layout
    return equal_tables(balanced(seeds, layout.pairs, layout.blocks, layout.level), SEARCHED)


def _power(claim: Claim, seeds: int, number: int, step: float, table: MeasuredTable) -> float:
    """Return the chance that a comparison decides its claim; `step` in standard deviations."""
    equal = _tables(seeds, table)
    within = claim.direction == EQUAL
    return equal.power_within(number, step) if within else equal.power(number, step)


def _half_width(seeds: int, number: int, table: MeasuredTable) -> float:
    """Return half the simultaneous interval that is to be expected, in units of the metric."""
    half = float(np.median(_tables(seeds, table).half_PB[number])) * table.sd(number)
    low, high = table.scale.shift(table.center(number), np.array([-half, half]))
    return float(high - low) / 2


def _afford(record: Mapping[str, Any], budget: float) -> int:
    """Return how many seeds decide all claims, or as many as the budget pays for."""
    each, least = record['seconds_per_seed'], record['seeds']
    affordable = int(budget / each) if each else SEEDS[-1]
    if affordable < least:
        raise ConfigError(
            f'--budget of {budget:,.0f} s: the {least} seeds of the pilot alone took '
            f'{least * each:,.0f} s'
        )
    needed = [claim['seeds'] or SEEDS[-1] for claim in record['claims']]
    return max(min(max(needed), affordable), least)


def foreseen(by_seeds: Mapping[str, float], seeds: int) -> float:
    """Return what a plan foresees for a number of seeds, its `power` or `half_width`.

    Of numbers that it has not computed, the next smaller one counts.
    """
    return by_seeds[str(max(n for n in SEEDS if n <= max(seeds, SEEDS[0])))]

"""What a pilot says, as a table for a person."""

from collections.abc import Mapping
from typing import Any

import rich.table

from transformer_jax.ablation.durations import duration
from transformer_jax.ablation.pilot import foreseen
from transformer_jax.ablation.power import POWER, SEEDS
from transformer_jax.display.tables import result_table

COLUMNS = ('claim', 'compared', 'to be found', 'from', 'seeds', 'time', 'chance as planned')


def pilot_table(pilot: Mapping[str, Any]) -> rich.table.Table:
    """Show how many seeds decide each claim, and what they cost.

    Args:
        pilot: of experiment.json, once it has run.
    """
    each, planned = pilot['seconds_per_seed'], pilot['planned']
    rows = []
    for claim in pilot['claims']:
        seeds = claim['seeds']
        rows.append(
            [
                claim['text'],
                ' − '.join(claim['pair']),
                f'{claim["difference"]:.3g}',
                claim['from'],
                f'{seeds}' if seeds else f'> {SEEDS[-1]}',
                duration(seeds * each) if seeds else '',
                f'{foreseen(claim["power"], planned):.0%}' if planned else '',
            ]
        )
    title = (
        f'{pilot["seeds"]} seeds of a pilot took {duration(pilot["seeds"] * each)}; seeds that '
        f'decide each claim with a chance of {POWER:.0%}, time of training for all variants'
    )
    if planned:
        title += f'; planned: {planned} seeds, {duration(planned * each)}'
    return result_table(title, COLUMNS, rows, text_columns=4, overflow='fold')

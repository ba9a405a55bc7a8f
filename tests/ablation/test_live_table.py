"""The live table: states, steps and remarks of runs."""

import json

from helpers.tiny_ablation import plan

from transformer_jax.ablation.live_table import LiveTable


def cells_of(live_table) -> list[tuple[str, ...]]:
    columns = ([str(cell) for cell in column.cells] for column in live_table.table().columns)
    return list(zip(*columns, strict=True))


def test_the_table_on_a_terminal(tmp_path):
    made, lines = plan(tmp_path), []
    live_table = LiveTable(made, set(made.trials[1:]), lines.append)
    live_table.set_remark(made.trials[1:2], 'step 2')
    live_table.states[made.trials[2]] = 'failed'
    made.trials[1].workdir.mkdir(parents=True)
    (made.trials[1].workdir / 'metrics.jsonl').write_text(
        json.dumps({'step': 2, 'split': 'train', 'loss': 3.25, 'steps_per_second': 0.01}) + '\n'
    )
    assert cells_of(live_table) == [
        ('base, two heads', '1/2', 'training seed 1', '2/4', '3.2500', '3.3'),
        ('one head', '0/2', '1 failed', '', '', ''),
        ('no dropout', '0/2', '', '', '', ''),
    ]
    live_table.set_remark(made.trials[4:], 'both')
    [no_dropout] = [row for row in cells_of(live_table) if row[0] == 'no dropout']
    assert no_dropout[2] == 'training seed 0, 1'
    assert lines == ['base/1: step 2', 'no-dropout/0-1: both']
    for run, at in zip(made.trials[4:], (2, 3), strict=True):
        run.workdir.mkdir(parents=True)
        (run.workdir / 'metrics.jsonl').write_text(
            json.dumps({'step': at, 'split': 'train', 'loss': 'nan', 'steps_per_second': 0.01})
            + '\n'
        )
    furthest = ('training seed 0, 1', '3/4', 'nan', '1.7')
    assert cells_of(live_table)[2][2:] == furthest

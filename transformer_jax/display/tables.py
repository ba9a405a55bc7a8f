"""Tables on standard output."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import rich.box
import rich.console
import rich.table
import rich.text

from transformer_jax.storage.json_text import to_json

FILE_WIDTH = 160  # columns, where the output is no terminal, which has a width of its own


def result_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: int = 1,
    overflow: Literal['ellipsis', 'fold'] = 'ellipsis',
) -> rich.table.Table:
    """Make a plain table.

    Args:
        title: the line above it. No text is markup of rich: `[bold]` and `:car:` stay as they are.
        columns: the headings.
        rows: cells, as many as there are columns.
        text_columns: how many of the first columns are text, aligned to the left; the others are
            numbers, aligned to the right.
        overflow: what becomes of text that is too long for the terminal: cut, or folded.
    """
    table = rich.table.Table(
        title=rich.text.Text(title, 'table.title'),
        title_justify='left',
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, name in enumerate(columns):
        if index < text_columns:
            table.add_column(rich.text.Text(name), overflow=overflow)
        else:
            table.add_column(rich.text.Text(name), justify='right')
    for row in rows:
        table.add_row(*map(rich.text.Text, row))
    return table


def output_console() -> rich.console.Console:
    """Standard output, FILE_WIDTH columns wide where it is no terminal."""
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=FILE_WIDTH)


def print_benchmark(benchmark: Any, tables: Iterable[rich.table.Table], as_json: bool) -> None:
    """Print the machine and the tables of a benchmark, or all of it as one JSON object.

    Args:
        benchmark: a dataclass whose `machine` is that of `provenance.describe_machine`.
        tables: what to print below the line about the machine.
        as_json: print one JSON object and no table.
    """
    if as_json:
        print(to_json(dataclasses.asdict(benchmark)))
        return
    machine = benchmark.machine
    console = output_console()
    console.print(
        f'{machine["devices"]}, {machine["cpus"]} CPUs, jax {machine["versions"]["jax"]}, '
        f'load average {machine["load_average"]:.1f} at the start',
        highlight=False,
        markup=False,
        emoji=False,
    )
    for table in tables:
        console.print(table)

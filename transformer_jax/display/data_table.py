"""A small table of records for notebooks: it prints well, and gives its columns as arrays."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

# A longer table is printed as its first and last rows.
MOST_ROWS = 40
ENDS = 10
MISSING = '–'  # printed where a row has no value


class Table(Sequence[dict[str, Any]]):
    """Rows of named values.

    `len(table)` counts the rows, `table[0]` is the first of them as a dictionary, `table['loss']` a
    column as a NumPy array [rows], `table[2:]` a table of some of the rows. In a notebook the last
    value of a cell is shown as an HTML table.

    Attributes:
        rows: the rows, dictionaries; a row may lack a column.
        columns: the names of the columns.

    Example:
        >>> table = Table([{'step': 50, 'loss': 2.5}, {'step': 100, 'loss': 1.25}])
        >>> table['loss'].min()
        1.25
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()):
        """Keep rows as a table.

        Args:
            rows: what it holds.
            columns: their names and order; by default all that occur, in the order in which they
                first occur.
        """
        self.rows = [dict(row) for row in rows]
        self.columns = tuple(columns or dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice) -> 'Table': ...
    def __getitem__(self, key):
        if isinstance(key, str):
            return self.column(key)
        return Table(self.rows[key], self.columns) if isinstance(key, slice) else self.rows[key]

    def column(self, name: str) -> np.ndarray:
        """Return a column as an array [rows].

        It holds whole numbers where all values are, floats with NaN where a row has no value, or
        objects where there is text.

        Raises:
            KeyError: there is no such column; the message names those that there are.
        """
        if name not in self.columns:
            raise KeyError(f'{name!r}: the columns are {", ".join(self.columns)}')
        values = [row.get(name) for row in self.rows]
        if all(value is None or isinstance(value, int | float) for value in values):
            return np.array([np.nan if value is None else value for value in values])
        return np.array(values, object)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame; raises ModuleNotFoundError where pandas is not installed."""
        import pandas  # pyright: ignore[reportMissingImports]  (optional)

        return pandas.DataFrame(self.rows, columns=list(self.columns))

    def __repr__(self) -> str:
        lines = [list(self.columns), *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numbers = [self._is_number(name) for name in self.columns]
        aligned = (
            '  '.join(
                text.rjust(width) if number else text.ljust(width)
                for text, width, number in zip(line, widths, numbers, strict=True)
            )
            for line in lines
        )
        return '\n'.join([*(line.rstrip() for line in aligned), *self._remark()])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""

        def row(cells: Sequence[str], tag: str) -> str:
            return ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)

        head = f'<thead><tr>{row(self.columns, "th")}</tr></thead>'
        body = ''.join(f'<tr>{row(cells, "td")}</tr>' for cells in self._cells())
        remark = ''.join(f'<p>{line}</p>' for line in self._remark())
        return f'<table>{head}<tbody>{body}</tbody></table>{remark}'

    def _cells(self) -> list[list[str]]:
        """Return the printed rows as texts."""
        rows = [[_text(row.get(name)) for name in self.columns] for row in self.rows]
        if len(rows) > MOST_ROWS:
            rows = [*rows[:ENDS], ['…'] * len(self.columns), *rows[-ENDS:]]
        return rows

    def _remark(self) -> list[str]:
        return [f'{len(self)} rows'] if len(self) > MOST_ROWS or not self.rows else []

    def _is_number(self, name: str) -> bool:
        return self.column(name).dtype != object


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        # Four digits of a number are enough for a reader; the column has all of them.
        whole = value.is_integer() or abs(value) >= 1000
        return f'{value:.0f}' if whole and abs(value) < 1e15 else f'{value:.4g}'
    return str(value)

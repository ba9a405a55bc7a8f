"""A covering array: rows of choices in which every allowed pair of values of any two
axes occurs.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def covering_array(
    axes: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool]
) -> list[dict[str, Any]]:
    """Rows that are allowed as a whole and cover all pairs that are allowed beside the other axes'
    first values.

    Greedy: each row starts from the first pair that is still missing and takes on every axis the
    value that adds most pairs. Which pairs get along is asked once for each; a row that is refused
    although its pairs are not goes back to first values, axis by axis.

    Args:
        axes: the values of each axis, the first the plainest.
        allowed: whether a row, a value for each axis, can be built.

    Raises:
        ValueError: the row of first values is not allowed.
    """
    plain = {axis: values[0] for axis, values in axes.items()}
    if not allowed(plain):
        raise ValueError(f'the plain row is not allowed: {plain}')
    pairs = [
        ((a, x), (b, y))
        for a, b in itertools.combinations(axes, 2)
        for x in axes[a]
        for y in axes[b]
    ]
    agree = {pair for pair in pairs if allowed(plain | dict(pair))}
    missing, rows = dict.fromkeys(pair for pair in pairs if pair in agree), []

    def fits(row, axis, value):
        return all(_pair(axes, (axis, value), other) in agree for other in row.items())

    while missing:
        row = dict(next(iter(missing)))
        start = dict(row)
        for axis in axes:
            if axis not in row:
                gains = [
                    (
                        sum(_pair(axes, (axis, v), other) in missing for other in row.items()),
                        -place,
                        v,
                    )
                    for place, v in enumerate(axes[axis])
                    if fits(row, axis, v)
                ]
                row[axis] = max(gains)[2] if gains else axes[axis][0]
        for axis in axes:
            if allowed(row):
                break
            row[axis] = start[axis] if axis in start else axes[axis][0]
        for pair in itertools.combinations(
            sorted(row.items(), key=lambda item: list(axes).index(item[0])), 2
        ):
            missing.pop(pair, None)
        rows.append(row)
    return rows


def _pair(axes: Mapping[str, Sequence[Any]], one: tuple[str, Any], other: tuple[str, Any]) -> tuple:
    order = list(axes)
    return (one, other) if order.index(one[0]) < order.index(other[0]) else (other, one)

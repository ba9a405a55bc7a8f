"""Numbers written with as many digits as mean something, and with units."""

import math
from collections.abc import Iterable

MINUS = '−'  # as wide as a plus, unlike the hyphen
NONE = '–'


def decimals(deviations: Iterable[float]) -> int:
    """Choose the digits after the point, 0 to 5.

    With so many the median of the positive standard deviations has two significant digits.
    """
    positive = sorted(deviation for deviation in deviations if deviation > 0)
    if not positive:
        return 4
    return min(max(1 - math.floor(math.log10(positive[len(positive) // 2])), 0), 5)


def fixed(value: float, places: int, signed: bool = False) -> str:
    """Write a number as '−1.20', with a proper minus and no sign before a zero."""
    text = f'{abs(value):,.{places}f}'
    zero = not text.strip('0.,')
    return (MINUS if value < 0 and not zero else '+' if signed and not zero else '') + text


def interval(low: float, high: float, places: int, signed: bool = False) -> str:
    """Write an interval as '[37.10, 38.20]'."""
    return f'[{fixed(low, places, signed)}, {fixed(high, places, signed)}]'


def signed(value: float) -> str:
    """Write a difference with three significant digits and its sign: '+0.0123'."""
    return (MINUS if value < 0 else '+' if value > 0 else '') + digits(abs(value))


def p_value(p: float) -> str:
    """Write a p value with three digits, and none below 0.0001."""
    return '< 0.0001' if p < 0.0001 else f'{p:.4f}' if p < 0.001 else f'{p:.3f}'


def count(value: float | None) -> str:
    """Write a count with three digits, 1234567 as '1.23M'."""
    if value is None:
        return NONE
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= 0.9995 * size:
            return f'{digits(value / size)}{letter}'
    return digits(value)


def size(value: float | None) -> str:
    """Write bytes in binary units, '1.21 GiB'."""
    if value is None:
        return NONE
    for unit, letters in ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
        if value >= unit:
            return f'{digits(value / unit)} {letters}'
    return f'{value:.0f} B'


def seconds(value: float | None) -> str:
    """Write seconds as '3.21 ms', '4.2 s', '12.3 min' or '5.1 h'."""
    if value is None:
        return NONE
    if value < 1:
        return f'{digits(1000 * value)} ms'
    if value < 120:
        return f'{digits(value)} s'
    return f'{value / 60:.1f} min' if value < 7200 else f'{value / 3600:.1f} h'


def percent(value: float | None) -> str:
    """Write a share as '41.2%'."""
    return NONE if value is None else f'{100 * value:.1f}%'


def digits(value: float) -> str:
    """Write three significant digits, never a power of ten: 0.123, 12.3, 123, 1235."""
    if not value:
        return '0'
    power = int(f'{value:.2e}'.partition('e')[2])  # of the rounded number: 0.9996 becomes 1.00
    return f'{value:.{min(max(2 - power, 0), 6)}f}'


def printed(value: float | None, column: Iterable[float]) -> str:
    """Write a published number with as many digits as the most exact of its column: 26.0, 25.8.

    One so small or large that Python writes it with an exponent stays as it is: 3e−07.
    """
    if value is None:
        return NONE
    texts = [repr(other) for other in column]
    if 'e' in repr(value):
        return repr(value).replace('-', MINUS)
    return fixed(value, max(len(text.partition('.')[2]) for text in texts if 'e' not in text))

"""The range of a number, stated where its field is declared: `b1: float = number(0.9, low=0, …)`.

It is checked by `Range` alone: for keys of a configuration in `config.values`, for the classes of
spec strings by `Ranged` when one is made. The reference pages print it.
"""

import ctypes
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

SMALLEST = 2.0**-126  # float32 has fewer digits below, and accelerators take such numbers as 0


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers, and single values beside it.

    Attributes:
        low: the smallest value.
        above: a bound that is no value itself.
        high: the largest value.
        below: a bound that is no value itself.
        also: values outside of these bounds, such as a −1 that stands for the rest.
    """

    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        return value in self.also or (self._within(value) and self._within_as_float32(value))

    def _within(self, value: float) -> bool:
        """Tell whether a number lies between the bounds, whatever it is in float32."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )

    def _within_as_float32(self, value: float) -> bool:
        """Tell whether a number stays off the bounds in float32, where 1 − 1e-9 is 1."""
        single = as_float32(value) if isinstance(value, float) else value
        return (
            (isinstance(single, int) or math.isfinite(single))
            and (self.above is None or single > self.above)
            and (self.below is None or single < self.below)
        )

    def __str__(self) -> str:
        lower = f'{_plain(self.low)} ≤ ' if self.low is not None else ''
        lower = f'{_plain(self.above)} < ' if self.above is not None else lower
        upper = f' ≤ {_plain(self.high)}' if self.high is not None else ''
        upper = f' < {_plain(self.below)}' if self.below is not None else upper
        interval = f'{lower}value{upper}' if lower or upper else 'finite'
        return ' or '.join([*map(_plain, self.also), interval])

    def reject(self, name: str, value: float) -> str:
        """Explain why `name` cannot have a value; '' where it can."""
        if value in self:
            return ''
        rounded = f' ({as_float32(value)} in float32)' if self._within(value) else ''
        return (
            f'{name}={shorten(value)}{rounded} is {"not" if self == FINITE else "outside"} {self}'
        )


FINITE = Range()


def number(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    also: tuple[float, ...] = (),
    kw_only: bool = False,
) -> Any:
    """Declare a field that is a number, or a tuple of numbers, within a `Range`.

    Where the field may also be a string, the range is that of its numbers.
    """
    interval = Range(low, above, high, below, also)
    return dataclasses.field(default=default, metadata={'range': interval}, kw_only=kw_only)


class RangeError(ValueError):
    """A number is outside its range; `field` is the name of its field."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Ranged:
    """The base class of dataclasses that a spec string names: their numbers are checked.

    A subclass with a `__post_init__` calls that of this class first.
    """

    def __post_init__(self):
        for name, interval, value in numbers(self):
            if why := interval.reject(name, value):
                raise RangeError(name, why)


def numbers(instance: Any) -> Iterator[tuple[str, Range, float]]:
    """Yield (name, range, value) of each number in the fields of a dataclass.

    The items of a tuple are numbers of their own; a field without a range takes finite numbers.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield field.name, field.metadata.get('range', FINITE), item


def default_value(field: dataclasses.Field) -> Any:
    """Return the default value of a field; MISSING where it has none."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def as_float32(value: float) -> float:
    """Round a number to float32, as a program that computes with it does."""
    single = ctypes.c_float(value).value
    return 0.0 if abs(single) < SMALLEST else single


def shorten(value: Any, most: int = 80) -> str:
    """Print a value for a message, with the middle of a long one left out."""
    if (
        isinstance(value, int) and value.bit_length() > 256
    ):  # Python refuses to print very long ones.
        return f'{"-" if value < 0 else ""}(about 10^{round(value.bit_length() * math.log10(2))})'
    text = repr(value)
    return text if len(text) <= most else f'{text[: most - 20]} … {text[-10:]}'


def _plain(value: float) -> str:
    return (
        f'{value:,}'
        if isinstance(value, int)
        else f'{value:g}'.replace('e+0', 'e').replace('e-0', 'e-')
    )

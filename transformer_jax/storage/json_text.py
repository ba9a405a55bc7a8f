"""JSON that every reader takes: its numbers are finite.

JSON has no NaN and no infinity; Python's own `json.dumps` writes the words NaN and Infinity, which
other readers refuse. So they are written as the strings 'nan', 'inf' and '-inf'.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

NON_FINITE = {text: float(text) for text in ('nan', 'inf', '-inf')}


def to_json(value: Any, **options: Any) -> str:
    """Write a value as JSON; `options` are those of `json.dumps`."""
    return json.dumps(encode_non_finite(value), allow_nan=False, **options)


def encode_non_finite(value: Any) -> Any:
    """Replace the floats that JSON lacks by 'nan', 'inf' or '-inf', at any depth of `value`."""
    if isinstance(value, Mapping):
        return {key: encode_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_non_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decode_non_finite(value: Any) -> Any:
    """Turn 'nan', 'inf' or '-inf' back into a float; another value is returned as it is."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value

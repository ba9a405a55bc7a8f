"""The allgather engine: rows that are cut over devices, where each query sees all keys at once.

Every device gathers the keys and values of whole rows, and attends to them from its own queries by
the dense engine. Memory is O(T·S / devices) for scores and O(S) for keys, which few key-value heads
make small. It runs what needs all keys of a row at once, which no ring can.
"""

from typing import Any

import jax

from transformer_jax.attention.engines import dense
from transformer_jax.attention.engines.pieces import Pieces, attend_in_pieces


def attend(kind: Any, queries: Any, keys: Any, inputs: Any) -> jax.Array:
    """Return o_BTNH of a scored kind."""

    def attend_piece(pieces: Pieces, queries: Any, keys: Any, inputs: Any) -> jax.Array:
        keys, key_tokens = pieces.gather_time((keys, inputs.key_tokens))
        return dense.attend(kind, queries, keys, inputs.replace(key_tokens=key_tokens))

    return attend_in_pieces(attend_piece, queries, keys, inputs)

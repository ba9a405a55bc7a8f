"""A hash of a train state, to tell whether two runs ended in the same state."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax.storage.arrays import named_leaves
from transformer_jax.storage.json_text import to_json


def fingerprint(state: Any, data: Any) -> str:
    """Hash a train state and a data position with SHA-256; returns 64 hexadecimal digits.

    Covers the name, dtype, shape and bytes of every array. jax and numpy arrays give the same
    hash, whatever their sharding. In a run of several processes every process must call this.

    Args:
        state: a pytree of arrays.
        data: the data position, a JSON value.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(state).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f'{name} {array.dtype}{list(array.shape)}\n'.encode())
        digest.update(array.tobytes())
    digest.update(to_json(data, sort_keys=True).encode())
    return digest.hexdigest()

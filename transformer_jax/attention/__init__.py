"""Attention: the mathematics between the projections of a layer.

- `base`: the interface of an attention kind.
- `kinds`: the table KINDS and one file for each kind.
- `scored`: what the kinds that score each pair of query and key have in common.
- `masks`, `normalizers`: options of the scored kinds, each with its table.
- `engines`: algorithms that compute the same result with different time and memory.
- `cache`: keys and values of earlier tokens, for decoding step by step.
- `projections`: the projections that most kinds use.
"""

from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.kinds import KINDS

__all__ = ['KINDS', 'Attention', 'AttentionInputs']

"""Attention: pure mathematics between projections. Kinds, masks, normalizers, engines
and caches.
"""

from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.kinds import KINDS

__all__ = ['KINDS', 'Attention', 'AttentionInputs']

"""Attention: pure mathematics between projections. Kinds, masks, normalizers, engines
and caches.
"""

from transformer_jax.attention.base import Attention, Context
from transformer_jax.attention.kinds import KINDS

__all__ = ['KINDS', 'Attention', 'Context']

"""Kinds of attention: pure mathematics, one file a kind."""

from transformer_jax.attention.base import Attention
from transformer_jax.attention.softmax import Softmax

KINDS: dict[str, type[Attention]] = {
    'softmax': Softmax,
}

"""Transformers in JAX: train, ablate, reproduce.

Array names carry their shape as a suffix, one letter a dimension, and einsum letters equal
the suffixes:

    B batch   T query/target length   S key/source length   N query heads   K key-value heads   G = N/K
    H head dim   D model dim   F feed-forward dim   V vocabulary   C chunk of tokens
"""

__version__ = '0.1.0'

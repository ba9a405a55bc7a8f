"""The command line, one module for each group of commands."""

from transformer_jax.cli.entry import main

__all__ = ['main']

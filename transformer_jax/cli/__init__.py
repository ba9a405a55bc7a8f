"""The command line: one file a group of commands, and the table of all."""

from transformer_jax.cli.main import main

__all__ = ['main']

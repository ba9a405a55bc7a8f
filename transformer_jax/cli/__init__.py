"""The command line: one file for each group of commands, and one table of all commands."""

from transformer_jax.cli.main import main

__all__ = ['main']

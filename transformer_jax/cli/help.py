"""The texts of `transformer-jax help`, `COMMAND --help` and `--version`."""

import importlib.metadata
import shutil
import textwrap

from absl import flags

from transformer_jax.cli.commands import COMMANDS
from transformer_jax.cli.flags import Flags


def version() -> str:
    """Name the version of the program, and those of what it computes with."""
    names = ('transformer_jax', 'jax', 'flax')
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)


def overview() -> str:
    """List all commands with what they do."""
    rows = _rows([(f'transformer-jax {name}', command.help) for name, command in COMMANDS.items()])
    return '\n'.join(
        [
            'Transformers in JAX: train, ablate, reproduce.',
            '',
            'Commands (`transformer-jax help COMMAND` shows flags and an example):',
            *rows,
            '',
            'transformer-jax --version prints the version.',
        ]
    )


def usage(name: str, values: Flags) -> str:
    """Describe a command: what it does, an example, and its flags with their defaults."""
    command = COMMANDS[name]
    argument = command.argument and f' {command.argument.upper()}'
    shown = [
        values[flag] for flag in sorted(values) if flag == values[flag].name and '.' not in flag
    ]
    return '\n'.join(
        [
            f'transformer-jax {name}{argument}: {command.help}',
            '',
            f'Example: {command.example}',
            '',
            *_rows([(f'--{flag.name}', _meaning(flag)) for flag in shown]),
        ]
    )


def default_text(flag: flags.Flag) -> str:
    """Write a flag's default as it is typed; '' where it has none, or one that says nothing."""
    if flag.name == 'config' or flag.default in (None, '', [], False):
        return ''
    return ','.join(map(str, flag.default)) if isinstance(flag.default, list) else str(flag.default)


def _meaning(flag: flags.Flag) -> str:
    default = default_text(flag)
    return f'{flag.help} Default: {default}.' if default else str(flag.help)


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    """Lay out names and their meanings in two columns, as wide as the terminal."""
    start = max(len(name) for name, _ in rows) + 4
    width = max(start + 40, min(shutil.get_terminal_size().columns, 110))
    lines = []
    for name, meaning in rows:
        first, *more = textwrap.wrap(meaning, width - start, break_on_hyphens=False)
        lines += [f'  {name:<{start - 2}}{first}', *(f'{"":<{start}}{line}' for line in more)]
    return lines

"""Where the program begins: signals are taken over before seconds of imports.

Nothing that this module imports at its top may import JAX.
"""

import sys

from transformer_jax import process_end


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code, see `errors`.

    Args:
        argv: the arguments after the program's name. None: those of this process, whose signals
            are taken over, see `process_end`.
    """
    if argv is not None:
        return _run(argv)
    guard = process_end.install_guard()
    try:
        return _run(sys.argv[1:])
    finally:
        guard.finish()


def _run(arguments: list[str]) -> int:
    from transformer_jax.cli.program import run_command

    return run_command(arguments)

"""The source of the package, read once for all tests of the house rules."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'transformer_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

every_file = pytest.mark.parametrize(
    'path', FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES]
)


def functions(tree):
    """All functions and methods of a module."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]

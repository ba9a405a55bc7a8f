"""Sizes that read well, and docstrings that say something."""

import ast
import re

from helpers.source import PACKAGE, TREES, every_file, functions

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_COLUMNS = 300, 60, 8, 100
LONG_FUNCTIONS = {'beam_search', 'run'}  # One screen of a loop reads better whole.
MIN_WORDS = 4  # of a docstring, unless it is a formula
FORMULA = re.compile(r'[=√Σ·/|^()]')
REFERENCE = re.compile(r'See [\w.]+\.')  # to the class whose method this one overrides


@every_file
def test_a_file_fits(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE


@every_file
def test_lines_fit(path):
    long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert not long, f'lines {long} have more than {MAX_COLUMNS} columns'


@every_file
def test_functions_fit(path):
    for function in functions(TREES[path]):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= MAX_FUNCTION or function.name in LONG_FUNCTIONS, (
            f'{function.name} has {lines} lines'
        )


@every_file
def test_functions_take_few_parameters(path):
    for function in functions(TREES[path]):
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len([name for name in names if name not in ('self', 'cls')])
        assert count <= MAX_PARAMETERS, f'{function.name} takes {count} parameters'


def documented(tree):
    """Yield (name, node) of all that can have a docstring and is public, methods included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node


@every_file
def test_what_is_public_is_documented(path):
    tree = TREES[path]
    assert ast.get_docstring(tree) or not tree.body, 'the module has no docstring'
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            assert ast.get_docstring(node), f'{node.name} has no docstring'


@every_file
def test_docstrings_say_something(path):
    for name, node in documented(TREES[path]):
        text = ast.get_docstring(node) or ''
        short = text and len(text.split()) < MIN_WORDS
        fine = FORMULA.search(text) or REFERENCE.fullmatch(text)
        assert not short or fine, f'{name}: {text!r} says too little'


@every_file
def test_a_summary_is_one_line(path):
    for name, node in documented(TREES[path]):
        text = ast.get_docstring(node)
        if text:
            summary, _, rest = text.partition('\n')
            assert not rest or not rest.partition('\n')[0].strip(), f'{name}: {summary!r} goes on'


def test_the_root_of_the_package_is_short():
    assert len(list(PACKAGE.glob('*.py'))) <= 12

"""The package's source against the rules of the house: shapes in names, layers of imports, sizes
that read well.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'transformer_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# From the ground up: a module imports only from those before it. `positions`, `attention`, `data`
# are packages, whole.
LAYERS = (
    'errors',
    'batch',  # what everything may know
    'numerics',
    'scope',
    'spec',
    'cache',
    'positions',
    'attention',  # attention mathematics
    'layers',
    'norms',
    'moe',
    'ffns',
    'cells',
    'losses',
    'optim',
    'checks',
    'config',  # name all of the above, and the data's
    'blocks',
    'rnn',
    'models',  # modules
    'step',
    'sharding',
    'parallel',
    'storage',
    'manifest',
    'workdir',
    'checkpoint',
    'metrics',
    'decode',
    'runs',
    'replicas',
    'heap',
    'signals',
    'progress',
    'plots',
    'timing',
    'evaluate',
    'lengths',
    'generate',
    'train',
    'costs',
    'inspect',
    'bench_decode',
    'bench_attention',
    'bench',
    'stats',
    'match',
    'probes',
    'experiment',
    'results',
    'measure',
    'plan',
    'rows',
    'board',
    'bootstrap',
    'agreement',
    'ablate',
    'report',
    'commands_ablate',
    'commands_probe',
    'commands_report',
    'commands',
    'cli',
    '__main__',
)
# `data` stands beside these layers: it uses `DATA_USES` alone, and all from `checks` on may use it.
DATA_USES = {'errors', 'batch', 'spec'}
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 60, 8
LONG_FUNCTIONS = {'beam_search', 'train'}  # one screen of a loop reads better whole


def label(path):
    return str(path.relative_to(PACKAGE))


every_file = pytest.mark.parametrize('path', FILES, ids=label)


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


# --- Shapes in names ------------------------------------------------------------------------------


def einsums(node):
    return [
        n
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == 'einsum'
    ]


def suffix(node):
    """The shape suffix of a name, an attribute, or either of them cast: 'BTD' of
    `self.x_BTD.astype(dtype)`.
    """
    while (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == 'astype'
    ):
        node = node.func.value
    name = (
        node.attr
        if isinstance(node, ast.Attribute)
        else node.id
        if isinstance(node, ast.Name)
        else ''
    )
    return name.rpartition('_')[2] if '_' in name else ''


def shape_errors(tree):
    """What in a module breaks the rule that einsum letters equal the suffixes of operands and of
    the assigned name.
    """
    errors = []
    for call in einsums(tree):
        formula, *operands = call.args
        if not isinstance(formula, ast.Constant):
            errors.append(f'line {call.lineno}: the letters of einsum are no literal')
            continue
        letters = formula.value.partition('->')[0].split(',')
        found = [suffix(operand) for operand in operands]
        if letters != found:
            errors.append(f'line {call.lineno}: {formula.value!r} of operands {found}')
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for formula in (
                call.args[0]
                for call in einsums(statement)
                if isinstance(call.args[0], ast.Constant)
            ):
                output = formula.value.partition('->')[2]
                if [suffix(target) for target in targets] != [output]:
                    errors.append(
                        f'line {statement.lineno}: {output!r} assigned to {ast.unparse(targets[0])!r}'
                    )
    return errors


@every_file
def test_einsum_letters_are_the_suffixes(path):
    assert shape_errors(TREES[path]) == []


def test_the_package_has_einsums():
    assert sum(len(einsums(tree)) for tree in TREES.values()) >= 5


@pytest.mark.parametrize(
    ('line', 'wrong'),
    [
        ("o_BTD = jnp.einsum('BTF,FD->BTD', h_BTF, w_FD)", 0),
        ("o_BTD = jnp.einsum('BTF,FD->BTD', h_BTF.astype(x), self.w_FD) + b", 0),
        ("return jnp.einsum('BTF,FD->BTD', h_BTF, w_FD)", 0),
        ("o_BTD = jnp.einsum('BTF,FD->BTD', h_BTD, w_FD)", 1),
        ("o_BTF = jnp.einsum('BTF,FD->BTD', h_BTF, w_FD)", 1),
        ("o_BTD = jnp.einsum('BTF,FD->BTD', h, w_FD)", 1),
        ("o_BTD = jnp.einsum('BTF,FD->BTD', h_BTF, f(w_FD))", 1),
        ('o_BTD = jnp.einsum(letters, h_BTF, w_FD)', 1),
    ],
)
def test_the_reader_of_einsums_sees_what_is_wrong(line, wrong):
    assert len(shape_errors(ast.parse(line))) == wrong


# --- Imports go downward --------------------------------------------------------------------------


def module_of(path):
    """'attention' of attention/masks.py, 'step' of step.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(tree):
    """The modules of the package that a module imports, wherever the import stands; those for type
    checks aside.
    """
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == 'TYPE_CHECKING'
        for node in ast.walk(block)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            assert not node.level, 'relative import'
            if not node.module.startswith('transformer_jax'):
                continue
            inner = node.module.split('.')[1:]
            names |= {inner[0]} if inner else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {
                alias.name.split('.')[1]
                for alias in node.names
                if alias.name.startswith('transformer_jax.')
            }
    return names - {'__version__'}


@every_file
def test_imports_go_downward(path):
    module, uses = module_of(path), imported(TREES[path])
    if module == '__init__':
        assert not uses
    elif module == 'data':
        assert uses - {'data'} <= DATA_USES
    else:
        assert module in LAYERS, f'{module} has no place in LAYERS'
        place = LAYERS.index(module)
        allowed = set(LAYERS[:place]) | ({'data'} if place >= LAYERS.index('checks') else set())
        assert uses - {module} <= allowed, (
            f'{module} may not import {sorted(uses - {module} - allowed)}'
        )


@every_file
def test_config_dicts_end_at_the_conversion(path):
    names = {node.attr for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)}
    names |= {
        alias.name
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not names & {'ConfigDict', 'FrozenConfigDict'} or module_of(path) in (
        'config',
        'experiment',
        'commands',
    )


@every_file
def test_collectives_stay_out_of_model_and_loss(path):
    collectives = {'psum', 'pmean', 'all_gather', 'ppermute', 'all_to_all', 'axis_index'}
    used = {
        node.attr for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)
    } & collectives
    assert not used or module_of(path) in ('step', 'parallel')


# --- Sizes ----------------------------------------------------------------------------------------


@every_file
def test_a_file_fits(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE


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


@every_file
def test_what_is_public_is_documented(path):
    tree = TREES[path]
    assert ast.get_docstring(tree) or not tree.body, 'the module has no docstring'
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
            assert ast.get_docstring(node), f'{node.name} has no docstring'

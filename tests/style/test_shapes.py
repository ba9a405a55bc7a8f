"""Shapes in names: the letters of every einsum are the suffixes of its operands and its result."""

import ast

import pytest
from helpers.source import TREES, every_file


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
                    name = ast.unparse(targets[0])
                    errors.append(f'line {statement.lineno}: {output!r} assigned to {name!r}')
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

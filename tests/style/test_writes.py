"""Every change of the disk is made by `storage.files`, and all JSON is written by `to_json`.

So a full disk or a read-only directory is one line with exit code 3 everywhere, and no file or
output holds the words Infinity or NaN, which are not JSON.
"""

import ast

import pytest
from helpers.source import PACKAGE, TREES, every_file

# Methods of paths, and functions, that change the disk.
CHANGES = {
    'write_text',
    'write_bytes',
    'mkdir',
    'makedirs',
    'touch',
    'rename',
    'symlink_to',
    'hardlink_to',
    'unlink',
    'remove',
    'removedirs',
    'rmdir',
    'rmtree',
    'truncate',
    'ftruncate',
    'pwrite',
    'savefig',
    'copyfile',
    'copytree',
    'move',
    'save',
    'savez',
    'savetxt',
    'tofile',
    'dump',
    'TemporaryDirectory',
    'NamedTemporaryFile',
    'SummaryWriter',
    'EventsWriter',
    'download_and_prepare',
}
OWNERS = {'json', 'np', 'numpy', 'os', 'shutil', 'tempfile', 'pickle'}
# Blocks that turn an operating-system error into a WorkdirError.
WRAPPERS = {'wrap_os_errors', 'new_directory'}
# What else may change the disk, and why that is safe: 'module: call'.
ALLOWED = {
    'storage/locks.py: os.pwrite': 'an error is raised by cannot_write',
    'storage/locks.py: os.ftruncate': 'it frees space, in a file that is open',
    'storage/side_records.py: tensorboardX.event_file_writer.EventsWriter': 'SideRecord.attempt',
    'display/figures.py: figure.savefig': 'into memory',
}


def called(node):
    """The name that a call ends in: 'mkdir' of path.parent.mkdir()."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')


def opens_to_write(node):
    modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    modes += [k.value.value for k in node.keywords if k.arg == 'mode']
    return called(node) in ('open', 'fdopen') and any(
        isinstance(mode, str) and set(mode) <= set('rwaxbt+') and set(mode) & set('wax+')
        for mode in modes
    )


def moves_a_file(node):
    """Path.replace has one argument; str.replace has two, dataclasses.replace has keywords."""
    return called(node) == 'replace' and len(node.args) == 1 and not node.keywords


def changes_disk(node):
    name = called(node)
    if name in ('save', 'dump', 'move', 'remove', 'copyfile', 'savez', 'savetxt'):
        # Names that other objects have too: `checkpoints.save`, `list.remove`.
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        return isinstance(owner, ast.Name) and owner.id in OWNERS
    if isinstance(node.func, ast.Name) and name != 'TemporaryDirectory':
        return opens_to_write(node)  # write_text and others of storage.files are no methods
    return name in CHANGES or opens_to_write(node) or moves_a_file(node)


def unwrapped(tree):
    """Yield every call that changes the disk outside of a block of WRAPPERS."""

    def visit(node):
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call) and called(item.context_expr) in WRAPPERS
            for item in node.items
        ):
            return
        if isinstance(node, ast.Call) and changes_disk(node):
            yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return list(visit(tree))


@every_file
def test_the_disk_is_changed_in_one_place(path):
    name = path.relative_to(PACKAGE).as_posix()
    if name == 'storage/files.py':
        return
    found = {f'{name}: {ast.unparse(node.func)}' for node in unwrapped(TREES[path])}
    assert not found - ALLOWED.keys(), (
        f'{sorted(found - ALLOWED.keys())}: use storage.files, or wrap_os_errors around it'
    )


def test_what_is_allowed_exists():
    found = {
        f'{path.relative_to(PACKAGE).as_posix()}: {ast.unparse(node.func)}'
        for path, tree in TREES.items()
        for node in unwrapped(tree)
    }
    assert not ALLOWED.keys() - found


@every_file
def test_no_path_is_asked_for_its_owner(path):
    """`epath`'s stat() looks up the owner's name, and fails for a user without one."""
    calls = [
        node.lineno
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and called(node) in ('stat', 'lstat', 'owner')
        and ast.unparse(node.func) != 'os.stat'
    ]
    assert not calls, f'lines {calls}: use storage.files.has_content, or os.stat'


@every_file
def test_json_is_written_in_one_place(path):
    name = path.relative_to(PACKAGE).as_posix()
    calls = [
        node.lineno
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ('json.dumps', 'json.dump')
    ]
    assert not calls or name == 'storage/json_text.py', f'lines {calls}: use to_json'


@pytest.mark.parametrize(
    ('code', 'expected'),
    [
        ('path.write_text(t)', 1),
        ('write_text(path, t)', 0),
        ("path.open('w')", 1),
        ("open(path, mode='ab')", 1),
        ("path.open('rb')", 0),
        ('open(path)', 0),
        ('temporary.replace(path)', 1),
        ("text.replace('a', 'b')", 0),
        ('replace(config, seed=1)', 0),
        ('np.save(file, a)', 1),
        ('checkpoints.save(1, state)', 0),
        ('items.remove(x)', 0),
        ('os.remove(x)', 1),
        ('shutil.rmtree(x)', 1),
        ('with wrap_os_errors(p):\n    p.mkdir()', 0),
        ('with lock(p):\n    p.mkdir()', 1),
    ],
)
def test_the_finder_of_writes(code, expected):
    assert len(unwrapped(ast.parse(code))) == expected

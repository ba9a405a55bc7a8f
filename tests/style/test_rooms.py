"""The rooms of the package: their order, and that every import goes downward.

Every import counts, wherever it stands, those for type checkers included.
"""

import ast

from helpers.source import FILES, PACKAGE, TREES, every_file

# From the ground up: a room imports only from rooms above its line. A room is a folder, or a file
# at the root of the package.
ROOMS = (
    'process_end',
    'errors',
    'batch',
    'ranges',
    'renames',
    'outside',
    'spec',
    'schema',
    'host_memory',
    'storage',
    'display',
    'trackers',
    'layers',
    'positions',
    'attention',
    'models',
    'data',
    'partitioning',
    'optim',
    'losses',
    'decoding',
    'config',
    'efficiency',
    'evaluation',
    'training',
    'profiling',
    'inference',
    'ablation',
    'report',
    'api',
    '__init__',
    'cli',
    '__main__',
)


def module_name(path):
    """Name a module: 'attention.masks' of attention/masks.py, 'models' of models/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if len(parts) > 1 and parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(tree):
    """List the modules of the package that a module imports, wherever the import stands."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, 'a relative import'
            if node.module.partition('.')[0] == 'transformer_jax':
                inner = node.module.partition('.')[2]
                for alias in node.names:
                    whole = f'{inner}.{alias.name}' if inner else alias.name
                    if whole in MODULES:
                        names.add(whole)
                    elif inner or alias.name != '__version__':
                        names.add(inner or '__init__')
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, inner = alias.name.partition('.')
                if package == 'transformer_jax':
                    names.add(inner or '__init__')
    return names


GRAPH = {name: imported(TREES[path]) - {name} for name, path in MODULES.items()}


def room(name):
    """Name the room of a module: 'attention' of 'attention.masks'."""
    return name.partition('.')[0]


def circles(graph):
    """List the groups of modules that import one another, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_every_room_has_its_place():
    assert {room(name) for name in MODULES} == set(ROOMS)


@every_file
def test_imports_go_downward(path):
    name = module_name(path)
    place = ROOMS.index(room(name))
    upward = {other for other in GRAPH[name] if ROOMS.index(room(other)) > place}
    assert not upward, f'{name} imports from rooms above its own: {sorted(upward)}'


def test_no_modules_import_one_another():
    assert circles(GRAPH) == []


def test_the_finder_of_circles_finds_them():
    graph = {'a': {'b'}, 'b': {'c'}, 'c': {'a'}, 'd': {'a'}, 'e': set()}
    assert circles(graph) == [['a', 'b', 'c']]
    assert circles({'a': {'b'}, 'b': set()}) == []


def test_the_reader_of_imports_counts_those_for_type_checkers():
    tree = ast.parse('if TYPE_CHECKING:\n    from transformer_jax.models import MODELS')
    assert imported(tree) == {'models'}


# --- What may be done only in some rooms ----------------------------------------------------------


@every_file
def test_specs_are_parsed_by_the_configuration_alone(path):
    """Commands may parse a spec that they take as an argument, as `bench attention` does."""
    calls = [
        node.lineno
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ('spec.parse', 'spec.parse_pattern')
    ]
    name = module_name(path)
    allowed = room(name) in ('config', 'cli') or name == 'profiling.bench_attention'
    assert not calls or allowed, f'spec.parse in lines {calls}'


@every_file
def test_config_dicts_end_at_the_conversion(path):
    nodes = list(ast.walk(TREES[path]))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    used = names & {'ConfigDict', 'FrozenConfigDict'}
    assert not used or room(module_name(path)) in ('config', 'ablation', 'api', 'cli')


@every_file
def test_collectives_stay_out_of_model_and_loss(path):
    collectives = {'psum', 'pmean', 'all_gather', 'ppermute', 'all_to_all', 'axis_index'}
    used = {
        node.attr for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)
    } & collectives
    # Attention sends pieces of rows between devices, in one file.
    sends = module_name(path) == 'attention.engines.pieces'
    assert not used or sends or room(module_name(path)) in ('training', 'partitioning')


# The names that rows of tables have; outside their own room nothing is compared with them.
DECIDED_BY_ROWS = {
    'models': {'encoder_decoder', 'decoder_only', 'classifier', 'rnn_seq2seq'},
    'data': {'translation', 'language', 'classification'},
    'evaluation': {'bleu', 'chrf', 'exact_match', 'accuracy', 'perplexity', 'step_seconds'},
}


def comparisons(tree):
    """List the strings that a module compares something with: by ==, != or in."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                found |= {
                    leaf.value
                    for leaf in (
                        [side] if isinstance(side, ast.Constant) else getattr(side, 'elts', [])
                    )
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
                }
    return found


@every_file
def test_one_row_decides(path):
    """No comparison with a model kind's, a task form's or a metric's name outside its own room."""
    own = room(module_name(path))
    for decided, names in DECIDED_BY_ROWS.items():
        found = comparisons(TREES[path]) & names
        assert not found or own == decided, f'compares with {sorted(found)}'

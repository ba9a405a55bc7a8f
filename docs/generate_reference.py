"""Write the pages of docs/reference from the code: `make docs` runs this.

A test fails when a page is stale. Text between pages' marks is generated, the rest is by hand:
`<!-- begin NAME -->` … `<!-- end NAME -->`.
"""

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

import transformer_jax
from transformer_jax import errors, schema, spec
from transformer_jax.attention import KINDS, Attention
from transformer_jax.attention.base import CAPABILITIES
from transformer_jax.attention.kinds.linear_decays import DECAYS
from transformer_jax.attention.kinds.linear_features import FEATURES
from transformer_jax.attention.masks import MASKS, Window
from transformer_jax.attention.normalizers import NORMALIZERS
from transformer_jax.cli.commands import COMMANDS
from transformer_jax.cli.help import default_text
from transformer_jax.config.resolve import SPECS, resolve_architecture
from transformer_jax.config.values import CHOICES, RANGES
from transformer_jax.data.batching import BATCHING
from transformer_jax.data.tasks import TASKS
from transformer_jax.layers.feed_forward import FFNS
from transformer_jax.layers.norms import NORMS
from transformer_jax.layers.recurrent import RNNS
from transformer_jax.optim.optimizers import OPTIMIZERS
from transformer_jax.optim.schedules import SCHEDULES
from transformer_jax.positions import POSITIONS, Position
from transformer_jax.positions.rotary import SCALINGS
from transformer_jax.profiling.state_size import state_size

SECTION = r'(Args|Options|Returns|Raises|Attributes|Yields|Examples?):'
TEXT_SECTIONS = ('Returns', 'Yields')  # Their entries are sentences, not names.
ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / 'docs' / 'reference'
NOTE = '<!-- Generated from the code by `make docs`: do not edit. -->\n\n'


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text)


def pages() -> dict[Path, str]:
    """Map the path of every generated page to its text."""
    tasks = REFERENCE / 'tasks.md'
    return {
        REFERENCE / 'configuration.md': configuration_page(),
        REFERENCE / 'commands.md': commands_page(),
        REFERENCE / 'attention-kinds.md': kinds_page(),
        REFERENCE / 'exit-codes.md': exit_codes_page(),
        REFERENCE / 'python-api.md': api_page(),
        tasks: replace_between(tasks.read_text(), 'task options', _table_section(TASKS)),
    }


def replace_between(text: str, name: str, content: str) -> str:
    """Replace what stands between the two marks of a name."""
    begin, end = f'<!-- begin {name} -->\n', f'<!-- end {name} -->'
    if begin not in text or end not in text:
        raise SystemExit(f'the marks {begin.strip()} and {end} are missing')
    before, _, rest = text.partition(begin)
    return f'{before}{begin}\n{content.strip()}\n\n{end}{rest.partition(end)[2]}'


# Specs of keys that have no page of their own.
SPEC_TABLES: Mapping[str, Mapping[str, Any]] = {
    'data.batching': BATCHING,
    'optim.optimizer': OPTIMIZERS,
    'optim.schedule': SCHEDULES,
}

# --- Configuration --------------------------------------------------------------------------------


def configuration_page() -> str:
    """Describe every key: type, default, meaning, choices and range."""
    parts = [
        '# Configuration keys\n\n',
        NOTE,
        'A configuration file starts from `transformer_jax.config.default_config()`, which holds '
        'every key, and sets some of them. On the command line a key is set by '
        '`--config.KEY=VALUE`. A missing, unknown or impossible key is refused by name.\n\n'
        'A *spec* is a name with arguments, as in `window(64)` or `rope(theta=1e4)`. String '
        'arguments need no quotes where they are one word. A name with dots is a class of another '
        'package: `my_kinds.cosine.Cosine(temperature=5)`, see '
        '[Add an attention kind](../tutorials/add-an-attention-kind.md).\n',
    ]
    for field in dataclasses.fields(schema.ExperimentConfig):
        parts.append(_section(field.name, type(field.default)))
    parts.append('\n## Specs of these keys\n\nThose of `model` and of `data.task` have pages: ')
    parts.append('[Attention kinds](attention-kinds.md) and [Tasks](tasks.md).\n\n')
    for key, table in SPEC_TABLES.items():
        parts.append(f'## `{key}`\n\n{_table_section(table)}')
    return ''.join(parts)


def _section(prefix: str, cls: type) -> str:
    text = inspect.getdoc(cls) or ''
    comments = _comments(cls)
    lines = [f'\n## {prefix}\n\n{text}\n']
    rows, inner = [], []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            inner.append(_section(f'{prefix}.{field.name}', type(field.default)))
            continue
        key = f'{prefix}.{field.name}'
        comment = comments.get(field.name, '')
        meaning = ' '.join(filter(None, (comment, _limits(key, comment))))
        kind = spec.type_name(field.type)
        rows.append((f'`{key}`', kind, f'`{field.default!r}`', meaning))
    lines.append('\n' + markdown_table(('key', 'type', 'default', 'meaning'), rows))
    return ''.join(lines + inner)


def _limits(key: str, comment: str) -> str:
    """Say which values a key takes, where its comment does not name all of them."""
    words = re.findall(r'\w+', comment)
    if key in CHOICES:
        return '' if {*CHOICES[key]} <= {*words} else f'One of {_codes(CHOICES[key])}.'
    if key in SPECS:
        return '' if {*SPECS[key]} <= {*words} else f'A spec: {_codes(SPECS[key])}.'
    return f'{RANGES[key]}.' if key in RANGES else ''


def _codes(names: Iterable[str]) -> str:
    return ', '.join(f'`{name}`' for name in names)


def _comments(cls: type) -> dict[str, str]:
    """Map each field to the comment lines before it."""
    found, pending = {}, []
    for line in inspect.getsource(cls).splitlines():
        line = line.strip()
        if line.startswith('#'):
            pending.append(line.lstrip('# '))
        elif match := re.match(r'(\w+): ', line):
            found[match[1]] = ' '.join(pending)
            pending = []
        else:
            pending = []
    return found


# --- Commands -------------------------------------------------------------------------------------


def commands_page() -> str:
    """Describe every command with its flags."""
    parts = [
        '# Commands\n\n',
        NOTE,
        '`transformer-jax COMMAND --FLAG=VALUE`; `python -m transformer_jax` is the same program. '
        'Every command has `--help`, and `--debug` shows the traceback of an error.\n',
    ]
    for name, command in COMMANDS.items():
        values = flags.FlagValues()
        command.define(values)
        argument = f' {command.argument.upper()}' if command.argument else ''
        parts.append(f'\n## {name}\n\n{command.help}\n\n')
        parts.append(f'```\ntransformer-jax {name}{argument} --FLAG=VALUE …\n```\n\n')
        parts.append(f'For example:\n\n```bash\n{command.example}\n```\n\n')
        rows = []
        for flag in sorted(values):
            holder = values[flag]
            if flag != holder.name or '.' in flag:
                continue
            default = default_text(holder)
            rows.append((f'`--{flag}`', default and f'`{default}`', holder.help or ''))
        parts.append(markdown_table(('flag', 'default', 'meaning'), rows))
    return ''.join(parts)


# --- The attention space --------------------------------------------------------------------------

# Options that change what a kind supports; they are rows of the table beside the defaults.
OPTIONS = (
    'softmax(forget=True)',
    'softmax(mask=prefix(8))',
    'linear(decay=fixed)',
    'linear(decay=gated)',
)
HEADS = {
    'encoder': 'encoder self',
    'causal': 'causal self',
    'cross': 'cross',
    'padding': 'padding',
    'segments': 'packed segments',
    'decode': 'cached decoding',
    'bias': 'position scores',
    'context': 'cut over devices',
}


def kinds_page() -> str:
    """Describe what each kind of attention supports, and the options of all tables of the model."""
    axes: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        'Attention kinds': ('`model.attention` and the keys of single sites', KINDS),
        'Masks': ('the option `mask=` of kinds with scores; `&` and `|` combine masks', MASKS),
        'Normalizers': ('the option `normalizer=` of kinds with scores', NORMALIZERS),
        'Features of linear attention': ('the option `feature=` of `linear`', FEATURES),
        'Decays of linear attention': ('the option `decay=` of `linear`', DECAYS),
        'Position encodings': ('`model.position`', POSITIONS),
        'Scalings of RoPE': ('the option `scaling=` of `rope`', SCALINGS),
        'Norms': ('`model.norm`', NORMS),
        'Feed-forward layers': ('`model.ffn`', FFNS),
        'Recurrent cells': ('`model.rnn`, of `model.kind=rnn_seq2seq`', RNNS),
    }
    parts = [
        '# Attention kinds and the other axes of a model\n\n',
        NOTE,
        'What a kind supports. Anything else is refused by name before it compiles.\n\n',
        supports_table(),
        '\nThe contract tests in `tests/laws` check each ✓. `prefix` works in decoder-only models, '
        'which read their prompt at once; other decoders refuse it. `synthesizer` without '
        '`mix=True` takes `t5`, `alibi`, `kerple` and `fire` of the encodings that act on '
        'scores.\n\n'
        '## Decoding state\n\n'
        'The bytes that one layer keeps of one sequence between two tokens, in float32, with '
        '`model.d_model=512` and 8 heads of 64. They are counted on the arrays of decoding itself, '
        'without positions and segments. '
        '[Profile a configuration](../how-to/profile.md) shows how to count those of a model.\n\n',
        state_table(),
    ]
    for title, (where, table) in axes.items():
        parts.append(f'\n## {title}\n\nIn the configuration: {where}.\n\n{_table_section(table)}')
    return ''.join(parts)


def supports_table() -> str:
    """Return a Markdown table: a row for each kind, a column for each capability."""
    rows = []
    for text in sorted(
        (*KINDS, *OPTIONS), key=lambda text: list(KINDS).index(text.partition('(')[0])
    ):
        kind = spec.parse(text, KINDS, 'model.attention')
        marks = ['✓' if capability in kind.supports() else '–' for capability in CAPABILITIES]
        engines = filter(functools.partial(_runs, kind), kind.engines)
        rows.append((f'`{text}`', *marks, ', '.join(engines) or 'its own form'))
    head = ('`model.attention`', *(HEADS[capability] for capability in CAPABILITIES), 'engines')
    return markdown_table(head, rows)


# What changes the size of a state; rows of its table beside the defaults.
STATES = (
    ('softmax', {'num_kv_heads': 2}),
    ('softmax', {'num_kv_heads': 1}),
    ('softmax(mask=window(64))', {}),
    ('linear(feature=taylor)', {}),
    ('linear(decay=gated)', {}),
)


def state_table() -> str:
    """Return a Markdown table of the decoding state of each kind, at two lengths."""
    rows = []
    listed = sorted(
        [*((name, {}) for name in KINDS), *STATES],
        key=lambda row: list(KINDS).index(row[0].partition('(')[0]),
    )
    for text, keys in listed:
        model = schema.ModelConfig(
            kind='decoder_only', decoder_layers=1, attention=text, position='none', **keys
        )
        sizes = [state_size(resolve_architecture(model, 8), length) for length in (256, 512)]
        cells = ['no decoding' if size is None else f'{size.bytes:,}' for size in sizes]
        rows.append((f'`{text}`', str(keys.get('num_kv_heads', 8)), *cells))
    head = ('`model.attention`', '`model.num_kv_heads`', 'at 256 tokens', 'at 512 tokens')
    return markdown_table(head, rows)


def _runs(kind: Attention, engine: str) -> bool:
    """Return whether an engine can run a kind as it is, or with a window as its mask."""
    windowed = dataclasses.replace(kind, mask=Window(64))
    return any(not variant.incompatibility(Position(), engine) for variant in (kind, windowed))


def _table_section(table: Mapping[str, Any]) -> str:
    """Describe every row of a table of specs: its docstring and its options."""
    parts = []
    for name, cls in table.items():
        options = [
            f'{field.name}={_option(field)}' for field in dataclasses.fields(cls) if field.init
        ]
        call = f'{name}({", ".join(options)})' if options else name
        parts.append(f'### {name}\n\n```python\n{call}\n```\n\n{_docstring(cls)}\n\n')
        ranges = [
            f'`{field.name}`: {field.metadata["range"]}'
            for field in dataclasses.fields(cls)
            if field.init and 'range' in field.metadata
        ]
        if ranges:
            parts.append(f'*Ranges:* {"; ".join(ranges)}.\n\n')
    return ''.join(parts)


def _option(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return '…'
    table = field.metadata.get('table')
    return spec.text(field.default, table) if table else repr(field.default)


# --- Exit codes and Python ------------------------------------------------------------------------


def exit_codes_page() -> str:
    """Describe the exit codes of the command line."""
    rows = [
        ('0', 'Done.'),
        ('1', 'A bug, or runs of an ablation that failed in different ways.'),
    ]
    codes: dict[int, list[str]] = {}
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, errors.UserError) and cls is not errors.Stopped:
            text = inspect.getdoc(cls).partition('\n')[0]
            codes.setdefault(cls.exit_code, []).append(f'`{cls.__name__}`: {text}')
    rows += [(str(code), '<br>'.join(texts)) for code, texts in sorted(codes.items())]
    rows += [
        ('130', 'Interrupted by SIGINT (Ctrl-C); training has saved its state.'),
        (
            '143',
            'Stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU; training has saved.',
        ),
    ]
    return (
        f'# Exit codes\n\n{NOTE}'
        'An error that a user can fix is one clear message without a traceback; `--debug` shows '
        f'the traceback.\n\n{markdown_table(("code", "meaning"), rows)}'
    )


def api_page() -> str:
    """Describe the public names of the package."""
    parts = [
        '# Python API\n\n',
        NOTE,
        'The names of `transformer_jax`, for notebooks and scripts. '
        '[Work in a notebook](../how-to/notebook.md) shows them in use.\n',
    ]
    for name in sorted(set(transformer_jax.__all__) - {'__version__'}, key=str.lower):
        parts.append(_api_entry(name, getattr(transformer_jax, name), '##'))
    return ''.join(parts)


def _api_entry(name: str, item: Any, level: str) -> str:
    if not (inspect.isclass(item) or callable(item)):
        return f'\n{level} {name}\n\n'
    parts = [
        f'\n{level} {name}\n\n```python\n{_signature(name, item)}\n```\n\n{_docstring(item)}\n'
    ]
    if inspect.isclass(item):
        for method, value in vars(item).items():
            public = not method.startswith('_')
            if public and isinstance(value, property):
                parts.append(f'\n**{method}**: {_docstring(value.fget)}\n')
            elif public and inspect.isfunction(value):
                parts.append(_api_entry(f'{name}.{method}', value, level + '#'))
    return ''.join(parts)


def _signature(name: str, item: Any) -> str:
    if dataclasses.is_dataclass(item) or inspect.isclass(item):
        return name
    source = ast.parse(inspect.cleandoc('\n' + _dedented(item))).body[0]
    assert isinstance(source, ast.FunctionDef)
    returns = f' -> {ast.unparse(source.returns)}' if source.returns else ''
    arguments = ast.unparse(source.args).removeprefix('self, ').removeprefix('self')
    return f'{name}({arguments}){returns}'


def _dedented(item: Callable[..., Any]) -> str:
    lines = inspect.getsource(item).splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return '\n'.join(line[indent:] for line in lines)


# --- Markdown -------------------------------------------------------------------------------------


def _docstring(item: Any) -> str:
    """Turn a docstring into Markdown: its sections become lists."""
    return '\n'.join(_sections(inspect.getdoc(item) or ''))


def _sections(text: str) -> Iterator[str]:
    """Yield Markdown lines: named entries become list items, examples a code block."""
    section = ''
    for line in text.splitlines():
        if match := re.fullmatch(SECTION, line):
            section = match[1]
            yield f'*{section}*'
            yield ''
            if section.startswith('Example'):
                yield '```python'
        elif section.startswith('Example'):
            yield line.removeprefix('    ')
        elif section and re.match(r' {4}\S', line):
            name, colon, rest = line.strip().partition(': ')
            entry = colon and re.fullmatch(r'[\w.*, ]{1,40}', name) and section not in TEXT_SECTIONS
            yield f'- `{name}`: {rest}' if entry else line.strip()
        elif section and line.startswith('        '):
            yield f'  {line.strip()}'
        else:
            section = section if not line.strip() else ''
            yield line
    if section.startswith('Example'):
        yield '```'


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Lay out rows as a Markdown table; a | in a cell is escaped."""
    lines = [head, ('---',) * len(head), *rows]
    if broken := [cell for line in lines for cell in line if '\n' in cell]:
        raise ValueError(f'a cell of a table has more than one line: {broken[0]!r}')
    return ''.join(
        f'| {" | ".join(cell.replace("|", "&#124;") for cell in line)} |\n' for line in lines
    )


if __name__ == '__main__':
    sys.exit(main())

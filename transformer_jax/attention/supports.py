"""The supports-table of README.md, from what the kinds declare:
`python -m transformer_jax.attention.supports FILE`.

`make docs` runs it; a test fails when the table in the file is another.
"""

import dataclasses
import functools
import re
import sys
from pathlib import Path

from transformer_jax import spec
from transformer_jax.attention import KINDS, Attention
from transformer_jax.attention.base import CAPABILITIES
from transformer_jax.attention.masks import Window
from transformer_jax.positions import Position

# Options that change what a kind supports; each kind stands in the table with its defaults too.
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
}
PLACE = re.compile('(<!-- supports -->\n).*?(<!-- /supports -->)', re.DOTALL)


def table() -> str:
    """Markdown: a row for each kind, a column for each promise, and the engines that it can
    run on.
    """
    head = ['`model.attention`', *(HEADS[promise] for promise in CAPABILITIES), 'engines']
    lines = [head, ['---'] * len(head)]
    for text in sorted(
        (*KINDS, *OPTIONS), key=lambda text: list(KINDS).index(text.partition('(')[0])
    ):
        kind = spec.parse(text, KINDS, 'model.attention')
        kept = ['✓' if promise in kind.supports() else '–' for promise in CAPABILITIES]
        engines = filter(functools.partial(_can, kind), kind.engines)
        lines.append([f'`{text}`', *kept, ', '.join(engines) or 'its own form'])
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _can(kind: Attention, engine: str) -> bool:
    """Whether an engine runs a kind as it is, or with a window for its mask."""
    windowed = dataclasses.replace(kind, mask=Window(64))
    return any(not variant.incompatibility(Position(), engine) for variant in (kind, windowed))


def updated(page: str) -> str:
    """The page with the table of today between its two marks."""
    return PLACE.sub(lambda match: f'{match[1]}{table()}{match[2]}', page)


if __name__ == '__main__':
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text()))

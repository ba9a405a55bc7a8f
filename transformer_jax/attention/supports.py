"""The table of what each kind supports, for README.md and the site.

`python -m transformer_jax.attention.supports FILE` writes it between the marks of a file. `make
docs` runs this, and a test fails when the table in the file is stale.
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

# Options that change what a kind supports. They are rows of the table beside the defaults.
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
    """Return the table in Markdown: a row for each kind, a column for each capability.

    The last column has the engines that can run the kind.
    """
    head = ['`model.attention`', *(HEADS[capability] for capability in CAPABILITIES), 'engines']
    lines = [head, ['---'] * len(head)]
    for text in sorted(
        (*KINDS, *OPTIONS), key=lambda text: list(KINDS).index(text.partition('(')[0])
    ):
        kind = spec.parse(text, KINDS, 'model.attention')
        marks = ['✓' if capability in kind.supports() else '–' for capability in CAPABILITIES]
        engines = filter(functools.partial(_runs, kind), kind.engines)
        lines.append([f'`{text}`', *marks, ', '.join(engines) or 'its own form'])
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _runs(kind: Attention, engine: str) -> bool:
    """Return whether an engine can run a kind as it is, or with a window as its mask."""
    windowed = dataclasses.replace(kind, mask=Window(64))
    return any(not variant.incompatibility(Position(), engine) for variant in (kind, windowed))


def updated(page: str) -> str:
    """Return the text of a page with the present table between its two marks."""
    return PLACE.sub(lambda match: f'{match[1]}{table()}{match[2]}', page)


if __name__ == '__main__':
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text()))

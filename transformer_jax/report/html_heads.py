"""Attention heads in report.html: a heat map of every probe, layers down and heads across."""

import base64
import math
from collections.abc import Mapping, Sequence

import numpy as np

from transformer_jax.report.html_tables import escape
from transformer_jax.report.traces import Heads

CELL_WIDTH, CELL_HEIGHT = 36, 24  # pixels
LEFT = 18  # pixels for the number of a layer
LIGHT, DARK = (232, 241, 250), (8, 64, 129)


def heads_section(found: Mapping[str, Heads]) -> str:
    """Write what was measured of the heads of each variant; '' where nothing was."""
    parts = []
    for variant, heads in found.items():
        title = f'seed {heads.seed}' + (f', {heads.split} split' if heads.split else '')
        parts.append(
            f'<h3>{escape(variant)} <span class="faint">{escape(title)}</span></h3>\n'
            '<div class="probed">'
        )
        last = len(heads.steps) - 1
        if last > 0:
            parts.append(
                f'<label class="controls">checkpoint <input type="range" min="0" max="{last}" '
                f'value="{last}"> <output></output></label>'
            )
        for number, step in enumerate(heads.steps):
            maps = ''.join(_heat_map(name, maps, number) for name, maps in heads.maps.items())
            hidden = '' if number == last else ' hidden'
            parts.append(f'<div class="heads" data-step="{step}"{hidden}>{maps}</div>')
        parts.append('</div>\n')
        parts += [
            picture('where every head looks', figure.read_bytes()) for figure in heads.pictures
        ]
    note = '<p class="note">Layers down, heads across.</p>'
    return note + ''.join(parts) if parts else ''


def picture(alt: str, png: bytes) -> str:
    """Write a PNG file into the page."""
    data = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>\n'


def _heat_map(name: str, maps: Sequence[np.ndarray], number: int) -> str:
    """Draw the map of one checkpoint as SVG; colors have one scale for all checkpoints."""
    values = np.concatenate([grid[np.isfinite(grid)] for grid in maps])
    low, high, grid = values.min(), values.max(), maps[number]
    shares = (grid - low) / ((high - low) or 1)
    cells = ''.join(
        _cell(layer, head, float(grid[layer, head]), float(shares[layer, head]))
        for layer, head in np.ndindex(grid.shape)
    )
    height, width = CELL_HEIGHT * len(grid), LEFT + CELL_WIDTH * grid.shape[1]
    names = ''.join(
        f'<text x="{LEFT - 5}" y="{CELL_HEIGHT * (layer + 0.65):g}" text-anchor="end">{layer + 1}'
        '</text>'
        for layer in range(len(grid))
    )
    return (
        f'<figure><figcaption>{escape(name)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{names}{cells}'
        '</svg></figure>'
    )


def _cell(layer: int, head: int, value: float, share: float) -> str:
    """Draw a head; `share` is where its value is between the lowest (0) and the highest (1)."""
    x, y = LEFT + CELL_WIDTH * head, CELL_HEIGHT * layer
    box = f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" rx="2" '
    place = f'layer {layer + 1}, head {head + 1}'
    if not math.isfinite(value):
        return f'{box}fill="none" stroke="#8c8c8c"><title>{place}: no meaning here</title></rect>'
    fill = ','.join(
        str(round(light + share * (dark - light))) for light, dark in zip(LIGHT, DARK, strict=True)
    )
    ink = '#fff' if share > 0.5 else '#1b1f24'
    return (
        f'<g><title>{place}: {value:.4g}</title>{box}fill="rgb({fill})"/>'
        f'<text x="{x + (CELL_WIDTH - 1) / 2}" y="{y + 0.65 * CELL_HEIGHT:g}" text-anchor="middle" '
        f'style="fill:{ink}">{value:.2g}</text></g>'
    )

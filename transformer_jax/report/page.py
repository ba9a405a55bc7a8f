"""report.html: one file that opens from disk, without a network; page.css and page.js are written
into it.
"""

import base64
import html
import importlib.resources
import io
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.report import words
from transformer_jax.report.analysis import Report, Table, VariantResult
from transformer_jax.report.figures import along
from transformer_jax.report.traces import Curve, Heads

DRAWN_WIDTH, DRAWN_HEIGHT = 90, 18
HEAD_WIDTH, HEAD_HEIGHT, HEADS_LEFT = (
    36,
    24,
    18,
)  # pixels of a cell in a heat map; room for the layer's number
LIGHT, DARK = (232, 241, 250), (8, 64, 129)
# Nothing is fetched, whatever a name would ask for.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(report: Report) -> str:
    """The whole document."""
    sections = [
        ('Results', 'results', ''.join(_table(table) for table in report.tables)),
        ('What is varied', 'axis', _along(report)),
        ('Missing runs', 'missing', _missing(report)),
        ('Learning curves', 'curves', _curves(report)),
        ('What differs between the variants', 'config', _differences(report)),
        ('Attention heads', 'heads', _heads(report.heads)),
        ('How it was run', 'provenance', _provenance(report)),
    ]
    sections = [section for section in sections if section[2]]
    links = ''.join(f'<a href="#{name}">{title}</a>' for title, name, _ in sections)
    body = ''.join(
        f'<h2 id="{name}">{title}</h2>\n{content}\n' for title, name, content in sections
    )
    title = escape(report.experiment['claim'])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{_asset('page.css')}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="faint">{_subtitle(report)}</p>
{_tally(report.tables[0])}
<nav>{links}</nav>
</header>
<main>
{body}</main>
{_data(report)}<script>
{_asset('page.js')}</script>
</body>
</html>
"""


def escape(text: Any) -> str:
    """Text as text, between tags and in attributes."""
    return html.escape(str(text), quote=True)


def _asset(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text('utf-8')


def _data(report: Report) -> str:
    """The curves as JSON inside a script element, which `</` would end."""
    if not report.curves:
        return ''
    experiment = report.experiment
    drawn = [
        variant
        for variant in experiment['variants']
        if any(variant in found for found in report.curves.values())
    ]
    payload = {
        'variants': drawn,
        'references': report.tables[0].references,
        'planned': len(experiment['seeds']),
        'curves': {
            name: [_series(variant, curve) for variant, curve in found.items()]
            for name, found in report.curves.items()
        },
    }
    text = json.dumps(payload, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    return f'<script type="application/json" id="curves-data">{text.replace("<", chr(92) + "u003c")}</script>\n'


def _series(variant: str, curve: Curve) -> dict[str, Any]:
    def plain(points: Sequence[tuple[int, float]]) -> list[list]:
        return [
            [step, float(f'{value:.6g}') if math.isfinite(value) else None]
            for step, value in points
        ]

    return {
        'variant': variant,
        'mean': plain(curve.mean),
        'seeds': {str(seed): plain(points) for seed, points in curve.seeds.items()},
    }


def _subtitle(report: Report) -> str:
    return ' · '.join(f'<span>{escape(part)}</span>' for part in words.subtitle(report))


def _tally(table: Table) -> str:
    chips = ''.join(
        f'<span class="chip {verdict}">{words.MARKS[verdict]} {text}</span>'
        for verdict, text in words.tally(table)
    )
    return f'<div class="tally">{chips}<span class="faint">by {escape(table.label)}</span></div>'


def _table(table: Table) -> str:
    columns = words.columns(table, drawn=True)
    groups = [
        (name, len(list(group)))
        for name, group in itertools.groupby(columns, key=lambda column: column.group)
    ]
    starts = {sum(count for _, count in groups[:number]) for number in range(1, len(groups))}
    classes = [
        ' '.join(
            [column.key.partition(' ')[0]]
            + ['text'] * column.text
            + ['starts'] * (number in starts)
        )
        for number, column in enumerate(columns)
    ]
    over = ''.join(
        f'<th colspan="{count}" class="{"starts" * bool(number)}">{escape(name)}</th>'
        for number, (name, count) in enumerate(groups)
    )
    heads = ''.join(
        f'<th aria-sort="none" class="{kind}" title="{escape(column.meaning)}">'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column, kind in zip(columns, classes, strict=True)
    )
    rows = ''
    for row in table.rows:
        cells = ''.join(
            _cell(table, row, column, kind) for column, kind in zip(columns, classes, strict=True)
        )
        rows += f'<tr class="{row.verdict}">{cells}</tr>\n'
    notes = ''.join(f'<li>{escape(note)}</li>' for note in words.notes(table))
    better = 'less is better' if table.lower_is_better else 'more is better'
    return (
        f'<h3>{escape(table.label)} <span class="faint">({better})</span></h3>\n<div class="scroll">'
        f'<table class="sortable"><thead><tr class="groups">{over}</tr><tr>{heads}</tr></thead>\n'
        f'<tbody>{rows}</tbody></table></div>\n<ul class="note">{notes}</ul>\n'
    )


def _cell(table: Table, row: VariantResult, column: words.Column, kind: str) -> str:
    cell = words.cell(table, row, column)
    content = escape(cell.text)
    if column.key == 'drawn':
        content = _drawn(row, _reach(table))
    elif column.key == 'verdict':
        content = f'<span class="chip {row.verdict}">{words.MARKS[row.verdict]} {content}</span>'
    content += ''.join(f'<small>{escape(remark)}</small>' for remark in cell.remarks)
    value = '' if cell.value is None else f' data-value="{escape(cell.value)}"'
    return f'<td class="{kind}"{value}>{content}</td>'


def _reach(table: Table) -> float:
    """Half of the axis of differences, which is symmetric about zero."""
    found = [
        row.comparison
        for row in table.rows
        if row.comparison and row.comparison.difference is not None
    ]
    return (
        max(
            (abs(end) for comparison in found for end in (comparison.low, comparison.high)),
            default=0,
        )
        or 1.0
    )


def _drawn(row: VariantResult, reach: float) -> str:
    """The difference and its interval about zero."""
    if row.comparison is None or row.comparison.difference is None:
        return ''
    low, middle, high = (
        DRAWN_WIDTH * (0.5 + 0.46 * value / reach)
        for value in (row.comparison.low, row.comparison.difference, row.comparison.high)
    )
    y = DRAWN_HEIGHT / 2
    return (
        f'<svg class="difference {row.verdict}" viewBox="0 0 {DRAWN_WIDTH} {DRAWN_HEIGHT}" aria-hidden="true">'
        f'<line class="axis" x1="{DRAWN_WIDTH / 2}" x2="{DRAWN_WIDTH / 2}" y1="0" y2="{DRAWN_HEIGHT}"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{middle:.1f}" cy="{y}" r="3.5"/></svg>'
    )


def _simple(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; cells are escaped here."""
    titles = ''.join(
        f'<th class="text" aria-sort="none"><button type="button">{escape(head)}</button></th>'
        for head in heads
    )
    cells = [
        [f'<td class="text" data-value="{escape(cell)}">{escape(cell)}</td>' for cell in row]
        for row in rows
    ]
    lines = ''.join(f'<tr>{"".join(row)}</tr>\n' for row in cells)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{titles}</tr></thead>\n'
        f'<tbody>{lines}</tbody></table></div>'
    )


def _missing(report: Report) -> str:
    if not report.missing:
        return ''
    rows = words.missing_rows(report)
    return f'<p>{escape(words.missing(report))}</p>\n' + _simple(('variant', 'seeds', 'why'), rows)


def _along(report: Report) -> str:
    parts = []
    for name, figure in along(report).items():
        picture = io.BytesIO()
        figure.savefig(picture, format='png')
        parts.append(_picture(name.replace('-', ' '), picture.getvalue()))
    return (
        '<p class="note">Means over seeds with their 95% intervals.</p>\n' + ''.join(parts)
        if parts
        else ''
    )


def _curves(report: Report) -> str:
    if not report.curves:
        return ''
    options = ''.join(f'<option>{escape(name)}</option>' for name in report.curves)
    merged = max(curve.merged for found in report.curves.values() for curve in found.values())
    thinned = (
        f' Where much was logged a point is the mean of up to {merged} neighbours.'
        if merged > 1
        else ''
    )
    return f"""<div class="chart">
<div class="controls"><select aria-label="what is drawn">{options}</select>
<label><input type="checkbox" class="seeds" checked> each seed</label>
<label><input type="checkbox" class="log"> logarithmic</label>
<label><input type="checkbox" class="late"> second half</label>
<button type="button" class="all">all or none</button></div>
<svg class="plot" role="img" aria-label="learning curves"></svg>
<div class="legend"></div>
<div class="tip" hidden></div>
</div>
<noscript><p class="note">The curves need JavaScript; the same are beside this page as PNG and SVG.</p></noscript>
<p class="note">Thick: the mean over seeds, at the steps that all of them have; thin: each seed. Point at the curves for
their values; press a name to hide it.{thinned} Only sound runs are drawn.</p>"""


def _differences(report: Report) -> str:
    keys, rows = words.differences(report)
    if not keys:
        return ''
    return '<p class="note">Only the keys that are not the same in all.</p>' + _simple(
        ('variant', *keys), rows
    )


def _heads(found: Mapping[str, Heads]) -> str:
    parts = []
    for variant, heads in found.items():
        title = f'seed {heads.seed}' + f', {heads.split} split' * bool(heads.split)
        parts.append(
            f'<h3>{escape(variant)} <span class="faint">{escape(title)}</span></h3>\n<div class="probed">'
        )
        if len(heads.steps) > 1:
            parts.append(
                f'<label class="controls">checkpoint <input type="range" min="0" max="{len(heads.steps) - 1}" '
                f'value="{len(heads.steps) - 1}"> <output></output></label>'
            )
        for number, step in enumerate(heads.steps):
            maps = ''.join(_map(name, maps, number) for name, maps in heads.maps.items())
            hidden = '' if number == len(heads.steps) - 1 else ' hidden'
            parts.append(f'<div class="heads" data-step="{step}"{hidden}>{maps}</div>')
        parts.append('</div>\n')
        parts += [
            _picture('where every head looks', picture.read_bytes()) for picture in heads.pictures
        ]
    note = '<p class="note">Layers down, heads across.</p>'
    return note + ''.join(parts) if parts else ''


def _picture(alt: str, png: bytes) -> str:
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>\n'


def _map(name: str, maps: Sequence[np.ndarray], number: int) -> str:
    """One checkpoint's heat map; the colours run over all checkpoints."""
    values = np.concatenate([grid[np.isfinite(grid)] for grid in maps])
    low, high, grid = values.min(), values.max(), maps[number]
    cells = ''.join(
        _head(layer, head, grid[layer, head], (grid[layer, head] - low) / ((high - low) or 1))
        for layer, head in np.ndindex(grid.shape)
    )
    height, width = HEAD_HEIGHT * len(grid), HEADS_LEFT + HEAD_WIDTH * grid.shape[1]
    names = ''.join(
        f'<text x="{HEADS_LEFT - 5}" y="{HEAD_HEIGHT * (layer + 0.65):g}" text-anchor="end">{layer + 1}'
        '</text>'
        for layer in range(len(grid))
    )
    return (
        f'<figure><figcaption>{escape(name)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{names}{cells}</svg></figure>'
    )


def _head(layer: int, head: int, value: float, share: float) -> str:
    x, y = HEADS_LEFT + HEAD_WIDTH * head, HEAD_HEIGHT * layer
    box = f'<rect x="{x}" y="{y}" width="{HEAD_WIDTH - 1}" height="{HEAD_HEIGHT - 1}" rx="2" '
    place = f'layer {layer + 1}, head {head + 1}'
    if not math.isfinite(value):
        return f'{box}fill="none" stroke="#8c8c8c"><title>{place}: no meaning here</title></rect>'
    fill = ','.join(
        str(round(light + share * (dark - light))) for light, dark in zip(LIGHT, DARK, strict=True)
    )
    ink = '#fff' if share > 0.5 else '#1b1f24'
    return (
        f'<g><title>{place}: {value:.4g}</title>{box}fill="rgb({fill})"/><text x="{x + (HEAD_WIDTH - 1) / 2}" '
        f'y="{y + 0.65 * HEAD_HEIGHT:g}" text-anchor="middle" style="fill:{ink}">{value:.2g}</text></g>'
    )


def _provenance(report: Report) -> str:
    facts = ''.join(
        f'<li>{escape(name)}: {escape(value)}</li>' for name, value in words.provenance(report)
    )
    return f'<pre>{escape(words.command(report.experiment))}</pre>\n<ul>{facts}</ul>'

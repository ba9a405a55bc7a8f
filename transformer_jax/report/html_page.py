"""report.html: one file that opens from disk, without a network.

page.css and page.js are written into it.
"""

import importlib.resources
import math
from collections.abc import Sequence
from typing import Any

from transformer_jax.display.figures import figure_bytes
from transformer_jax.report import reviewer, sentences
from transformer_jax.report.axis_figures import axis_figures
from transformer_jax.report.claims import HEADS, NOTE, claim_rows
from transformer_jax.report.columns import VERDICTS
from transformer_jax.report.html_heads import heads_section, picture
from transformer_jax.report.html_tables import escape, results_table, text_table
from transformer_jax.report.metric_names import curve_name
from transformer_jax.report.tables import Report, Table
from transformer_jax.report.traces import Curve
from transformer_jax.report.tuning import tuning_heads, tuning_notes, tuning_rows
from transformer_jax.report.tuning_figures import tuning_figures
from transformer_jax.storage.json_text import to_json

# A browser fetches nothing, whatever the name of a variant contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_report(report: Report) -> str:
    """Write the whole document."""
    sections = [
        ('Claims', 'claims', _claims(report)),
        ('Results', 'results', ''.join(results_table(table) for table in report.tables)),
        ('What is varied', 'axis', _axis(report)),
        ('Tuning', 'tuning', _tuning(report)),
        ('Missing runs', 'missing', _missing(report)),
        ('Learning curves', 'curves', _curves(report)),
        ('What differs between the variants', 'config', _config_differences(report)),
        ('Attention heads', 'heads', heads_section(report.heads)),
        ('How it was run', 'provenance', _provenance(report)),
        ('Where this differs from the paper', 'differences', _differences(report)),
        ('What a reviewer asks', 'review', _review(report)),
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
{_looks(report)}{_tally(report.tables[0])}
<nav>{links}</nav>
</header>
<main>
{body}</main>
{_curves_data(report)}<script>
{_asset('page.js')}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return importlib.resources.files('transformer_jax.report').joinpath(name).read_text('utf-8')


def _subtitle(report: Report) -> str:
    return ' · '.join(f'<span>{escape(part)}</span>' for part in sentences.subtitle(report))


def _tally(table: Table) -> str:
    chips = ''.join(
        f'<span class="chip {verdict}">{VERDICTS[verdict][0]} {text}</span>'
        for verdict, text in sentences.tally(table)
    )
    return f'<div class="tally">{chips}<span class="faint">by {escape(table.label)}</span></div>'


def _looks(report: Report) -> str:
    return f'<p class="note">{escape(report.looks)}</p>\n' if report.looks else ''


def _claims(report: Report) -> str:
    if not report.claims:
        return ''
    rows = claim_rows(report.claims, report.experiment)
    return f'{text_table(HEADS, rows)}\n<p class="note">{escape(NOTE)}</p>'


def _missing(report: Report) -> str:
    if not report.missing:
        return ''
    rows = sentences.missing_rows(report)
    summary = escape(sentences.missing_runs(report))
    return f'<p>{summary}</p>\n' + text_table(('variant', 'seeds', 'why'), rows)


def _axis(report: Report) -> str:
    parts = []
    for name, figure in axis_figures(report).values():
        parts.append(picture(name, figure_bytes(figure)))
    if not parts:
        return ''
    return '<p class="note">Means over seeds with their 95% intervals.</p>\n' + ''.join(parts)


def _tuning(report: Report) -> str:
    experiment = report.experiment
    if not experiment.get('tune'):
        return ''
    rows = tuning_rows(experiment)
    table = text_table(tuning_heads(experiment), rows) if rows else ''
    notes = ''.join(f'<li>{escape(note)}</li>' for note in tuning_notes(experiment))
    drawn = tuning_figures(experiment).values()
    pictures = ''.join(picture(title, figure_bytes(figure)) for title, figure in drawn)
    return f'{table}\n<ul class="note">{notes}</ul>\n{pictures}'


def _curves(report: Report) -> str:
    if not report.curves:
        return ''
    options = ''.join(
        f'<option value="{escape(name)}">{escape(curve_name(name))}</option>'
        for name in report.curves
    )
    merged = max(curve.merged for found in report.curves.values() for curve in found.values())
    thinned = (
        f' Where much was logged a point is the mean of up to {merged} neighbors.'
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
<noscript><p class="note">The curves need JavaScript; the same curves are in the folder of this
page as PNG, SVG and PDF.</p></noscript>
<p class="note">Thick: the mean over seeds, at the steps that all of them have; thin: each seed.
Point at the curves for their values; press a name to hide it.{thinned} Only sound runs are
drawn.</p>"""


def _curves_data(report: Report) -> str:
    """Write the curves as JSON in a script element, which a `</` would end."""
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
    text = to_json(payload, ensure_ascii=False, separators=(',', ':'))
    safe = text.replace('<', r'\u003c')
    return f'<script type="application/json" id="curves-data">{safe}</script>\n'


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


def _config_differences(report: Report) -> str:
    keys, rows = sentences.config_differences(report)
    if not keys:
        return ''
    note = '<p class="note">Only the keys that are not the same in all.</p>'
    return note + text_table(('variant', *keys), rows)


def _differences(report: Report) -> str:
    if rows := reviewer.difference_rows(report):
        return text_table(reviewer.DIFFERENCE_HEADS, rows)
    return f'<p>{escape(reviewer.difference_note(report))}</p>'


def _review(report: Report) -> str:
    answers = ''.join(
        f'<li>{escape(name)}: {escape(value)}</li>' for name, value in reviewer.answers(report)
    )
    table = text_table(reviewer.FINGERPRINT_HEADS, reviewer.fingerprint_rows(report))
    return f'{table}\n<ul>{answers}</ul>'


def _provenance(report: Report) -> str:
    facts = ''.join(
        f'<li>{escape(name)}: {escape(value)}</li>' for name, value in sentences.provenance(report)
    )
    command = escape(sentences.command(report.experiment))
    return f'<pre>{command}</pre>\n<ul>{facts}</ul>'

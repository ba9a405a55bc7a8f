"""report.html on a telephone: nothing but a table scrolls sideways, however long the names are."""

import importlib.resources
import json
import re
import shutil
import subprocess

import pytest
from helpers.made_up_ablation import analyzed, make_results, write_root

from transformer_jax.report.analysis import analyze
from transformer_jax.report.html_page import html_report

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
WIDTH = 390  # of the screen, in pixels
CSS = importlib.resources.files('transformer_jax.report').joinpath('page.css').read_text('utf-8')
# What scrolls in a box of its own, or has one of a fixed size that is small.
BOXED = ('th', 'td', 'tbody', 'thead', 'svg', '.starts')
LONG = 'a_name_without_any_space_' * 6
MEASURE = """<script>addEventListener('load', () => setTimeout(() => parent.postMessage(
  [innerWidth, document.documentElement.scrollWidth], '*'), 200))</script></body>"""
FRAME = """<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<p></p><script>onmessage = event => {{ document.querySelector('p').textContent =
  'widths ' + JSON.stringify(event.data); }}</script>"""


def rules() -> list[tuple[str, str]]:
    screen = re.sub(r'@media print \{.*', '', CSS, flags=re.DOTALL)
    return [(s.strip(), body) for s, body in re.findall(r'([^{}]+)\{([^{}]*)\}', screen)]


@pytest.mark.parametrize(('selector', 'body'), rules())
def test_nothing_outside_of_tables_is_wider_than_the_page(selector, body):
    if not selector.startswith(BOXED):
        assert 'nowrap' not in body
        for width in re.findall(r'(?<!max-)width: (\d+)px', body):
            assert int(width) <= 100


@pytest.mark.parametrize(
    ('selector', 'declaration'),
    [
        ('body', 'overflow-wrap: anywhere'),
        ('.scroll', 'overflow-x: auto'),
        ('pre', 'overflow-x: auto'),
        ('.heads figure', 'overflow-x: auto'),
        ('img', 'max-width: 100%'),
        ('.legend button', 'max-width: 100%'),
        ('.tip', 'max-width: calc(100% - 8px)'),
        ('header span', 'max-width: 100%'),
        ('.controls select, .controls button', 'max-width: 100%'),
    ],
)
def test_what_may_be_wide_is_held(selector, declaration):
    assert any(declaration in body for name, body in rules() if name == selector)


def test_every_table_is_in_a_box_that_scrolls(tmp_path):
    page = html_report(analyzed(tmp_path, make_results()))
    assert page.count('<table') == page.count('<div class="scroll"><table')


def pages(tmp_path) -> dict[str, str]:
    root = write_root(tmp_path / 'root', make_results())
    experiment = json.loads((root / 'experiment.json').read_text())
    plain = html_report(analyze(root))
    experiment |= {'claim': LONG, 'file': f'experiments/{LONG}.py'}
    named = json.dumps(experiment).replace('"additive"', json.dumps(LONG))
    (root / 'experiment.json').write_text(named)
    return {'plain': plain, 'long names': html_report(analyze(root))}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='needs chromium')
def test_a_browser_scrolls_nothing_sideways(tmp_path):
    for name, page in pages(tmp_path).items():
        (tmp_path / 'page.html').write_text(page.replace('</body>', MEASURE))
        frame = tmp_path / 'frame.html'
        frame.write_text(FRAME.format(width=WIDTH))
        command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom']
        settings = ['--allow-file-access-from-files', '--virtual-time-budget=5000']
        run = subprocess.run(
            [*command, *settings, f'file://{frame}'], capture_output=True, text=True, check=True
        )
        inner, scrolled = map(int, re.findall(r'widths \[(\d+),(\d+)\]', run.stdout)[0])
        assert inner == WIDTH, name
        assert scrolled <= WIDTH, name

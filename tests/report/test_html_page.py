"""report.html: closed tags, no network, names that are text, and that it works in a browser."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest
from helpers.made_up_ablation import MEANS, make_results, write_root

from transformer_jax.report.analysis import analyze
from transformer_jax.report.html_page import html_report


class Outline(html.parser.HTMLParser):
    """A parser that collects the tags and links of a page, and those that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for key, value in attributes if key in ('src', 'href')]
        if tag not in ('meta', 'link', 'input', 'br', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)


def test_the_page_is_whole_and_asks_for_nothing_outside(out):
    content, outline = (out / 'report.html').read_text(), Outline()
    outline.feed(content)
    assert outline.open == []
    assert 'b' not in outline.seen  # the tag in a variant's name is text
    assert all(link.startswith(('#', 'data:')) for link in outline.links)
    assert 'http' not in content.replace('http-equiv', '').replace('http://www.w3.org/2000/svg', '')


def test_names_cannot_end_the_script(tmp_path):
    results = make_results()
    evil = '</script><script>alert(1)</script>'
    results['experiment']['variants'][evil] = results['experiment']['variants'].pop('additive')
    results['experiment']['published'] = []
    content = html_report(analyze(write_root(tmp_path / 'root', results)))
    assert evil not in content
    data = re.search('id="curves-data">(.*?)</script>', content, re.DOTALL)[1]
    assert evil in json.loads(data)['variants']


DRIVER = """<script>
const said = {errors: []};
addEventListener('error', event => said.errors.push(event.message));
const table = document.querySelector('table.sortable');
const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
const press = title => [...table.querySelectorAll('th button')]
  .find(b => b.textContent === title).click();
said.start = order();
for (const turn of ['rising', 'falling', 'again']) {
  press('mean ± sd [95%]');
  said[turn] = order();
}
press('p (together)');
said.p = order();
const chart = document.querySelector('.chart'), plot = chart.querySelector('.plot');
const paths = () => plot.querySelectorAll('path').length;
said.paths = paths();
chart.querySelector('.seeds').click();
said.means = paths();
[...chart.querySelectorAll('.legend button')].find(b => b.textContent.startsWith('linear')).click();
said.toggled = paths();
const box = plot.getBoundingClientRect();
const place = {clientX: box.right - 20, clientY: box.top + 60};
plot.dispatchEvent(new PointerEvent('pointermove', place));
const inside = (a, b) => a.left >= b.left && a.right <= b.right
  && a.top >= b.top && a.bottom <= b.bottom;
const tip = chart.querySelector('.tip');
said.inside = inside(tip.getBoundingClientRect(), chart.getBoundingClientRect());
said.tip = [...chart.querySelectorAll('.tip div')].map(line => line.textContent);
chart.querySelector('select').value = 'train loss';
chart.querySelector('select').dispatchEvent(new Event('change'));
for (const name of ['.log', '.late']) chart.querySelector(name).click();
said.other = paths();
const slider = document.querySelector('.probed input');
slider.value = 0;
slider.dispatchEvent(new Event('input'));
said.step = document.querySelector('.probed output').textContent;
said.maps = [...document.querySelectorAll('.heads')]
  .filter(map => !map.hidden).map(map => map.dataset.step);
said.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const told = {id: 'said', textContent: JSON.stringify(said)};
document.body.replaceChildren(Object.assign(document.createElement('pre'), told));
</script>"""


def test_the_page_works_in_a_browser(out, report, tmp_path):
    browser = next(
        filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
    )
    if browser is None:
        pytest.skip('no chromium is installed')
    copy = tmp_path / 'report.html'
    copy.write_text((out / 'report.html').read_text().replace('</body>', DRIVER + '</body>'))
    command = [
        browser,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--enable-logging=stderr',
        '--v=0',
        f'--user-data-dir={tmp_path / "profile"}',
        '--window-size=1280,900',
        '--dump-dom',
        copy.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert [line for line in run.stderr.splitlines() if 'CONSOLE' in line] == []
    said = json.loads(html.unescape(re.search('<pre id="said">(.*)</pre>', run.stdout)[1]))
    assert said['errors'] == []
    means = {row.variant: row.summary.mean for row in report.tables[0].rows if row.values}
    rising = sorted(means, key=means.get)
    assert said['start'] == said['again'] == list(MEANS)
    assert said['rising'] == [*rising, 'lost']
    assert said['falling'][0] == rising[-1]
    assert said['falling'][-1] == 'lost'  # a row without a number stays at the end
    assert said['p'][0] == 'additive'  # < 0.0001 is a number too
    runs = 5 + 4 + 5 + 5
    assert (said['paths'], said['means'], said['toggled'], said['other']) == (runs + 4, 4, 3, 3)
    last = report.curves['validation bleu']['softmax'].mean[-1][1]
    assert said['tip'][0] == 'step 400'
    assert f'softmax{last:#.4g}' in said['tip']
    assert said['inside']
    assert not any(line.startswith('linear') for line in said['tip'])
    assert (said['step'], said['maps']) == ('step 200', ['200'])
    assert said['wide'] <= 0  # tables scroll in their own boxes

"""The tutorial notebook runs, its page shows what it printed, and the how-to page is true."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'how-to' / 'notebook.md'
SMALL = TINY | {'model.decoder_layers': 2, 'evaluate.every': 12, 'train.steps': 12}
MOST_BYTES = 200_000  # of the notebook with its outputs


def load_generator():
    """Import docs/generate_notebook.py, which is not part of the package."""
    path = ROOT / 'docs' / 'generate_notebook.py'
    module_spec = importlib.util.spec_from_file_location('generate_notebook', path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
NOTEBOOK = json.loads(GENERATOR.NOTEBOOK.read_text())


def code_cells(notebook):
    return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def sorts(cell):
    """The sorts of output of a cell: 'stream stdout', 'text/html', 'image/png', …"""
    return [
        f'stream {output["name"]}'
        if output['output_type'] == 'stream'
        else ' '.join(sorted(output.get('data', [output['output_type']])))
        for output in cell['outputs']
    ]


def printed(notebook):
    """All that the cells of a notebook showed as text."""
    texts = []
    for cell in code_cells(notebook):
        for output in cell['outputs']:
            texts += output.get('text', []), output.get('data', {}).get('text/plain', [])
    return '\n'.join(''.join(text) for text in texts)


def test_the_notebook_was_run_from_its_first_cell_to_its_last():
    cells = code_cells(NOTEBOOK)
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [sort for cell in cells for sort in sorts(cell)]
    assert {'image/png text/plain', 'text/html text/plain', 'stream stdout'} <= set(shown)
    assert not {'error', 'stream stderr'} & set(shown)
    assert 'vierundzwanzig' in printed(NOTEBOOK)
    assert GENERATOR.NOTEBOOK.stat().st_size < MOST_BYTES


def test_the_page_is_that_of_the_notebook():
    files = GENERATOR.files()
    folder = GENERATOR.FOLDER
    assert set(folder.glob('notebook-*.png')) | {folder / 'notebook.md'} == set(files)
    for path, content in files.items():
        assert path.read_bytes() == content, f'{path.name} is stale: run make docs'


@pytest.mark.rare
def test_the_notebook_runs():
    pytest.importorskip('nbclient')
    again = GENERATOR.executed()  # which raises where a cell fails
    for cell, before in zip(code_cells(again), code_cells(NOTEBOOK), strict=True):
        assert sorts(cell) == sorts(before), ''.join(cell['source'])
    text = printed(again)
    assert "['sieben', 'vierundzwanzig', 'dreihundertfünfundsechzig']" in text
    losses = ast.literal_eval(re.search(r'array\((\[.*?\])\)', text)[1])
    assert len(losses) == 4
    assert losses[-1] < 0.2 < 1 < losses[0]


def blocks():
    return re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)


def test_the_how_to_needs_few_lines():
    """'Train 100 steps', 'open a run and decode' and 'plot a head' take at most five lines."""
    training, opening, *_ = (block for block in blocks() if 'run = ' in block)
    [plotting] = (block for block in blocks() if 'plot_attention' in block)
    for block in (training, opening, plotting):
        assert len(block.splitlines()) <= 5


@pytest.mark.rare
def test_the_how_to_is_true(tmp_path):
    """All blocks run in one program, in their order, with small settings."""
    small = (
        'import shutil\nimport transformer_jax\nfrom transformer_jax.api import load_config\n'
        'transformer_jax.load_config = lambda source, keys: load_config(source, keys | '
        f'{SMALL!r})\n'
    )
    # The page opens a run of an ablation: it has the form of any other.
    copy = "shutil.copytree('runs/notebook', 'runs/demo_ablation/base/0')\n"
    code = '\n'.join([small, *blocks()[:-1], copy, blocks()[-1], 'print(run.steps)'])
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.endswith('(12,)\n')

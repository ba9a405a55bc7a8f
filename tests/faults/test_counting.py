"""Parts of an ablation count from 0, as devices and processes do; the older flag says so."""

import re
from pathlib import Path

import pytest
from helpers.tiny_ablation import EVERYTHING, names, plan

from transformer_jax.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'experiments').rglob('*.md')]


@pytest.mark.parametrize('count', [1, 2, 4, 6, 7, 100])
def test_parts_from_zero_are_all_of_the_runs(tmp_path, count):
    parts = [names(plan(tmp_path, part=f'{i}/{count}').trials) for i in range(count)]
    assert [name for part in parts for name in part] == EVERYTHING


@pytest.mark.parametrize(
    'flag', ['--shard=1/8', '--shard=8/8', '--shard=0/8', '--shard=', '--shard', '--shard=1/1']
)
def test_the_flag_that_counted_from_one_is_refused_with_its_new_name(flag, capsys):
    assert main(['ablate', 'x.py', '--root=r', flag]) == 2
    said = capsys.readouterr().err
    assert 'unknown flag --shard: it is now --part, which counts from 0: --part=0/8' in said
    assert 'Traceback' not in said


def test_pages_write_parts_as_devices_and_tasks():
    commands = [line for page in PAGES for line in page.read_text().splitlines()]
    assert not [line for line in commands if re.search(r'--shard=[^1]|--part=\$\(\(', line)]
    arrays = [line for line in commands if '--array=' in line]
    assert arrays
    assert all('--array=0-' in line for line in arrays)

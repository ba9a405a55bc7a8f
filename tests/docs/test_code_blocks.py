"""The command blocks of README and of the site: they parse, and those of the tutorials run.

A comment right before a block says how it is treated:

- `<!-- test: skip: REASON -->`: its commands are parsed, not run
- `<!-- test: small: FLAGS -->`: it is run with these flags behind every command
- `<!-- test: write: FILE -->`: a Python block that is saved under that name
- `<!-- test: kind: NAME -->`: an attention kind, see `test_docs.py`
"""

import dataclasses
import gzip
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags
from helpers.support import XLA_CACHE

from transformer_jax.cli.commands import COMMANDS
from transformer_jax.report.readme import TABLES
from transformer_jax.schema import ExperimentConfig, flatten

ROOT = Path(__file__).parents[2]
MULTI30K = ROOT.parent / 'shared' / 'data' / 'multi30k'
SITE = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', *SITE]
TUTORIALS = [ROOT / 'README.md', *sorted((ROOT / 'docs' / 'tutorials').glob('*.md'))]
TUTORIALS.remove(ROOT / 'docs' / 'tutorials' / 'notebook.md')  # test_notebook.py runs it
BLOCK = re.compile(
    r'(?:<!-- test: (?P<mark>.*?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```', re.DOTALL
)
LINK = re.compile(r'\[[^\]]*\]\(([^)\s#]+)(?:#[^)]*)?\)')
NAMED_FILE = re.compile(
    r'`((?:transformer_jax|tests|configs|experiments|docs)/[\w./-]*\.(?:py|md|json|txt))`'
)
KEYS = flatten(ExperimentConfig())


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block of a page."""

    language: str
    code: str
    mark: str = ''  # skip, small, write, kind
    argument: str = ''

    def commands(self):
        """Yield the words of each `transformer-jax` command."""
        text = self.code.replace('\\\n', ' ')
        for line in text.splitlines():
            match = re.search(r'(?:^|[;&|(]|\s)transformer-jax\s+(.*)', line)
            if match and not line.lstrip().startswith('#'):
                yield cut_at_shell_operators(shlex.split(match[1], comments=True))


def cut_at_shell_operators(words):
    """Return the words before a pipe, a redirection or a list operator."""
    end = next((i for i, w in enumerate(words) if re.fullmatch(r'[|<>&;].*|2>.*', w)), len(words))
    return [word.rstrip(';&') for word in words[:end]]


def blocks_of(path):
    """Read the blocks of a page in their order."""
    found = []
    for match in BLOCK.finditer(path.read_text()):
        mark, _, argument = (match['mark'] or '').partition(': ')
        found.append(Block(match['language'], match['code'], mark, argument))
    return found


def label(path):
    return path.relative_to(ROOT).as_posix()


def check_command(words):
    """A command of a page exists, and so do its flags and keys."""
    name = ' '.join(words[:2]) if ' '.join(words[:2]) in COMMANDS else words[0]
    if name.startswith(('-', '…')) or name.isupper():
        return  # --help of the program, or a placeholder
    assert name in COMMANDS, f'{name}: no such command'
    values = absl_flags.FlagValues()
    COMMANDS[name].define(values)
    for word in words[len(name.split()) :]:
        flag = re.match(r'--(?:no)?([\w-]+)((?:\.\w+)*)', word)
        if not flag or flag[1] in ('help', 'debug'):
            continue
        known = flag[1].replace('-', '_') in values or word[2:].partition('=')[0] in values
        assert known, f'{name}: no flag {word}'
        if flag[1] == 'config' and flag[2] and flag[2] != '.KEY':
            assert flag[2][1:] in KEYS, f'{name}: no key {flag[2][1:]}'


@pytest.mark.parametrize('path', PAGES, ids=label)
def test_commands_parse(path):
    for block in blocks_of(path):
        if block.language == 'bash':
            for words in block.commands():
                check_command(words)


@pytest.mark.parametrize('path', PAGES, ids=label)
def test_python_parses(path):
    if path.parent.name == 'reference':
        return  # Signatures, generated from the code.
    for block in blocks_of(path):
        if block.language == 'python':
            compile(block.code.replace('…', '...'), label(path), 'exec')


@pytest.mark.parametrize('path', PAGES, ids=label)
def test_links_lead_to_files(path):
    for target in LINK.findall(path.read_text()):
        if '://' not in target and not target.startswith('mailto:'):
            assert (path.parent / target).exists(), f'{label(path)} links to {target}'


@pytest.mark.parametrize('path', PAGES, ids=label)
def test_named_files_exist(path):
    if path.name == 'CHANGELOG.md':
        return  # It names files as they were.
    added = {
        'transformer_jax/attention/kinds/sharp.py',
        'transformer_jax/attention/kinds/cosine.py',
    }
    for name in set(NAMED_FILE.findall(path.read_text())) - added:
        assert (ROOT / name).exists(), f'{label(path)} names {name}'


def test_the_readme_is_short():
    written = (ROOT / 'README.md').read_text()
    text = ''.join(TABLES.split(written)[::4])  # what people wrote
    assert text.count('\n') <= 150
    assert len(text.split()) <= 1200


MINUTES = ('first-run.md', 'write-an-ablation.md', 'train-a-translator.md')  # of trainings


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, marks=getattr(pytest.mark, 'rare' if path.name in MINUTES else 'slow'))
        for path in TUTORIALS
    ],
    ids=label,
)
def test_blocks_run(path, tmp_path):
    """The blocks of a tutorial, in their order, in an empty folder with configs and scripts."""
    for folder in ('configs', 'experiments', 'scripts'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    program = tmp_path / 'bin' / 'transformer-jax'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m transformer_jax "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        'PATH': f'{program.parent}:{os.environ["PATH"]}',
        'PYTHONPATH': str(ROOT),
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': XLA_CACHE.name,
    }
    for block in blocks_of(path):
        if 'MULTI30K' in block.argument and not MULTI30K.is_dir():
            pytest.skip(f'{MULTI30K} is missing')
        command = command_of(block, tmp_path)
        if command:
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=600
            )
            assert done.returncode == 0, (
                f'{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
            )


def small_multi30k(folder):
    """Make a copy of Multi30k with 30 sentences in each split but the training text."""
    copy = folder / 'multi30k'
    if MULTI30K.is_dir() and not copy.exists():
        copy.mkdir()
        for path in MULTI30K.glob('*.gz'):
            if path.name.startswith('train'):
                (copy / path.name).symlink_to(path)
            else:
                lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
                (copy / path.name).write_bytes(gzip.compress(b''.join(lines[:30])))
    return copy


def command_of(block, folder):
    """The command line that runs a block; none where it is not run."""
    if block.mark in ('skip', 'kind'):
        return []
    if block.mark == 'write':
        path = folder / block.argument
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code)
        return []
    if block.language == 'python':
        return [sys.executable, '-c', block.code]
    code = block.code
    if block.mark == 'small':
        extra = block.argument.replace('MULTI30K', str(small_multi30k(folder)))
        code = re.sub(r'(transformer-jax (?:bench )?\w+(?:\\\n|[^\n|<>;&])*)', rf'\1 {extra}', code)
    return ['bash', '-euo', 'pipefail', '-c', code]

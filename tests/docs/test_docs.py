"""The attention kinds of the tutorial and of README.md work as they say."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from laws.contract import CHECKS, SITE_CAPABILITY, Case, applies, site

from transformer_jax.attention import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'tutorials' / 'add-an-attention-kind.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
README = (ROOT / 'README.md').read_text()
SHARP = re.search(r'<!-- test: kind: sharp -->\n```python\n(.*?)```', README, re.DOTALL)[1]


@pytest.fixture
def kinds(tmp_path_factory):
    """Import the kinds of the pages as modules, and add their rows to the table KINDS."""
    rows = {'cosine': 'Cosine', 'longest_key': 'LongestKey', 'sharp': 'Sharp'}
    for (name, cls), code in zip(rows.items(), [*BLOCKS, SHARP], strict=True):
        path = tmp_path_factory.mktemp('docs') / f'{name}.py'
        path.write_text(code)
        module_spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        KINDS[name] = getattr(module, cls)
    yield
    for name in rows:
        del KINDS[name], sys.modules[name]


@pytest.mark.rare
def test_the_kind_of_the_page_keeps_every_promise(kinds):
    case, held = Case('cosine', 'rope', kv_heads=2), set()
    for name in SITE_CAPABILITY:
        for check in CHECKS:
            if applies(check, name, KINDS['cosine']().supports()):
                check(site(case, name))
                held.add(check)
    assert held == set(CHECKS)  # It promises all that can be promised.


@pytest.mark.parametrize(
    'failure', re.findall(r'^FAILED .*\[longest_key-decoder-(\w+)\]', PAGE, re.MULTILINE)
)
def test_the_mistake_of_the_page_fails_where_it_says(kinds, failure):
    check = next(check for check in CHECKS if check.__name__ == failure)
    with pytest.raises(AssertionError):
        check(site(Case('longest_key'), 'decoder'))


def test_a_kind_of_the_page_is_thirty_lines():
    body = BLOCKS[0][BLOCKS[0].index('@dataclasses') :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30


def test_the_kind_of_the_readme_keeps_what_it_promises(kinds):
    held = 0
    for check in CHECKS:
        if applies(check, 'decoder', KINDS['sharp']().supports()):
            check(site(Case('sharp'), 'decoder'))
            held += 1
    assert held > 5

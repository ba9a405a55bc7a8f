"""The tutorial on attention kinds works as it says, and the table of README.md is not stale."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from laws.contract import CHECKS, SITE_CAPABILITY, Case, applies, site

from transformer_jax.attention import KINDS, supports

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'tutorials' / 'add-an-attention-kind.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)


@pytest.fixture
def kinds(tmp_path_factory):
    """Import the two files of the page as modules, and add their rows to the table KINDS."""
    rows = {'cosine': 'Cosine', 'longest_key': 'LongestKey'}
    for (name, cls), code in zip(rows.items(), BLOCKS, strict=True):
        path = tmp_path_factory.mktemp('docs') / f'{name}.py'
        path.write_text(code)
        module_spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        KINDS[name] = getattr(module, cls)
    yield
    for name in rows:
        del KINDS[name], sys.modules[name]


@pytest.mark.slow
def test_the_kind_of_the_page_keeps_every_promise(kinds):
    case, held = Case('cosine', 'rope', kv_heads=2), 0
    for name in SITE_CAPABILITY:
        for check in CHECKS:
            if applies(check, name, KINDS['cosine']().supports()):
                check(site(case, name))
                held += 1
    assert held == 25


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


def test_the_supports_table_is_that_of_the_code():
    readme = (ROOT / 'README.md').read_text()
    assert supports.table() in readme, 'README.md is stale: run make docs'
    assert supports.updated(readme) == readme

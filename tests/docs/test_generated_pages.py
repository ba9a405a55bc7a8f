"""The pages of docs/reference that are generated from the code are those of today."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load_generator():
    """Import docs/generate_reference.py, which is not part of the package."""
    path = ROOT / 'docs' / 'generate_reference.py'
    module_spec = importlib.util.spec_from_file_location('generate_reference', path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


PAGES = load_generator().pages()


@pytest.mark.parametrize('path', PAGES, ids=lambda path: path.name)
def test_a_generated_page_is_todays(path):
    assert path.read_text() == PAGES[path], f'{path.name} is stale: run make docs'

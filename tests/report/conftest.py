"""One made-up ablation: its files, its analysis and its report."""

import pytest
from helpers.made_up_ablation import make_results, write_root

from transformer_jax.report.analysis import analyze
from transformer_jax.report.write import write_report


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp('ablation') / 'root', make_results())


@pytest.fixture(scope='module')
def report(root):
    return analyze(root)


@pytest.fixture(scope='module')
def out(root):
    write_report(root, root / 'report')
    return root / 'report'

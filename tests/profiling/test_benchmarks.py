"""The scripts of benchmarks/ work in small; no number is tested."""

import gzip
import importlib.util
import string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MULTI30K = ROOT.parent / 'shared' / 'data' / 'multi30k'


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a part in small: (standard output, standard error)."""
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    path = ROOT / 'benchmarks' / 'on_a_gpu.py'
    spec = importlib.util.spec_from_file_location('on_a_gpu', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        module.main([*arguments, '--small', f'--root={tmp_path / "runs"}'])
        return capfd.readouterr()

    return call


@pytest.mark.slow
def test_engines_are_compared_at_each_length(run):
    text, _ = run('attention')
    assert 'cpu' in text.splitlines()[0]
    rows = [line.split() for line in text.splitlines() if line.startswith((' dense', ' chunked'))]
    rows = rows or [line.split() for line in text.splitlines() if line[:5] in ('dense', 'chunk')]
    assert len(rows) == 2 * 2 * 2  # engines, passes, lengths


@pytest.mark.rare
def test_mfu_is_given_for_both_contexts(run):
    text, _ = run('mfu')
    assert text.count('%') == 2 * 2


@pytest.mark.rare
def test_seeds_are_compared_with_one(run):
    text, _ = run('seeds')
    assert '2 seeds side by side' in text


@pytest.mark.rare
def test_tiny_shakespeare_ends_with_a_loss(run, tmp_path):
    # The configuration has 65 characters, as the real text.
    text = f'{string.ascii_letters} {string.digits}!?\n'
    (tmp_path / 'input.txt').write_text((text[:64] + '\n') * 200)
    text, _ = run('tiny_shakespeare', f'--source_dir={tmp_path}', '--seeds=2')
    assert 'mean ± deviation' in text
    assert '1.4697' in text


@pytest.mark.slow
def test_multi30k_ends_with_a_bleu(run, tmp_path):
    if not MULTI30K.is_dir():
        pytest.skip(f'{MULTI30K} is missing')
    for path in MULTI30K.glob('*.gz'):
        count = 500 if path.name.startswith('train') else 10
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[:count]
        (tmp_path / path.name).write_bytes(gzip.compress(b''.join(lines)))
    text, _ = run('multi30k', f'--source_dir={tmp_path}', '--seeds=1')
    assert 'seed 0' in text
    assert '41.02' in text


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['multi30k'], 'multi30k needs --source_dir'),
        (['tiny_shakespeare', '--source_dir=x', '--seeds=0'], '--seeds=0: at least one'),
        (['speed'], "invalid choice: 'speed'"),
    ],
)
def test_mistakes_are_told(run, arguments, told, capfd):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert told in capfd.readouterr().err

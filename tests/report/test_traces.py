"""Learning curves and attention heads, read from the folders of runs."""

import json

import numpy as np
import pytest
from helpers.made_up_ablation import make_results, write_root

from transformer_jax.report.analysis import analyze
from transformer_jax.report.html_page import html_report


def test_curves_have_every_seed_and_their_mean(report, root):
    assert list(report.curves)[:2] == ['validation bleu', 'validation loss']
    assert not {'validation sentences', 'train tokens_per_second'} & set(report.curves)
    curve = report.curves['validation bleu']['linear']
    events = [
        [
            json.loads(line)
            for line in (root / 'linear' / str(seed) / 'metrics.jsonl').read_text().splitlines()
        ]
        for seed in (0, 1, 2, 4)
    ]
    last = [run[-1]['bleu'] for run in events]
    assert sorted(curve.seeds) == [0, 1, 2, 4]
    assert curve.mean[-1] == (400, pytest.approx(np.mean(last)))


def test_the_mean_ends_where_a_seed_does_and_gaps_stay_gaps(tmp_path):
    root = write_root(tmp_path / 'root', make_results())
    file = root / 'additive' / '0' / 'metrics.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    broken = [
        line | ({'loss': 'nan'} if line['step'] == 100 else {})
        for line in lines
        if line['step'] <= 200
    ]
    file.write_text('\n'.join(map(json.dumps, broken)) + '\n{"step": 210, "spl')
    found = analyze(root)
    curve = found.curves['validation loss']['additive']
    assert [step for step, _ in curve.mean] == [50, 100, 150, 200]
    assert np.isnan(dict(curve.mean)[100])
    assert max(step for step, _ in curve.seeds[1]) == 400
    assert '[100,null]' in html_report(found)


def test_heads_are_maps_of_layers_and_heads(report, out):
    heads = report.heads['linear']
    assert (heads.seed, heads.steps, len(heads.pictures)) == (1, [200, 400], 1)
    assert set(report.heads) == {'linear'}
    first, last = heads.maps['encoder: entropy (nats)']
    assert first.shape == (3, 4)
    np.testing.assert_allclose(last, first / 2)
    assert np.isnan(heads.maps['cross: largest score'][0][:, 1]).all()
    assert not any('log n' in name for name in heads.maps)  # it has no meaning in any head
    assert 'src="data:image/png;base64,' in (out / 'report.html').read_text()

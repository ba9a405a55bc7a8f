"""Learning curves: what they show of a metrics.jsonl, and when there are none."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from transformer_jax.display import learning_curves
from transformer_jax.display.learning_curves import draw_learning_curves
from transformer_jax.errors import DataError


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that would have been saved, in their order."""
    kept = []
    monkeypatch.setattr(
        learning_curves, 'save_figure', lambda figure, path: kept.append(figure) or path
    )
    return kept


def write_metrics(path, events):
    path.write_text(''.join(json.dumps(event) + '\n' for event in events))
    return path


def test_curves_show_what_was_logged(tmp_path, figures):
    events = [
        {'step': 10, 'split': 'train', 'loss': 3.0},
        {'step': 20, 'split': 'train', 'loss': 'nan'},
        {'step': 20, 'split': 'validation', 'loss': 2.5, 'perplexity': 12.2, 'bleu': 7.0},
    ]
    draw_learning_curves(write_metrics(tmp_path / 'metrics.jsonl', events), tmp_path / 'curves.png')
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ['loss (nats per token)', 'perplexity', 'BLEU']
    train, validation = figures[0].axes[0].lines
    np.testing.assert_array_equal(train.get_xydata(), [[10, 3], [20, np.nan]])
    np.testing.assert_array_equal(validation.get_xydata(), [[20, 2.5]])
    draw_learning_curves(
        write_metrics(tmp_path / 'metrics.jsonl', events[:1]), tmp_path / 'curves.png'
    )
    assert [axes.get_title() for axes in figures[1].axes] == ['loss (nats per token)']


def test_curves_are_written_to_a_file(tmp_path):
    metrics = write_metrics(
        tmp_path / 'metrics.jsonl', [{'step': n, 'split': 'train', 'loss': 1 / n} for n in (1, 2)]
    )
    image = imread(draw_learning_curves(metrics, tmp_path / 'figures' / 'curves.png'))
    assert image.shape[0] > 200
    assert image.std() > 0.01


def test_a_run_without_losses_has_no_curves(tmp_path):
    with pytest.raises(DataError, match='no losses yet'):
        draw_learning_curves(write_metrics(tmp_path / 'metrics.jsonl', []), tmp_path / 'curves.png')

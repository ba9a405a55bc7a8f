"""Heat maps of attention: where their labels and colors are, and what files are written."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from transformer_jax.display import attention_heads
from transformer_jax.display.figures import DPI
from transformer_jax.errors import ConfigError

DARKEST = np.array([8, 48, 107]) / 255  # matplotlib's 'Blues' at 1
WORDS = [
    '▁a',
    '▁man',
    'super',
    '▁$',
    '5$',
    'Donaudampfschifffahrt',
    '▁g',
    '▁women',
    ',',
    '▁rain',
] * 3


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that would have been saved, in their order."""
    kept = []
    monkeypatch.setattr(
        attention_heads, 'save_figure', lambda figure, path: kept.append(figure) or path
    )
    return kept


def made_up(S, T, layers=1, heads=2):
    """Make weights by which each token attends to the token at its own position, or the last."""

    def stack(T, S):
        return np.broadcast_to(np.eye(S)[np.minimum(np.arange(T), S - 1)], (layers, heads, T, S))

    return {'encoder': stack(S, S), 'decoder': stack(T, T), 'cross': stack(T, S)}


def test_a_picture_shows_each_weight_in_its_cell(tmp_path):
    [path] = attention_heads.draw_attention(
        made_up(6, 6), WORDS[:6], WORDS[:6], tmp_path / 'new' / 'heads.png'
    )
    image = imread(path)[..., :3]
    dark_rows, dark_columns = np.nonzero(np.abs(image - DARKEST).max(-1) < 0.02)
    cell = attention_heads.PANEL_INCHES / 6 * DPI
    full_cells = 3 * 2 * 6
    assert 0.85 < len(dark_rows) / (full_cells * cell**2) < 1.05
    # One diagonal in the first panel: columns grow with rows.
    first = (
        (dark_columns < image.shape[1] / 2 - cell)
        & (dark_rows > DPI / 2)
        & (dark_rows < image.shape[0] / 3)
    )
    assert np.corrcoef(dark_rows[first], dark_columns[first])[0, 1] > 0.9


@pytest.mark.parametrize('tokens', [2, 6, 30])
def test_labels_are_whole_and_do_not_touch(figures, tokens):
    words = [*(WORDS if tokens > 2 else ['▁a', '▁b'])[: tokens - 1], '</s>']
    attention_heads.draw_attention(made_up(tokens, tokens), words, words, 'heads.png')
    [figure] = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    low, high = (np.array([getattr(box, corner) for box in boxes]) for corner in ('min', 'max'))
    assert (low >= 0).all()
    assert (high <= figure.get_size_inches() * figure.dpi).all()
    # A pixel of the extent is the renderer's margin.
    overlap_BS2 = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None]) - 1
    touching = (overlap_BS2 > 0).all(-1) & ~np.eye(len(boxes), dtype=bool)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert not [(labels[a], labels[b]) for a, b in np.argwhere(touching)]


def test_labels_say_what_is_read_and_what_is_written(figures):
    attention_heads.draw_attention(
        made_up(3, 4, heads=1),
        ['▁four', '$5$', '</s>'],
        ['vi', 'er', 'x' * 40, '</s>'],
        'heads.png',
    )
    labels = [text.get_text() for text in figures[0].axes[0].texts][2:]
    source, target = ['·four', '$5$', '</s>'], ['vi', 'er', 'x' * 15 + '…', '</s>']
    assert labels == [
        *source,
        *source,
        'encoder 1 · head 1',
        *target,
        '<s>',
        *target[:-1],
        'decoder 1 · head 1',
        *target,
        *source,
        'cross 1 · head 1',
    ]


def test_what_no_screen_shows_is_also_drawn_layer_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(attention_heads, 'READABLE_INCHES', 9)
    monkeypatch.setattr(attention_heads, 'DPI', 20)
    words = [*WORDS[:11], '</s>']
    files = attention_heads.draw_attention(
        made_up(12, 12, layers=2, heads=6), words, words, tmp_path / 'heads.png'
    )
    layers = [
        f'heads-{stack}-{layer}.png'
        for stack in ('encoder', 'decoder', 'cross')
        for layer in (1, 2)
    ]
    assert [file.name for file in files] == ['heads.png', *layers]
    for file in files[1:]:
        height, width, _ = imread(file).shape
        assert max(height, width) < 12 * 20
        assert width > height  # six heads: three across, two down
    [file] = attention_heads.draw_attention(
        made_up(6, 6, heads=1), words[:6], words[:6], tmp_path / 'few.png'
    )
    assert file.name == 'few.png'


@pytest.mark.parametrize(
    ('suffix', 'start'), [('.png', b'\x89PNG'), ('.svg', b'<?xml'), ('.pdf', b'%PDF')]
)
def test_the_suffix_is_the_format(tmp_path, suffix, start):
    [path] = attention_heads.draw_attention(
        made_up(2, 2), ['a', '</s>'], ['b', '</s>'], tmp_path / f'heads{suffix}'
    )
    assert path.read_bytes().startswith(start)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'heads\.bmp.*\.png'):
        attention_heads.draw_attention(
            made_up(2, 2), ['a', '</s>'], ['b', '</s>'], tmp_path / 'heads.bmp'
        )

"""Attention weights by their properties, pictures by where their labels and colours lie."""

import json
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from transformer_jax.batch import EOS
from transformer_jax.display import figures as plots
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference import attention_maps
from transformer_jax.schema import ModelConfig

CONFIG = ModelConfig(encoder_layers=2, decoder_layers=3, d_model=16, d_ff=32, num_heads=4)
SOURCE, TARGET = [5, 6, 7, 8, EOS], [9, 10, 11, EOS]
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


@pytest.fixture(scope='module')
def model():
    return build_model(CONFIG, 32)


@pytest.fixture(scope='module')
def params(model):
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.PRNGKey(0), dummy_batch())['params']
    )
    random = np.random.default_rng(0)
    return jax.tree.map(lambda a: random.normal(scale=0.5, size=a.shape).astype(a.dtype), shapes)


@pytest.fixture(scope='module')
def weights(model, params):
    return attention_maps.attention_weights(model, params, SOURCE, TARGET)


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been saved, in their order."""
    kept = []
    monkeypatch.setattr(plots, 'save_figure', lambda figure, path: kept.append(figure) or path)
    return kept


def made_up(S, T, layers=1, heads=2):
    """Every token looks at the one in its own place, or at the last."""

    def stack(T, S):
        return np.broadcast_to(np.eye(S)[np.minimum(np.arange(T), S - 1)], (layers, heads, T, S))

    return {'encoder': stack(S, S), 'decoder': stack(T, T), 'cross': stack(T, S)}


def test_weights_have_one_matrix_a_head_and_sum_to_one(weights):
    S, T = len(SOURCE), len(TARGET)
    assert {stack: w.shape for stack, w in weights.items()} == {
        'encoder': (2, 4, S, S),
        'decoder': (3, 4, T, T),
        'cross': (3, 4, T, S),
    }
    for w in weights.values():
        assert isinstance(w, np.ndarray)
        np.testing.assert_allclose(w.sum(-1), 1, atol=1e-6)


def test_the_decoder_looks_at_no_later_input(weights):
    T = len(TARGET)
    assert not weights['decoder'][..., np.triu(np.ones((T, T), bool), 1)].any()
    assert (weights['decoder'][..., np.tril(np.ones((T, T), bool))] > 0).all()


def test_a_row_is_the_step_that_writes_its_token(model, params, weights):
    """Token k is an input from row k + 1 on; the last one is never read."""
    changed = attention_maps.attention_weights(model, params, SOURCE, [*TARGET[:-1], 12])
    np.testing.assert_array_equal(changed['decoder'], weights['decoder'])
    changed = attention_maps.attention_weights(model, params, SOURCE, [TARGET[0], 13, *TARGET[2:]])
    for stack in ('decoder', 'cross'):
        differs = (changed[stack] != weights[stack]).any(axis=(0, 1, 3))
        np.testing.assert_array_equal(differs, [False, False, True, True])


def test_layers_are_in_order(model, params):
    """Zero queries spread attention evenly, in the layer that has them and in no other."""
    query = params['decoder_1']['cross']['queries']['query']
    decoder_1 = {
        **params['decoder_1'],
        'cross': {
            **params['decoder_1']['cross'],
            'queries': {'query': {'kernel': 0 * query['kernel']}},
        },
    }
    params = {**params, 'decoder_1': decoder_1}
    cross = attention_maps.attention_weights(model, params, SOURCE, TARGET)['cross']
    even = [np.allclose(layer, 1 / len(SOURCE), atol=1e-6) for layer in cross]
    assert even == [False, True, False]


def test_a_picture_shows_each_weight_in_its_cell(tmp_path):
    [path] = plots.draw_attention(
        made_up(6, 6), WORDS[:6], WORDS[:6], tmp_path / 'new' / 'heads.png'
    )
    image = imread(path)[..., :3]
    dark_rows, dark_columns = np.nonzero(np.abs(image - DARKEST).max(-1) < 0.02)
    cell = plots.PANEL_INCHES / 6 * plots.DPI
    full_cells = 3 * 2 * 6
    assert 0.85 < len(dark_rows) / (full_cells * cell**2) < 1.05
    # One diagonal in the first panel: columns grow with rows.
    first = (
        (dark_columns < image.shape[1] / 2 - cell)
        & (dark_rows > plots.DPI / 2)
        & (dark_rows < image.shape[0] / 3)
    )
    assert np.corrcoef(dark_rows[first], dark_columns[first])[0, 1] > 0.9


@pytest.mark.parametrize('tokens', [2, 6, 30])
def test_labels_are_whole_and_do_not_touch(figures, tokens):
    words = [*(WORDS if tokens > 2 else ['▁a', '▁b'])[: tokens - 1], '</s>']
    plots.draw_attention(made_up(tokens, tokens), words, words, 'heads.png')
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
    plots.draw_attention(
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
    monkeypatch.setattr(plots, 'READABLE_INCHES', 9)
    monkeypatch.setattr(plots, 'DPI', 20)
    words = [*WORDS[:11], '</s>']
    files = plots.draw_attention(
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
    [file] = plots.draw_attention(
        made_up(6, 6, heads=1), words[:6], words[:6], tmp_path / 'few.png'
    )
    assert file.name == 'few.png'


@pytest.mark.parametrize(
    ('suffix', 'start'), [('.png', b'\x89PNG'), ('.svg', b'<?xml'), ('.pdf', b'%PDF')]
)
def test_the_suffix_is_the_format(tmp_path, suffix, start):
    [path] = plots.draw_attention(
        made_up(2, 2), ['a', '</s>'], ['b', '</s>'], tmp_path / f'heads{suffix}'
    )
    assert path.read_bytes().startswith(start)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'heads\.bmp.*\.png'):
        plots.draw_attention(made_up(2, 2), ['a', '</s>'], ['b', '</s>'], tmp_path / 'heads.bmp')


@pytest.fixture
def trained(model, params):
    """A model whose tokens are letters and which translates by turning a text around."""
    tokenizer = types.SimpleNamespace(
        encode=lambda texts: [[ord(letter) - ord('a') + 4 for letter in text] for text in texts],
        pieces=lambda ids: ['</s>' if token == EOS else chr(token - 4 + ord('a')) for token in ids],
    )
    batching = types.SimpleNamespace(row_lengths=lambda: (4, 8))
    return types.SimpleNamespace(
        model=model,
        params=params,
        data=types.SimpleNamespace(tokenizer=tokenizer, batching=batching),
        evaluator=types.SimpleNamespace(
            translate=lambda params, texts: [text[::-1] for text in texts]
        ),
    )


def test_a_translation_is_drawn_with_its_tokens(trained, figures):
    hypothesis, [path] = attention_maps.draw_translation(trained, 'abc', 'heads.png')
    assert (hypothesis, path.name) == ('cba', 'heads.png')
    labels = [text.get_text() for text in figures[0].axes[0].texts]
    last_cross = labels[-len(['c', 'b', 'a', '</s>']) - len(['a', 'b', 'c', '</s>']) - 1 :]
    assert last_cross == ['c', 'b', 'a', '</s>', 'a', 'b', 'c', '</s>', 'cross 3 · head 4']


@pytest.mark.parametrize('text', ['', 'abcdefgh'])
def test_a_text_that_the_model_cannot_read_is_refused(trained, text):
    with pytest.raises(DataError, match=f'{len(text)} tokens; .* 1 to 7'):
        attention_maps.draw_translation(trained, text, 'heads.png')


def write_metrics(path, events):
    path.write_text(''.join(json.dumps(event) + '\n' for event in events))
    return path


def test_curves_show_what_was_logged(tmp_path, figures):
    events = [
        {'step': 10, 'split': 'train', 'loss': 3.0},
        {'step': 20, 'split': 'train', 'loss': 'nan'},
        {'step': 20, 'split': 'validation', 'loss': 2.5, 'perplexity': 12.2, 'bleu': 7.0},
    ]
    plots.curves(write_metrics(tmp_path / 'metrics.jsonl', events), tmp_path / 'curves.png')
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ['loss (nats per token)', 'perplexity', 'BLEU']
    train, validation = figures[0].axes[0].lines
    np.testing.assert_array_equal(train.get_xydata(), [[10, 3], [20, np.nan]])
    np.testing.assert_array_equal(validation.get_xydata(), [[20, 2.5]])
    plots.curves(write_metrics(tmp_path / 'metrics.jsonl', events[:1]), tmp_path / 'curves.png')
    assert [axes.get_title() for axes in figures[1].axes] == ['loss (nats per token)']


def test_curves_are_written_to_a_file(tmp_path):
    metrics = write_metrics(
        tmp_path / 'metrics.jsonl', [{'step': n, 'split': 'train', 'loss': 1 / n} for n in (1, 2)]
    )
    image = imread(plots.curves(metrics, tmp_path / 'figures' / 'curves.png'))
    assert image.shape[0] > 200
    assert image.std() > 0.01


def test_a_run_without_losses_has_no_curves(tmp_path):
    with pytest.raises(DataError, match='no losses yet'):
        plots.curves(write_metrics(tmp_path / 'metrics.jsonl', []), tmp_path / 'curves.png')

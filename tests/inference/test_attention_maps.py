"""Attention weights of a small model by their properties, and the figure of a translation."""

import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.batch import EOS
from transformer_jax.display import attention_heads
from transformer_jax.errors import DataError
from transformer_jax.inference import attention_maps
from transformer_jax.schema import ModelConfig

CONFIG = ModelConfig(encoder_layers=2, decoder_layers=3, d_model=16, d_ff=32, num_heads=4)
SOURCE, TARGET = [5, 6, 7, 8, EOS], [9, 10, 11, EOS]


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
    """Token k is an input from row k + 1 on; the last token is no input of any row."""
    changed = attention_maps.attention_weights(model, params, SOURCE, [*TARGET[:-1], 12])
    np.testing.assert_array_equal(changed['decoder'], weights['decoder'])
    changed = attention_maps.attention_weights(model, params, SOURCE, [TARGET[0], 13, *TARGET[2:]])
    for stack in ('decoder', 'cross'):
        differs = (changed[stack] != weights[stack]).any(axis=(0, 1, 3))
        np.testing.assert_array_equal(differs, [False, False, True, True])


def test_layers_are_in_order(model, params):
    """Zero queries make attention uniform, in the layer that has them and in no other."""
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


@pytest.fixture
def trained(model, params):
    """Make a model whose tokens are letters and whose translation is the reversed text."""
    tokenizer = types.SimpleNamespace(
        encode=lambda texts: [[ord(letter) - ord('a') + 4 for letter in text] for text in texts],
        unknown=lambda text: [],
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


def test_a_translation_is_drawn_with_its_tokens(trained, monkeypatch):
    figures = []
    monkeypatch.setattr(
        attention_heads, 'save_figure', lambda figure, path: figures.append(figure) or path
    )
    shown = []
    [path] = attention_maps.draw_text(trained, 'abc', 'heads.png', shown.append)
    [hypothesis] = shown
    assert (hypothesis, path.name) == ('cba', 'heads.png')
    labels = [text.get_text() for text in figures[0].axes[0].texts]
    last_cross = labels[-len(['c', 'b', 'a', '</s>']) - len(['a', 'b', 'c', '</s>']) - 1 :]
    assert last_cross == ['c', 'b', 'a', '</s>', 'a', 'b', 'c', '</s>', 'cross 3 · head 4']


@pytest.mark.parametrize('text', ['', 'abcdefgh'])
def test_a_text_that_the_model_cannot_read_is_refused(trained, text):
    with pytest.raises(DataError, match=f'{len(text)} tokens; .* 1 to 7'):
        attention_maps.draw_text(trained, text, 'heads.png', print)

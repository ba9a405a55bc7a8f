"""Model FLOPs by hand: attention is counted, its causal pairs half."""

import pytest
from helpers.build import resolve_architecture

from transformer_jax.efficiency.flops import model_flops
from transformer_jax.schema import ModelConfig

T, D, F, V, LAYERS = 32, 16, 48, 64, 2
SIZES = {
    'd_model': D,
    'd_ff': F,
    'num_heads': 2,
    'encoder_layers': LAYERS,
    'decoder_layers': LAYERS,
}
BLOCK = 2 * T * (4 * D * D + 2 * D * F)  # projections and feed-forward of a layer
PAIRS = 2 * 2 * T * T * D  # scores and mixed values of a layer, all pairs
CROSS = 2 * T * 4 * D * D
OUTPUT = 2 * T * D * V


def counted(**changes):
    return model_flops(resolve_architecture(ModelConfig(**SIZES | changes), V), T)


@pytest.mark.parametrize('engine', ['dense', 'chunked'])
def test_causal_pairs_count_half(engine):
    expected = LAYERS * (BLOCK + PAIRS // 2) + OUTPUT
    assert counted(kind='decoder_only', engine=engine) == 3 * expected


def test_encoder_and_cross_attention_count_whole():
    encoder = BLOCK + PAIRS
    decoder = BLOCK + CROSS + PAIRS // 2 + PAIRS
    assert counted() == 3 * (LAYERS * (encoder + decoder) + OUTPUT)


def test_a_window_counts_as_the_keys_that_it_shows():
    size = 8  # Each query sees `size` keys; the blocked engine multiplies two blocks of so many.
    expected = LAYERS * (BLOCK + 2 * 2 * T * size * D) + OUTPUT
    attention = f'softmax(mask=window({size}))'
    found = counted(kind='decoder_only', attention=attention)
    assert found == pytest.approx(3 * expected, rel=0.02)


def test_kernels_that_only_an_accelerator_has_count_like_others():
    assert counted(kind='decoder_only', engine='splash') == counted(kind='decoder_only')

"""Scores of single tokens against an independent NumPy float64 implementation."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.build import build_model

from transformer_jax.batch import Batch
from transformer_jax.losses import chunks
from transformer_jax.losses.cross_entropy import cross_entropy
from transformer_jax.losses.token_scores import token_scores
from transformer_jax.schema import ModelConfig

V = 20


@pytest.fixture
def language_batch():
    """Make five rows of 12 tokens, some of weight 0: prompts, and padding at the end."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(4, V, (2, 5, 12)).astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (5, 12))
    segments = (positions < np.array([12, 7, 9, 12, 1])[:, None]).astype(np.int32)
    weights = (segments * (rng.random((5, 12)) < 0.6)).astype(np.float32)
    return Batch(None, None, None, inputs, targets, positions, segments, weights)


def float64_scores(logits_BTV, targets_BT):
    """Compute by the definition (−log softmax at the target, the index of the largest logit)."""
    logits_BTV = np.asarray(logits_BTV, np.float64)
    norm_BT = np.log(np.exp(logits_BTV).sum(-1))
    target_BT = np.take_along_axis(logits_BTV, targets_BT[..., None], -1)[..., 0]
    return norm_BT - target_BT, logits_BTV.argmax(-1)


@pytest.mark.parametrize('chunk', [1, 16, 512])
@pytest.mark.parametrize('softcap', [0.0, 2.0])
def test_scores_are_those_of_all_logits(language_batch, monkeypatch, chunk, softcap):
    monkeypatch.setattr(chunks, 'CHUNK_TOKENS', chunk)
    config = ModelConfig(
        kind='decoder_only',
        decoder_layers=1,
        d_model=8,
        d_ff=8,
        num_heads=2,
        dropout=0.3,
        logit_softcap=softcap,
    )
    model = build_model(config, V)
    params = model.init(jax.random.PRNGKey(1), language_batch)['params']
    params = jax.tree.map(lambda a: 3 * np.asarray(a), jax.device_get(nn.meta.unbox(params)))
    logits_BTV = jax.jit(model.apply)({'params': params}, language_batch)
    nll_BT, predicted_BT = jax.jit(lambda p, b: token_scores(model, p, b))(params, language_batch)
    counts_BT = language_batch.weights_BT > 0
    expected_BT, best_BT = float64_scores(logits_BTV, language_batch.targets_BT)
    np.testing.assert_allclose(nll_BT, np.where(counts_BT, expected_BT, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predicted_BT, np.where(counts_BT, best_BT, 0))
    assert (nll_BT.dtype, predicted_BT.dtype) == (np.float32, np.int32)


def test_their_sums_are_those_of_the_loss(language_batch):
    config = ModelConfig(kind='decoder_only', decoder_layers=1, d_model=8, d_ff=8, num_heads=2)
    model = build_model(config, V)
    params = nn.meta.unbox(model.init(jax.random.PRNGKey(0), language_batch)['params'])
    x_BTD = model.apply({'params': params}, language_batch, method='features')
    w_VD = model.apply({'params': params}, method='output_table')
    batch = language_batch
    sums = cross_entropy(x_BTD, w_VD, batch.targets_BT, batch.weights_BT, 0.0)
    nll_BT, predicted_BT = token_scores(model, params, batch)
    assert (nll_BT * batch.weights_BT).sum() == pytest.approx(float(sums.nll), rel=1e-5)
    correct_BT = (predicted_BT == batch.targets_BT) * batch.weights_BT
    assert correct_BT.sum() == float(sums.correct)

"""The norm of the gradient of an untrained model, against formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build
from helpers.support import experiment, quiet

from transformer_jax.inference.gradient_norms import gradient_norms, lacks_part, norm_of
from transformer_jax.inference.probes import choose_batches
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.storage.arrays import named_leaves
from transformer_jax.training.train import train


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of no steps whose training would smooth labels and drop activations."""
    path = tmp_path_factory.mktemp('untrained')
    config = experiment(
        train__steps=0,
        model__tie_embeddings='none',
        model__dropout=0.5,
        train__label_smoothing=0.1,
        evaluate__batch_tokens=96,
    )
    train(config, path, quiet)
    return TrainedRun(path, '', quiet, {})


def log_likelihood(trained, params, batch):
    """The plain definition: (log p [B, T, V], features [B, T, D])."""
    x_BTD = trained.model.apply({'params': params}, batch, method='features')
    w_VD = trained.model.apply({'params': params}, method='output_table')
    return jax.nn.log_softmax(jnp.einsum('BTD,VD->BTV', x_BTD, w_VD), axis=-1), x_BTD


def test_all_parameters(trained):
    batches = choose_batches(trained, 'validation', 2)
    assert len(batches) == 2

    @jax.jit
    def gradient(params):
        def mean(params):
            total = weight = 0.0
            for batch in batches:
                scores_BTV, _ = log_likelihood(trained, params, batch)
                own_BT = jnp.take_along_axis(scores_BTV, batch.targets_BT[..., None], -1)[..., 0]
                total -= (own_BT * batch.weights_BT).sum()
                weight += batch.weights_BT.sum()
            return total / weight

        return jax.grad(mean)(params)

    found = gradient_norms(trained, 'validation', 2)
    leaves = named_leaves(gradient(trained.params))
    expected = {name: np.linalg.norm(np.asarray(a, np.float64)) for name, a in leaves.items()}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert norm_of(found) == pytest.approx(math.hypot(*expected.values()), rel=1e-3)
    parts = [norm_of(found, part) for part in ('encoder_0', 'decoder_0')]
    inside = [value for name, value in found.items() if 'coder_0/' in name]
    assert math.hypot(*parts) == pytest.approx(math.hypot(*inside))


def test_the_output_table_written_out(trained):
    """∂loss/∂W = Σ (p − y) xᵀ / n, in NumPy."""
    total_VD, weight = 0.0, 0.0
    for batch in choose_batches(trained, 'validation', 2):
        scores_BTV, x_BTD = log_likelihood(trained, trained.params, batch)
        p_BTV = np.exp(np.asarray(scores_BTV, np.float64))
        wrong_BTV = p_BTV - np.eye(p_BTV.shape[-1])[np.asarray(batch.targets_BT)]
        wrong_BTV *= np.asarray(batch.weights_BT, np.float64)[..., None]
        total_VD += np.einsum('BTV,BTD->VD', wrong_BTV, np.asarray(x_BTD, np.float64))
        weight += float(batch.weights_BT.sum())
    found = norm_of(gradient_norms(trained, 'validation', 2), 'output/table')
    assert found == pytest.approx(np.linalg.norm(total_VD / weight), rel=1e-3)


def test_a_part_that_no_parameter_has():
    config = experiment(model__scan_layers=True, model__encoder_layers=2)
    architecture = build(config).architecture
    assert not lacks_part(architecture, '')
    assert not lacks_part(architecture, 'encoder_1/ffn')
    assert lacks_part(architecture, 'encoder_2/ffn').startswith("no parameter has 'encoder_2/ffn'")

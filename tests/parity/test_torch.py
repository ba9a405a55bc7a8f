"""A whole encoder-decoder, forward and backward, against `torch.nn.Transformer` with the
same weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.positions import sinusoids

torch = pytest.importorskip('torch', reason='torch is a test-only extra: pip install -e .[torch]')

V, LENGTH, SMOOTHING = 20, 8, 0.1
ATTENTION = {
    'encoder': {'attention': 'self_attn'},
    'decoder': {'attention': 'self_attn', 'cross': 'multihead_attn'},
}


def torch_parameters(params, config):
    """Map our parameters to torch's names.

    Torch's kernels are [outputs, inputs] with all heads in one dimension, and without biases of
    projections.
    """
    found = {}
    for side, sites in ATTENTION.items():
        for layer in range(getattr(config, f'{side}_layers')):
            block, prefix = params[f'{side}_{layer}'], f'{side}.layers.{layer}.'
            for site, name in sites.items():
                kernels = (
                    block[site][place][what]['kernel']
                    for place, what in (('queries', 'query'), ('keys', 'key'), ('keys', 'value'))
                )
                found[f'{prefix}{name}.in_proj_weight'] = np.concatenate(
                    [np.reshape(kernel, (config.d_model, -1)).T for kernel in kernels]
                )
                out = np.reshape(block[site]['out']['kernel'], (-1, config.d_model))
                found[f'{prefix}{name}.out_proj.weight'] = out.T
            for index, site in enumerate((*sites, 'ffn'), 1):
                for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
                    found[f'{prefix}norm{index}.{theirs}'] = block[f'{site}_connection']['norm'][
                        ours
                    ]
            for ours, theirs in (('in', 'linear1'), ('out', 'linear2')):
                found[f'{prefix}{theirs}.weight'] = np.transpose(block['ffn'][f'{ours}_kernel'])
                found[f'{prefix}{theirs}.bias'] = block['ffn'][f'{ours}_bias']
        if config.norm_placement == 'pre':
            for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
                found[f'{side}.norm.{theirs}'] = params[f'{side}_norm'][ours]
    return found


def torch_model(params, config):
    """Make a torch.nn.Transformer in float64 with our parameters; return it and them by name."""
    pre = config.norm_placement == 'pre'
    model = torch.nn.Transformer(
        config.d_model,
        config.num_heads,
        config.encoder_layers,
        config.decoder_layers,
        config.d_ff,
        dropout=0.0,
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=pre,
        dtype=torch.float64,
    )
    if not pre:  # torch ends each stack with a norm; the paper does not
        model.encoder.norm = model.decoder.norm = torch.nn.Identity()
    named = dict(model.named_parameters())
    ours = torch_parameters(params, config)
    assert {name for name in named if not name.endswith(('in_proj_bias', 'out_proj.bias'))} == set(
        ours
    )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(
                torch.tensor(np.asarray(ours[name]))
                if name in ours
                else torch.zeros_like(parameter)
            )
    return model, named


def torch_forward(model, table_VD, batch):
    """Compute (features, summed label-smoothed loss) as a torch user would."""

    def embed(tokens, positions):
        signal = torch.tensor(np.asarray(sinusoids(positions, table_VD.shape[1]), np.float64))
        return table_VD[torch.tensor(tokens).long()] * table_VD.shape[1] ** 0.5 + signal

    source_padding, padding = (
        torch.tensor(x == 0) for x in (batch.source_segments_BS, batch.segments_BT)
    )
    x_BTD = model(
        embed(batch.source_BS, batch.source_positions_BS),
        embed(batch.inputs_BT, batch.positions_BT),
        tgt_mask=torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1),
        src_key_padding_mask=source_padding,
        memory_key_padding_mask=source_padding,
        tgt_key_padding_mask=padding,
    )
    loss = torch.nn.functional.cross_entropy(
        (x_BTD @ table_VD.T)[~padding],
        torch.tensor(batch.targets_BT).long()[~padding],
        label_smoothing=SMOOTHING,
        reduction='sum',
    )
    return x_BTD, loss


@pytest.mark.parametrize('placement', ['post', 'pre'])
def test_forward_and_gradients_are_those_of_torch(placement, tiny, make_batch, random_rows):
    config = tiny(norm_placement=placement)
    module = build_model(config, V)
    batch = make_batch(random_rows([[(3, 5)], [(8, 8)], [(6, 1)]], V), LENGTH)
    shapes = jax.eval_shape(module.init, jax.random.PRNGKey(0), dummy_batch())['params']
    leaves, tree = jax.tree.flatten(nn.meta.unbox(shapes))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree,
        [
            jnp.asarray(rng.normal(scale=0.3, size=leaf.shape) + (leaf.ndim == 1), jnp.float32)
            for leaf in leaves
        ],
    )

    def objective(params):
        x_BTD = module.apply({'params': params}, batch, method='features')
        return loss_sums(module, params, batch, SMOOTHING)[0].loss, x_BTD

    (loss, x_BTD), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)

    model, named = torch_model(params, config)
    table_VD = torch.tensor(
        np.asarray(params['target_embedding']['table'], np.float64), requires_grad=True
    )
    torch_x_BTD, torch_loss = torch_forward(model, table_VD, batch)
    torch_loss.backward()
    real = batch.segments_BT > 0
    np.testing.assert_allclose(x_BTD[real], torch_x_BTD.detach().numpy()[real], atol=1e-5)
    assert float(loss) == pytest.approx(torch_loss.item(), rel=1e-5)
    expected = {name: named[name].grad.numpy() for name in torch_parameters(params, config)}
    found = torch_parameters(grads, config)
    expected['table'], found['table'] = table_VD.grad.numpy(), grads['target_embedding']['table']
    whole = np.sqrt(sum((g**2).sum() for g in expected.values()))
    for name, grad in expected.items():
        error = np.linalg.norm(found[name] - grad)
        assert error <= 1e-5 * max(np.linalg.norm(grad), 1e-3 * whole), name

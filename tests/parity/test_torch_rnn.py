"""Whole recurrent models, forward and backward, against `torch.nn.LSTM` and `torch.nn.GRU` with the
same weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.layers.recurrent import RNNS
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.spec import parse

torch = pytest.importorskip('torch', reason='torch is a test-only extra: pip install -e .[torch]')

V, D, LENGTH, SMOOTHING = 20, 6, 7, 0.1
LENGTHS = [[(3, 5)], [(7, 7)], [(6, 1)]]


def double(params):
    """Convert parameters to torch tensors in float64 that collect gradients."""
    return jax.tree.map(
        lambda a: torch.tensor(np.asarray(a, np.float64), requires_grad=True), params
    )


def stack(params, sides, layers, feed=None):
    """Make torch's module of `layers` layers, in one direction or two, with our parameters."""
    weights = {}
    for suffix, side in zip(('', '_reverse'), sides, strict=False):
        for index in range(layers):
            kernel, recurrent_kernel, bias = (
                params[f'{side}_{index}'][name]
                for name in ('input_kernel', 'recurrent_kernel', 'bias')
            )
            if feed is not None and index == 0:
                kernel = torch.cat([kernel, feed])
            gates = kernel.shape[1]
            second_bias = torch.zeros_like(bias)
            if gates == 3:
                # torch has two biases for each gate and adds them, but for the last gate of a
                # GRU, where the reset gate multiplies the second one: our fourth bias.
                second_bias = torch.cat([second_bias[:2], bias[3:]])
            arrays = (
                kernel.permute(1, 2, 0).flatten(0, 1),
                recurrent_kernel.permute(1, 2, 0).flatten(0, 1),
                bias[:gates].flatten(),
                second_bias[:gates].flatten(),
            )
            names = ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
            weights |= {
                f'{name}_l{index}{suffix}': array for name, array in zip(names, arrays, strict=True)
            }
    module = (torch.nn.LSTM if gates == 4 else torch.nn.GRU)(
        weights['weight_ih_l0'].shape[1],
        D,
        layers,
        bidirectional=len(sides) == 2,
        batch_first=True,
        dtype=torch.float64,
    )
    return lambda *arguments: torch.func.functional_call(module, weights, arguments)


def states(cell, initial_BD, layers):
    """Return the initial state of torch's decoder."""
    repeated = initial_BD[None].repeat(layers, 1, 1)
    return (repeated, repeated) if cell.states == 2 else repeated


def torch_features(params, config, cell, source_S, inputs_T):
    """Compute x_TD of one sentence without padding, as a torch user would."""
    table = params['target_embedding']['table']
    x_1SD, y_1TD = (table[torch.tensor(ids).long()][None] * D**0.5 for ids in (source_S, inputs_T))
    encode = stack(
        params, ('encoder', 'encoder_backward')[: 1 + cell.bidirectional], config.encoder_layers
    )
    memory_1SE, _ = encode(x_1SD)
    ends = [memory_1SE[:, -1, :D]] + [memory_1SE[:, 0, D:]] * cell.bidirectional
    initial_1D = torch.tanh(torch.cat(ends, -1) @ params['bridge_kernel'] + params['bridge_bias'])
    state = states(cell, initial_1D, config.decoder_layers)
    decode = stack(params, ('decoder',), config.decoder_layers, params.get('feed_kernel'))
    if cell.attention == 'none':
        return decode(y_1TD, state)[0][0]
    p = params['alignment']
    keys_1SD = memory_1SE @ p['key_kernel']

    def attend(h_1TD):
        if cell.attention == 'additive':
            queries_1TD = h_1TD @ p['query_kernel'] + p['query_bias']
            scores_1TS = torch.tanh(queries_1TD[:, :, None] + keys_1SD[:, None]) @ p['score']
        else:
            scores_1TS = h_1TD @ keys_1SD.mT
        return torch.tanh(
            torch.cat([scores_1TS.softmax(-1) @ memory_1SE, h_1TD], -1) @ p['out_kernel']
        )

    if not cell.input_feeding:
        return attend(decode(y_1TD, state)[0])[0]
    outputs = [initial_1D[:, None]]
    for t in range(y_1TD.shape[1]):
        h_11D, state = decode(torch.cat([y_1TD[:, t : t + 1], outputs[-1]], -1), state)
        outputs.append(attend(h_11D))
    return torch.cat(outputs[1:], 1)[0]


@pytest.mark.parametrize(
    ('rnn', 'layers'),
    [
        ('lstm', (2, 2)),
        ("gru(attention='multiplicative', input_feeding=True)", (2, 2)),
        ("lstm(attention='none', bidirectional=False)", (1, 2)),
        ("gru(attention='none')", (2, 1)),
    ],
)
def test_forward_and_gradients_are_those_of_torch(rnn, layers, tiny, make_batch, random_rows):
    config = tiny(
        kind='rnn_seq2seq', rnn=rnn, encoder_layers=layers[0], decoder_layers=layers[1], d_model=D
    )
    module, cell = build_model(config, V), parse(rnn, RNNS, 'model.rnn')
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)
    shapes = jax.eval_shape(module.init, jax.random.PRNGKey(0), dummy_batch())['params']
    leaves, tree = jax.tree.flatten(nn.meta.unbox(shapes))
    rng = np.random.default_rng(0)
    params = tree.unflatten(
        [jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), jnp.float32) for leaf in leaves]
    )

    def objective(params):
        x_BTD = module.apply({'params': params}, batch, method='features')
        return loss_sums(module, params, batch, SMOOTHING)[0].loss, x_BTD

    (loss, x_BTD), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)

    theirs = double(params)
    torch_loss = 0
    for row, [(source, target)] in enumerate(LENGTHS):
        x_TD = torch_features(
            theirs, config, cell, batch.source_BS[row, :source], batch.inputs_BT[row, :target]
        )
        np.testing.assert_allclose(x_BTD[row, :target], x_TD.detach().numpy(), atol=1e-5)
        torch_loss += torch.nn.functional.cross_entropy(
            x_TD @ theirs['target_embedding']['table'].T,
            torch.tensor(batch.targets_BT[row, :target]).long(),
            label_smoothing=SMOOTHING,
            reduction='sum',
        )
    torch_loss.backward()
    assert float(loss) == pytest.approx(torch_loss.item(), rel=1e-5)
    expected = jax.tree.map(lambda a: a.grad.numpy(), theirs)
    whole = np.sqrt(sum((grad**2).sum() for grad in jax.tree.leaves(expected)))
    for (path, grad), ours in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(grads), strict=True
    ):
        assert np.linalg.norm(ours - grad) <= 1e-4 * max(np.linalg.norm(grad), 1e-3 * whole), path

"""Language models, forward and backward, against those of HuggingFace's `transformers` with the
same random weights.

Each architecture has a function that maps their weights, by name, to our tree. Our loss is
differentiated through it, so that gradients are compared under their names too, and tied, fused or
scaled weights need no special case.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.losses.model_loss import loss_sums

torch = pytest.importorskip('torch', reason='torch is a test-only extra: pip install -e .[torch]')
transformers = pytest.importorskip(
    'transformers', reason='transformers is a test-only extra: pip install -e .[torch]'
)

V, D, F, N, K, LAYERS, LENGTH = 50, 32, 24, 4, 2, 2, 12
LENGTHS = [[(5, 12)], [(12, 9)], [(7, 1)]]  # lengths of source and target; the rest is padding
LABEL_SMOOTHING = 0.1


def linear(w, name, inner, outer):
    """Map a torch Linear, whose weight is [outputs, inputs], to our kernel and optional bias."""
    part = {'kernel': w[f'{name}.weight'].T.reshape(*inner, *outer)}
    return part | ({'bias': w[f'{name}.bias'].reshape(outer)} if f'{name}.bias' in w else {})


def norm(w, name):
    """Map the parameters of a norm."""
    part = {'scale': w[f'{name}.weight']}
    return part | ({'bias': w[f'{name}.bias']} if f'{name}.bias' in w else {})


def attention(query, key, value, out):
    """Map the parameters of an attention, given those of its projections."""
    return {'queries': {'query': query}, 'keys': {'key': key, 'value': value}, 'out': out}


def apart(fused, axis):
    """Split a fused projection into query, key and value."""
    return [{leaf: a.take(index, axis) for leaf, a in fused.items()} for index in range(3)]


def projections(w, prefix, names, kv_heads):
    """Map an attention that has a Linear each for query, key, value and output."""
    query, key, value, out = (prefix + name for name in names)
    return attention(
        linear(w, query, (D,), (N, -1)),
        *(linear(w, name, (D,), (kv_heads, -1)) for name in (key, value)),
        linear(w, out, (N, -1), (D,)),
    )


def feed_forward(w, **names):
    """Map the parameters of a feed-forward layer."""
    shapes = {'in': ((D,), (-1,)), 'gate': ((D,), (-1,)), 'out': ((-1,), (D,))}
    return {
        f'{ours}_{leaf}': a
        for ours, name in names.items()
        for leaf, a in linear(w, name, *shapes[ours]).items()
    }


def gpt2(w):
    # Their Conv1D is [inputs, outputs], the transpose of a Linear.
    w = {name: a.T if '.c_' in name else a for name, a in w.items()}

    def block(layer):
        fused = linear(w, f'{layer}.attn.c_attn', (D,), (3, N, D // N))
        return {
            'attention': attention(
                *apart(fused, -3), linear(w, f'{layer}.attn.c_proj', (N, D // N), (D,))
            ),
            'attention_connection': {'norm': norm(w, f'{layer}.ln_1')},
            'ffn': feed_forward(w, **{'in': f'{layer}.mlp.c_fc', 'out': f'{layer}.mlp.c_proj'}),
            'ffn_connection': {'norm': norm(w, f'{layer}.ln_2')},
        }

    return {
        'target_embedding': {'table': w['transformer.wte.weight']},
        'target_positions': {'positions': w['transformer.wpe.weight']},
        'decoder_norm': norm(w, 'transformer.ln_f'),
        **{f'decoder_{n}': block(f'transformer.h.{n}') for n in range(LAYERS)},
    }


def llama(w):
    def block(layer):
        return {
            'attention': projections(
                w, f'{layer}.self_attn.', ('q_proj', 'k_proj', 'v_proj', 'o_proj'), K
            ),
            'attention_connection': {'norm': norm(w, f'{layer}.input_layernorm')},
            'ffn': feed_forward(
                w,
                **{
                    'gate': f'{layer}.mlp.gate_proj',
                    'in': f'{layer}.mlp.up_proj',
                    'out': f'{layer}.mlp.down_proj',
                },
            ),
            'ffn_connection': {'norm': norm(w, f'{layer}.post_attention_layernorm')},
        }

    return {
        'target_embedding': {'table': w['model.embed_tokens.weight']},
        'decoder_norm': norm(w, 'model.norm'),
        **({'output': {'table': w['lm_head.weight']}} if 'lm_head.weight' in w else {}),
        **{f'decoder_{n}': block(f'model.layers.{n}') for n in range(LAYERS)},
    }


def gemma2(w):
    params = llama(w)
    for n in range(LAYERS):
        layer = f'model.layers.{n}'
        for site, before, after in (
            ('attention', 'input', 'post_attention'),
            ('ffn', 'pre_feedforward', 'post_feedforward'),
        ):
            params[f'decoder_{n}'][f'{site}_connection'] = {
                'norm': norm(w, f'{layer}.{before}_layernorm'),
                'inner_norm': norm(w, f'{layer}.{after}_layernorm'),
            }
    return params


def bloom(w):
    def block(layer):
        fused = linear(w, f'{layer}.self_attention.query_key_value', (D,), (N, 3, D // N))
        out = linear(w, f'{layer}.self_attention.dense', (N, D // N), (D,))
        return {
            'attention': attention(*apart(fused, -2), out),
            'attention_connection': {'norm': norm(w, f'{layer}.input_layernorm')},
            'ffn': feed_forward(
                w, **{'in': f'{layer}.mlp.dense_h_to_4h', 'out': f'{layer}.mlp.dense_4h_to_h'}
            ),
            'ffn_connection': {'norm': norm(w, f'{layer}.post_attention_layernorm')},
        }

    return {
        'target_embedding': {'table': w['transformer.word_embeddings.weight']},
        'target_norm': norm(w, 'transformer.word_embeddings_layernorm'),
        'decoder_norm': norm(w, 'transformer.ln_f'),
        **{f'decoder_{n}': block(f'transformer.h.{n}') for n in range(LAYERS)},
    }


def t5(w):
    """Map T5, which multiplies its logits by 1/√D, while we multiply embeddings by √D.

    Our tied table is therefore 1/√D times theirs.
    """

    def stack(side, names):
        params = {f'{side}_norm': norm(w, f'{side}.final_layer_norm')}
        for n in range(LAYERS):
            block, prefix = {}, f'{side}.block.{n}.layer'
            for index, (site, name) in enumerate(names.items()):
                block[site] = projections(w, f'{prefix}.{index}.{name}.', 'qkvo', N)
                block[f'{site}_connection'] = {'norm': norm(w, f'{prefix}.{index}.layer_norm')}
            last = f'{prefix}.{len(names)}'
            wide = (
                {'gate': 'wi_0', 'in': 'wi_1'}
                if f'{last}.DenseReluDense.wi_0.weight' in w
                else {'in': 'wi'}
            )
            block['ffn'] = feed_forward(
                w,
                **{
                    ours: f'{last}.DenseReluDense.{name}'
                    for ours, name in (wide | {'out': 'wo'}).items()
                },
            )
            params[f'{side}_{n}'] = block | {
                'ffn_connection': {'norm': norm(w, f'{last}.layer_norm')}
            }
        first = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
        return params | {f'{side}_relative': {'buckets': w[first]}}

    tables = {'target_embedding': {'table': w['shared.weight'] * D**-0.5}}
    if 'lm_head.weight' in w:
        tables = {
            'target_embedding': {'table': w['shared.weight']},
            'output': {'table': w['lm_head.weight']},
        }
    return (
        tables
        | stack('encoder', {'attention': 'SelfAttention'})
        | stack('decoder', {'attention': 'SelfAttention', 'cross': 'EncDecAttention'})
    )


# By name: the mapping, their class and configuration, our configuration.
LANGUAGE_MODEL = {'kind': 'decoder_only', 'norm_placement': 'pre', 'embedding_scale': 'none'}
HF_SIZES = {
    'hidden_size': D,
    'intermediate_size': F,
    'num_hidden_layers': LAYERS,
    'num_attention_heads': N,
    'num_key_value_heads': K,
}
T5_SIZES = {
    'd_model': D,
    'd_kv': 6,
    'd_ff': F,
    'num_layers': LAYERS,
    'num_heads': N,
    'relative_attention_num_buckets': 8,
    'relative_attention_max_distance': 10,
}
T5_MODEL = {
    'norm': 'rms',
    'norm_placement': 'pre',
    'head_dim': 6,
    'attention': "softmax(scale='none')",
    'position': 't5(buckets=8, max_distance=10)',
}
CASES = {
    'gpt2': (
        gpt2,
        'GPT2LMHeadModel',
        {'n_embd': D, 'n_inner': F, 'n_layer': LAYERS, 'n_head': N, 'n_positions': 16},
        LANGUAGE_MODEL
        | {
            'position': 'learned(max_len=16)',
            'norm': 'layer(eps=1e-5)',
            'ffn': 'gelu',
            'attention_bias': 'all',
        },
    ),
    'llama': (
        llama,
        'LlamaForCausalLM',
        HF_SIZES | {'rms_norm_eps': 1e-5},
        LANGUAGE_MODEL
        | {
            'position': 'rope',
            'norm': 'rms(eps=1e-5)',
            'ffn': 'swiglu(equal_parameters=False)',
            'num_kv_heads': K,
            'tie_embeddings': 'none',
        },
    ),
    'gemma2': (
        gemma2,
        'Gemma2ForCausalLM',
        HF_SIZES
        | {
            'head_dim': 12,
            'query_pre_attn_scalar': 16,
            'sliding_window': 4,
            'attn_logit_softcapping': 2.0,
            'final_logit_softcapping': 3.0,
        },
        LANGUAGE_MODEL
        | {
            'position': 'rope',
            'norm': 'rms(offset=True)',
            'norm_placement': 'sandwich',
            'attention': 'softmax(mask=window(4), softcap=2.0, scale=0.25), '
            'softmax(softcap=2.0, scale=0.25)',
            'logit_softcap': 3.0,
            'ffn': 'geglu(equal_parameters=False)',
            'head_dim': 12,
            'num_kv_heads': K,
            'embedding_scale': 'sqrt',
        },
    ),
    'bloom': (
        bloom,
        'BloomForCausalLM',
        {'hidden_size': D, 'n_layer': LAYERS, 'n_head': N},
        LANGUAGE_MODEL
        | {
            'position': 'alibi',
            'norm': 'layer(eps=1e-5)',
            'embedding_norm': True,
            'd_ff': 4 * D,
            'ffn': 'gelu',
            'attention_bias': 'all',
        },
    ),
    't5': (t5, 'T5ForConditionalGeneration', T5_SIZES, T5_MODEL | {'ffn': 'relu(bias=False)'}),
    't5 v1.1': (
        t5,
        'T5ForConditionalGeneration',
        T5_SIZES | {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
        T5_MODEL
        | {
            'ffn': 'geglu(equal_parameters=False)',
            'embedding_scale': 'none',
            'tie_embeddings': 'inputs',
        },
    ),
}


def random_model(name, changes):
    """Make their model with random weights, large enough that every part has an effect."""
    cls = getattr(transformers, name)
    model = cls(cls.config_class(vocab_size=V, attn_implementation='eager', **changes)).eval()
    # Some versions of T5 tie the embeddings even so, until a checkpoint has both tables.
    if changes.get('tie_word_embeddings') is False:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(V, D))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            value = rng.normal(scale=0.2, size=parameter.shape) + 0.5 * (parameter.ndim == 1)
            parameter.copy_(torch.tensor(value))
    return model, dict(model.named_parameters())


def their_logits(model, batch):
    """Compute their logits of the targets, given the tokens before them."""
    ids, mask = (torch.tensor(a.astype(np.int64)) for a in (batch.inputs_BT, batch.segments_BT > 0))
    if not model.config.is_encoder_decoder:
        return model(input_ids=ids, attention_mask=mask).logits
    source, seen = (
        torch.tensor(a.astype(np.int64)) for a in (batch.source_BS, batch.source_segments_BS > 0)
    )
    return model(
        input_ids=source, attention_mask=seen, decoder_input_ids=ids, decoder_attention_mask=mask
    ).logits


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_logits_and_gradients_are_those_of_transformers(case, tiny, make_batch, random_rows):
    mapping, name, theirs, ours = case
    model, named = random_model(name, theirs)
    weights = {key: jnp.asarray(value.detach().numpy()) for key, value in named.items()}
    module = build_model(tiny(**{'d_model': D, 'd_ff': F, 'num_heads': N} | ours), V)
    batch = make_batch(random_rows(LENGTHS, V), LENGTH)

    shapes = jax.eval_shape(
        module.init, jax.random.PRNGKey(0), dummy_batch(kind=module.architecture.kind)
    )['params']
    assert jax.tree.map(jnp.shape, mapping(weights)) == jax.tree.map(
        jnp.shape, nn.meta.unbox(shapes)
    )

    def objective(weights):
        params = mapping(weights)
        return loss_sums(module, params, batch, LABEL_SMOOTHING)[0].loss, module.apply(
            {'params': params}, batch
        )

    (loss, logits_BTV), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)

    real = batch.segments_BT > 0
    torch_logits_BTV = their_logits(model, batch)
    torch_loss = torch.nn.functional.cross_entropy(
        torch_logits_BTV[torch.tensor(real)],
        torch.tensor(batch.targets_BT[real]).long(),
        label_smoothing=LABEL_SMOOTHING,
        reduction='sum',
    )
    torch_loss.backward()
    np.testing.assert_allclose(
        logits_BTV[real], torch_logits_BTV.detach().numpy()[real], rtol=1e-5, atol=1e-5
    )
    assert float(loss) == pytest.approx(torch_loss.item(), rel=1e-5)
    expected = {key: value.grad.numpy() for key, value in named.items()}
    whole = np.sqrt(sum((grad**2).sum() for grad in expected.values()))
    for key, grad in expected.items():
        assert np.linalg.norm(grads[key] - grad) <= 1e-5 * max(
            np.linalg.norm(grad), 1e-3 * whole
        ), key

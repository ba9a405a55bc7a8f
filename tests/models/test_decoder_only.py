"""Language models and classifiers: causality, prompts read in one pass, pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.schema import ModelConfig

V, CLASSES, T = 20, 3, 10
SMALL = {'encoder_layers': 2, 'decoder_layers': 2, 'd_model': 16, 'd_ff': 32, 'num_heads': 4}


def built(kind, **changes):
    """Return (model, parameters); every element is random."""
    model = build_model(ModelConfig(kind=kind, **SMALL | changes), V, CLASSES)
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.PRNGKey(0), dummy_batch(kind=kind))
    )['params']
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return model, tree.unflatten(
        [
            jnp.asarray(rng.normal(scale=0.3, size=leaf.shape) + (leaf.ndim == 1), jnp.float32)
            for leaf in leaves
        ]
    )


def rows_of(*rows):
    """Return (ids, positions, segments) of rows, each a list of segments of token ids."""
    ids, positions, segments = np.zeros((3, len(rows), T), np.int32)
    for row, parts in enumerate(rows):
        start = 0
        for number, part in enumerate(parts, 1):
            stop = start + len(part)
            ids[row, start:stop], positions[row, start:stop] = part, range(len(part))
            segments[row, start:stop] = number
            start = stop
    return ids, positions, segments


def sentences(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, V, n).tolist() for n in lengths]


def language_batch(*rows):
    targets, positions, segments = rows_of(*rows)
    inputs = np.where(positions == 0, BOS, np.roll(targets, 1, axis=1)) * (segments > 0)
    return Batch(
        None, None, None, inputs, targets, positions, segments, (segments > 0).astype(np.float32)
    )


@pytest.fixture(scope='module')
def language():
    model, params = built(
        'decoder_only', position='rope', norm_placement='pre', tie_embeddings='decoder'
    )
    return model, params, jax.jit(lambda batch: model.apply({'params': params}, batch))


def test_a_language_model_has_no_encoder_and_no_cross_attention(language):
    _, params, _ = language
    assert set(params) == {'target_embedding', 'decoder_0', 'decoder_1', 'decoder_norm'}
    assert set(params['decoder_0']) == {
        'attention',
        'attention_connection',
        'ffn',
        'ffn_connection',
    }


def test_packed_documents_do_not_see_one_another(language):
    *_, logits = language
    one, other = sentences(4, 6)
    packed, alone = logits(language_batch([one, other])), logits(language_batch([one]))
    np.testing.assert_allclose(packed[0, :4], alone[0, :4], atol=2e-5)
    np.testing.assert_allclose(packed[0, 4:10], logits(language_batch([other]))[0, :6], atol=2e-5)


def test_no_logit_depends_on_what_follows(language):
    *_, logits = language
    [sentence] = sentences(T)
    changed = [*sentence[:5], *sentences(5, seed=1)[0]]
    before, after = logits(language_batch([sentence])), logits(language_batch([changed]))
    # The input at position 6 is the first token that differs.
    np.testing.assert_array_equal(before[0, :6], after[0, :6])
    assert np.abs(before - after)[0, 6:].max() > 1e-3


def test_decoding_behind_prompts_is_teacher_forcing(language):
    model, params, logits = language
    texts = sentences(T, T, T)
    expected = logits(language_batch(*([text] for text in texts)))
    lengths = (4, 0, 6)  # one row has no prompt
    prompt, positions, segments = rows_of(
        *([text[:n]] for text, n in zip(texts, lengths, strict=True))
    )
    prompt, *source = (array[:, :6] for array in (prompt, positions, segments))
    cache, memory = model.apply({'params': params}, prompt, Tokens(*source), T, method='start')
    step = jax.jit(
        lambda tokens_R, cache: model.apply(
            {'params': params}, tokens_R, cache, memory, method='step'
        )
    )
    found, cache = step(np.full(3, BOS), cache)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(found[row], expected[row, n], atol=2e-5)
    for t in range(3):
        found, cache = step(
            np.array([text[n + t] for text, n in zip(texts, lengths, strict=True)]), cache
        )
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(found[row], expected[row, n + t + 1], atol=2e-5)


def class_batch(*sources):
    ids, positions, segments = rows_of(*([source] for source in sources))
    ones = np.ones((len(sources), 1), np.int32)
    return Batch(ids, positions, segments, ones, ones, 0 * ones, ones, ones.astype(np.float32))


@pytest.mark.parametrize(
    'changes',
    [{}, {'pooling': 'first'}, {'towers': 2}, {'towers': 2, 'pooling': 'first'}],
    ids=['mean', 'first', 'towers', 'towers-first'],
)
def test_a_classifier_ignores_padding_and_keeps_towers_apart(changes):
    model, params = built('classifier', position='rope', **changes)
    logits = jax.jit(lambda batch: model.apply({'params': params}, batch))
    first, second = sentences(3, 4)
    batch = class_batch([*first, EOS, *second, EOS], [*second, EOS, *first, EOS])
    scores = logits(batch)
    assert scores.shape == (2, 1, CLASSES)
    junk = batch._replace(source_BS=np.where(batch.source_segments_BS == 0, 7, batch.source_BS))
    np.testing.assert_array_equal(logits(junk), scores)
    changed = class_batch([*first, EOS, *second[:-1], 4 + (second[-1] - 3) % (V - 4), EOS])
    assert np.abs(logits(changed) - scores[:1]).max() > 1e-4
    if 'towers' in changes:  # Each text is pooled independently of the other one.
        pooled = jax.jit(lambda batch: model.apply({'params': params}, batch, method=_pooled))
        both, alone = pooled(batch), pooled(class_batch([*second, EOS, *first, EOS]))
        np.testing.assert_allclose(both[0][0], alone[1][0], atol=2e-5)
        np.testing.assert_allclose(both[1][0], alone[0][0], atol=2e-5)


def _pooled(model, batch):
    taken = []

    def record(call, args, kwargs, context):
        if context.module.name == 'match' and context.method_name == '__call__':
            taken.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model.features(batch)
    D = taken[0].shape[-1] // 4
    return taken[0][..., :D], taken[0][..., D : 2 * D]

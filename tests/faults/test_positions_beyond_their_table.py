"""Tables that end before the text: refused, or the output ends with the table.

A lookup beyond the end of a table returns its last row without a word, so that a decoder-only model
with `learned(max_len=28)` once wrote 51 positions.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch

from transformer_jax.config import from_dict, to_dict
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.errors import ConfigError
from transformer_jax.profiling.bench_decode import Endless
from transformer_jax.schema import DecodeConfig, ExperimentConfig, ModelConfig

VOCAB, PROMPT, EXTRA = 23, 7, 6
PROMPTS_B = np.array([PROMPT, 4])
LEARNED = {'model.kind': 'decoder_only', 'model.position': 'learned(max_len={})'}
SYNTHESIZER = {
    'model.kind': 'decoder_only',
    'model.attention': 'synthesizer(max_len={})',
    'model.position': 'none',
}
COPY = {'data.task': 'copy', 'data.vocab_size': 54, 'data.batching': 'buckets(lengths=(50,))'}
SHORT = {'data.batching': 'buckets(lengths=(16,))', 'decode.max_extra_tokens': 10}

# what, keys with {} for the length of the table, the shortest table that will do
TABLES = [
    ('a text as the prompt', LEARNED | SHORT, 16 + 16 + 10),
    ('rows that are packed', LEARNED | SHORT | {'data.batching': 'packed(length=16)'}, 42),
    ('a synthesizer', SYNTHESIZER | SHORT, 16 + 16 + 10),
    ('prompts of known length', LEARNED | COPY | {'decode.max_extra_tokens': 9}, 21 + 21 + 9),
    ('training rows are longer', LEARNED | COPY | {'decode.max_extra_tokens': 0}, 50),
    ('a language model', LEARNED | SHORT | {'data.task': 'text_file'}, 16 + 10),
    ('an encoder', {'model.position': 'learned(max_len={})'} | SHORT, 16 + 10),
    ('encoder attention', {'model.encoder_attention': 'linformer(length={}, rank=2)'} | SHORT, 16),
    ('one token before the text', {**{
        'model.kind': 'classifier', 'model.pooling': 'first', 'data.task': 'parity',
        'data.vocab_size': 6, 'data.batching': 'buckets(lengths=(64,))',
        'model.position': 'learned(max_len={})',
    }}, 65),
]  # fmt: skip


def read(keys, length):
    values = to_dict(ExperimentConfig())
    for key, value in keys.items():
        section, name = key.split('.')
        values[section][name] = value.format(length) if isinstance(value, str) else value
    return from_dict(values)


@pytest.mark.parametrize(('what', 'keys', 'needed'), TABLES, ids=[row[0] for row in TABLES])
def test_a_table_reaches_to_the_end_of_the_answer(what, keys, needed):
    read(keys, needed)
    with pytest.raises(ConfigError, match=f'ends before the text.*; it must reach to {needed}$'):
        read(keys, needed - 1)


MODEL = ModelConfig(
    kind='decoder_only', decoder_layers=1, d_model=16, d_ff=32, num_heads=2, dropout=0.0
)
DECODERS = {
    'learned': dataclasses.replace(MODEL, position='learned(max_len={})'),
    'synthesizer': dataclasses.replace(MODEL, position='none', attention='synthesizer(max_len={})'),
    'random synthesizer': dataclasses.replace(
        MODEL, position='none', attention="synthesizer(form='random', max_len={})"
    ),
}


def output_lengths(name, method, reach):
    """Count the tokens after prompts of 7 and 4 tokens, by a model that never ends by itself."""
    keys = dataclasses.asdict(DECODERS[name])
    keys |= {key: value.format(reach) for key, value in keys.items() if isinstance(value, str)}
    model = build_model(ModelConfig(**keys), VOCAB)
    variables = model.init(jax.random.key(1), dummy_batch(1, 4, 'decoder_only'))
    assert model.architecture.max_decoded == reach
    decode = DecodeConfig(method=method, beam=2, max_extra_tokens=EXTRA)
    decoder = make_decoder(Endless(model), decode, VOCAB, model.architecture.max_decoded)
    segments_BS = (np.arange(PROMPT)[None] < PROMPTS_B[:, None]).astype(np.int32)
    tokens_BT, _ = decoder(
        nn.unbox(variables['params']),
        5 * segments_BS,
        np.arange(PROMPT, dtype=np.int32)[None] * segments_BS,
        segments_BS,
        jax.random.key(0),
        np.arange(2),
    )
    return (np.asarray(tokens_BT) > 0).sum(1)


@pytest.mark.parametrize('method', ['beam', 'greedy', 'sample'])
@pytest.mark.parametrize('name', DECODERS)
def test_an_output_ends_where_its_table_ends(name, method):
    np.testing.assert_array_equal(PROMPTS_B + output_lengths(name, method, 9), [9, 9])
    expected = PROMPTS_B + np.minimum(PROMPTS_B + EXTRA, 16 - PROMPTS_B)
    np.testing.assert_array_equal(PROMPTS_B + output_lengths(name, method, 16), expected)

"""What a later stage cannot do is refused before the first step, not after hours of training."""

import pytest

from transformer_jax.config import from_dict, to_dict
from transformer_jax.errors import ConfigError
from transformer_jax.schema import ExperimentConfig

COPY = {'data.task': 'copy', 'data.vocab_size': 54}
MQAR = {
    'model.kind': 'decoder_only',
    'data.task': 'mqar',
    'data.vocab_size': 8196,
    'data.batching': 'buckets(lengths=(64,))',
    'evaluate.every': 10,
}
PARITY = {
    'model.kind': 'classifier',
    'data.task': 'parity',
    'data.vocab_size': 6,
    'data.batching': 'buckets(lengths=(64,))',
    'evaluate.every_epochs': 1,
}
TEXT = {'model.kind': 'decoder_only', 'data.task': 'text_file', 'evaluate.every': 10}
NO_METRIC = 'has no such metric; it has loss, perplexity, accuracy'

LATER = [
    (TEXT | {'evaluate.best_metric': 'bleu'}, f"'bleu': data.task='text_file' {NO_METRIC}"),
    (TEXT | {'evaluate.best_metric': 'chrf'}, f"'chrf': data.task='text_file' {NO_METRIC}"),
    (TEXT | {'evaluate.best_metric': 'exact_match'}, NO_METRIC),
    (PARITY | {'evaluate.best_metric': 'bleu'}, f"'bleu': data.task='parity' {NO_METRIC}"),
    (PARITY | {'evaluate.best_metric': 'exact_match'}, NO_METRIC),
    (MQAR | {'evaluate.best_metric': 'bleu'}, f'{NO_METRIC}, exact_match'),
    ({'decode.beam': 10**9}, 'decode.beam=1000000000 is outside 1 ≤ value ≤ 1,000'),
    ({'decode.max_extra_tokens': 10**9}, 'decode.max_extra_tokens=1000000000 is outside 0 ≤ value'),
    ({'decode.length_penalty': 1e9}, 'decode.length_penalty=1000000000.0 is outside'),
    ({'decode.temperature': 1e-30}, 'decode.temperature=1e-30 is outside 0 or 1e-6 ≤ value'),
    ({'decode.top_k': 7999}, 'decode.top_k=7999 is more than the 7998 tokens'),
    (COPY | {'decode.top_k': 53}, 'decode.top_k=53 is more than the 52 tokens'),
    ({'evaluate.batch_tokens': 10**12}, 'evaluate.batch_tokens=1000000000000 is outside'),
    ({'evaluate.stride': 10**9}, 'evaluate.stride=1000000000 is outside'),
    ({'checkpoint.keep': 0}, 'checkpoint.keep=0 is outside 1 ≤ value'),
    ({'checkpoint.average': -1}, 'checkpoint.average=-1 is outside 0 ≤ value'),
]


def read(keys):
    values = to_dict(ExperimentConfig())
    for key, value in keys.items():
        section, name = key.split('.')
        values[section][name] = value
    return from_dict(values)


@pytest.mark.parametrize(('keys', 'said'), LATER, ids=[row[1][:50] for row in LATER])
def test_it_is_refused(keys, said):
    with pytest.raises(ConfigError) as caught:
        read(keys)
    assert said in str(caught.value)
    *_, key = keys
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize(
    'keys',
    [
        TEXT | {'evaluate.best_metric': 'perplexity'},
        TEXT | {'evaluate.best_metric': 'bleu', 'evaluate.every': 0},  # nothing is evaluated
        {'evaluate.every': 10, 'evaluate.best_metric': 'bleu'},
        MQAR | {'evaluate.best_metric': 'exact_match'},
        COPY | {'evaluate.every': 10, 'evaluate.best_metric': 'exact_match', 'decode.top_k': 52},
        {'decode.temperature': 0.0},
    ],
)
def test_what_can_be_evaluated_is_taken(keys):
    read(keys)

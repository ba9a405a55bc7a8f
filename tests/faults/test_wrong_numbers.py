"""Numbers are what their names say: which tokens count, and how large the text is."""

import math

import numpy as np
import pytest
from helpers.data import everything, load
from helpers.support import experiment

from transformer_jax.attention.masks import Causal
from transformer_jax.config import resolve
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.evaluation.metrics import TextSize, perplexities
from transformer_jax.evaluation.text_size import counted_text_size

LINES = ['one two', 'vier fünf sechs', 'a', 'the last one is the longest of all lines', 'zehn']
MASKS = [
    'full',
    'prefix(1)',
    'prefix(2)',
    'prefix(5)',
    'prefix(16)',
    'window(4) & prefix(6)',
    'window(3) | prefix(4)',
    'prefix(3) | prefix(7)',
]
BATCHING = ['packed(length=16)', 'buckets(lengths=(8, 16))', 'packed(length=48)']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A text of five lines, as training and as validation text."""
    path = tmp_path_factory.mktemp('text')
    (path / 'input.txt').write_text('\n'.join(LINES * 4))
    (path / 'held.txt').write_text('\n'.join(LINES))
    return path


def language_model(folder, documents='lines', tokenizer='characters', **changes):
    """An experiment of a language model on that text."""
    characters = 4 + len({*''.join(LINES)}) + (documents == 'whole')
    return experiment(
        model__kind='decoder_only',
        data__task=f"text_file(validation='held.txt', documents={documents})",
        data__source_dir=str(folder),
        data__cache_dir=str(folder),
        data__tokenizer=tokenizer,
        data__vocab_size=260 if tokenizer == 'bytes' else characters,
        model__position='rope',
        **changes,
    )


@pytest.mark.parametrize(
    ('documents', 'batching'),
    [
        *(('lines', batching) for batching in BATCHING),
        *(('whole', batching) for batching in BATCHING if 'packed' in batching),  # one length
    ],
)
@pytest.mark.parametrize('mask', MASKS)
def test_no_counted_target_can_be_seen_when_it_is_predicted(
    folder, tmp_path, mask, batching, documents
):
    config = language_model(
        folder,
        documents,
        model__attention=f'softmax(mask={mask})',
        data__batching=batching,
        evaluate__stride=7 if documents == 'whole' else 0,
    )
    components = resolve(config)
    data, _ = load(config, tmp_path)
    mask = components.architecture.attention_at('decoder', 0).kind.mask.within(Causal())
    batches = list(data.eval_batches('validation', 1, everything, config.evaluate.stride))
    batches += [data._train_batch(number, everything, 1) for number in range(2)]
    counted = 0
    for batch in batches:
        tokens = batch.target_tokens
        same_BTS = batch.segments_BT[:, :, None] == batch.segments_BT[:, None, :]
        allowed_BTS = np.asarray(mask.allowed(tokens, tokens)) & same_BTS
        # The input at t + 1 is the target at t.
        seen_BT = np.diagonal(allowed_BTS, offset=1, axis1=1, axis2=2)
        assert not (seen_BT & (batch.weights_BT[:, :-1] > 0)).any()
        counted += batch.weights_BT.sum()
    assert counted > 0


CHARACTERS = {  # documents, prefix, length of rows: [what is counted of each line, with its end]
    ('lines', 0, 48): [(line, True) for line in LINES],
    ('lines', 0, 16): [(line[:15], True) for line in LINES],
    ('lines', 0, 8): [(line[:7], True) for line in LINES],
    ('lines', 5, 48): [(line[4:], len(line) >= 4) for line in LINES],
    ('lines', 3, 16): [(line[2:15], len(line) >= 2) for line in LINES],
}


@pytest.mark.parametrize(('documents', 'prefix', 'length'), CHARACTERS)
@pytest.mark.parametrize('tokenizer', ['characters', 'bytes'])
def test_the_size_of_the_text_is_that_of_the_counted_tokens(
    folder, tmp_path, documents, prefix, length, tokenizer
):
    mask = f'softmax(mask=prefix({prefix}))' if prefix else 'softmax'
    batching = f'packed(length={length})'
    config = language_model(
        folder, documents, tokenizer, model__attention=mask, data__batching=batching
    )
    data, _ = load(config, tmp_path)
    expected = sum(
        len(text.encode()) + ends for text, ends in CHARACTERS[documents, prefix, length]
    )
    found = counted_text_size(data, 'validation', 0)
    tokens = sum(
        float(batch.weights_BT.sum()) for batch in data.eval_batches('validation', 1, everything)
    )
    if tokenizer == 'characters':
        assert found.bytes == expected
        assert tokens == sum(
            len(text) + ends for text, ends in CHARACTERS[documents, prefix, length]
        )
    else:  # A row may end within a character: one byte of it counts as three, the sign for it.
        assert abs(found.bytes - tokens) <= 2


@pytest.mark.parametrize('stride', [0, 1, 7, 16])
@pytest.mark.parametrize('prefix', [0, 6])
def test_the_size_of_windows_is_that_of_the_counted_tokens(folder, tmp_path, stride, prefix):
    mask = f'softmax(mask=prefix({prefix}))' if prefix else 'softmax'
    config = language_model(
        folder,
        'whole',
        'bytes',
        model__attention=mask,
        data__batching='packed(length=16)',
        evaluate__stride=stride,
    )
    data, _ = load(config, tmp_path)
    batches = data.eval_batches('validation', 1, everything, stride)
    tokens = sum(float(batch.weights_BT.sum()) for batch in batches)
    found = counted_text_size(data, 'validation', stride)
    whole = len('\n'.join([*LINES, '']).encode())
    if not prefix:
        assert tokens == whole
        assert found == TextSize(sum(len(line.split()) for line in LINES), whole)
    else:
        assert tokens < whole
        assert abs(found.bytes - tokens) <= 2 * len(list(data.evaluation('validation', stride)))


BLANK = [  # tokenizer, vocabulary, text of the targets: words and bytes, one of each for each end
    ('bpe', 30, ['der Hund 1', *[' ' * 10] * 19], (3 + 20, 10 + 20)),
    ('bpe', 30, ['der Hund 1', '', ' '], (3 + 3, 10 + 3)),
    ('bpe', 30, ['der Hund 1', '\t '], (3 + 2, 10 + 2 + 2)),
    ('bytes', 260, ['der Hund 1', ' ' * 10], (3 + 2, 20 + 2)),
]


@pytest.mark.parametrize(('tokenizer', 'vocab_size', 'lines', 'size'), BLANK)
def test_blank_lines_have_the_size_of_what_is_scored(tmp_path, tokenizer, vocab_size, lines, size):
    for split, text in (('train', ['der Hund 1', 'ein Hund 2'] * 20), ('val', lines)):
        for side in ('pp', 'qq'):
            (tmp_path / f'{split}.{side}').write_text(''.join(f'{line}\n' for line in text))
    config = experiment(
        data__task='parallel_text(test="")',
        data__source_dir=str(tmp_path),
        data__cache_dir=str(tmp_path),
        data__source='pp',
        data__target='qq',
        data__tokenizer=tokenizer,
        data__vocab_size=vocab_size,
    )
    data, _ = load(config, tmp_path)
    assert counted_text_size(data, 'validation', 0) == size


ALONE = [  # a text of contiguous bytes, the prefix that is seen: words and bytes that count
    ('abc', 0, (1, 4)),
    ('abc', 2, (0, 3)),  # the word belongs to the prefix
]


@pytest.mark.parametrize(('text', 'prefix', 'size'), ALONE)
@pytest.mark.parametrize('stride', [0, 2])
def test_contiguous_text_has_no_end_of_sentence(tmp_path, text, prefix, size, stride):
    (tmp_path / 'input.txt').write_text('abc abc ' * 20)
    (tmp_path / 'held.txt').write_text(text)
    mask = f'softmax(mask=prefix({prefix}))' if prefix else 'softmax'
    config = language_model(
        tmp_path, 'whole', 'bytes', model__attention=mask, data__batching='packed(length=16)'
    )
    data, _ = load(config, tmp_path)
    batches = data.eval_batches('validation', 1, everything, stride)
    found = counted_text_size(data, 'validation', stride)
    assert found == size
    assert sum(float(batch.weights_BT.sum()) for batch in batches) == found.bytes
    scores = perplexities(found.bytes * math.log(2), found.bytes, found)
    assert scores['bits_per_byte'] == pytest.approx(1)
    assert math.isfinite(scores['word_perplexity']) == bool(found.words)


@pytest.mark.parametrize('stride', [17, 32, 10**6])
def test_a_stride_that_would_leave_gaps_is_refused(folder, stride):
    with pytest.raises(ConfigError, match=rf'evaluate\.stride={stride} .* at most 16'):
        language_model(folder, 'whole', data__batching='packed(length=16)', evaluate__stride=stride)


def test_texts_within_the_prefix_are_dropped_and_told(folder, tmp_path):
    config = language_model(
        folder, model__attention='softmax(mask=prefix(8))', data__batching='packed(length=48)'
    )
    data, log = load(config, tmp_path)
    assert len(data.kept) == 4 * sum(len(line) + 1 > 7 for line in LINES)
    assert any('training examples that end within the prefix dropped: 8' in line for line in log)


def test_a_training_set_within_the_prefix_is_refused(folder, tmp_path):
    config = language_model(
        folder, model__attention='softmax(mask=prefix(45))', data__batching='packed(length=48)'
    )
    with pytest.raises(DataError, match='the others end within the prefix'):
        load(config, tmp_path)

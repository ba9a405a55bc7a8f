"""Messages about a document name the line where it begins, and what cannot be a text says why."""

import pytest
from helpers.data import load as load_everything
from helpers.support import experiment

from transformer_jax.data.files import read_pairs
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig

BLANKS = 'one\n\n \ntwo\nthree\n'
PARAGRAPHS = 'one\nmore\n\ntwo\n\n\n\n  \nthree\nmore\n\nfour'

# documents, split, text, the lines where documents begin; `share` is half
BEGINNINGS = [
    ('whole', 'test', BLANKS, [1]),
    ('whole', 'test', f'\n\n{BLANKS}', [3]),
    ('lines', 'test', BLANKS, [1, 4, 5]),
    ('lines', 'test', f'\n{BLANKS}', [2, 5, 6]),
    ('paragraphs', 'test', PARAGRAPHS, [1, 4, 9, 12]),
    ('paragraphs', 'test', f'\n\n\n{PARAGRAPHS}', [4, 7, 12, 15]),
    ('paragraphs', 'test', 'one\r\n\r\ntwo\r\n', [1, 3]),
    ('lines', 'train', 'a1\nb2\nc3\nd4\n', [1, 2]),
    ('lines', 'validation', 'a1\nb2\nc3\nd4\n', [3, 4]),
    ('lines', 'validation', 'a\nb2345678\nc\n', [2, 3]),  # it begins within line 2
    ('paragraphs', 'validation', 'a1\n\nb2\n\nc3\n\nd4\n', [5, 7]),
    ('whole', 'validation', 'a1\nb2\nc3\nd4\n', [3]),
]


def load(folder, content, split='train', **options):
    (folder / 'input.txt').write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextFile(test='input.txt', **options).load(DataConfig(source_dir=str(folder)), split)


@pytest.mark.parametrize(('documents', 'split', 'text', 'lines'), BEGINNINGS)
def test_a_document_is_named_by_its_first_line(tmp_path, documents, split, text, lines):
    texts = load(tmp_path, text, split, documents=documents, share=0.5)
    origins = [texts.origin(index, 'target') for index in range(len(texts))]
    assert origins == [f'{tmp_path}/input.txt:{line}' for line in lines]
    some = texts.head(1)
    assert (len(some), some.origin(0, 'target')) == (1, origins[0])
    numbered = text.replace('\r', '').split('\n')
    for target, line in zip(texts.target, lines, strict=True):
        first = target.lstrip().partition('\n')[0]
        assert numbered[line - 1].endswith(first)


NO_TEXT = [  # content, of which line 2 is said to be no text
    'one\ntwo\n'.encode('utf-16-le'),
    'one\ntwo\n'.encode('utf-16-be'),
    b'one\ntwo\0\n',
]


@pytest.mark.parametrize('content', NO_TEXT)
def test_a_file_with_the_character_0_is_refused(tmp_path, content):
    line = 2 if content.startswith(b'one') else 1
    said = rf':{line}: a binary file or UTF-16, it holds the character 0; convert it to UTF-8'
    with pytest.raises(DataError, match=r'input\.txt' + said):
        load(tmp_path, content)
    good, bad = tmp_path / 'a.en', tmp_path / 'a.de'
    good.write_bytes(b'one\ntwo\n')
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r'a\.de' + said):
        read_pairs(good, bad)
    with pytest.raises(DataError, match=r'a\.de' + said):
        read_pairs(bad, good)


@pytest.mark.parametrize(
    ('text', 'share', 'split'),
    [('one two', 0.01, 'validation'), ('one', 0.99, 'train'), ('one\n  \n  \n', 0.4, 'validation')],
)
def test_a_share_that_leaves_nothing_is_named(tmp_path, text, share, split):
    with pytest.raises(DataError, match=f'the {split} text is empty: validation has share={share}'):
        load(tmp_path, text, split, share=share)


@pytest.mark.parametrize('cached_from', [1, 100])
def test_training_examples_are_named_by_their_lines(tmp_path, monkeypatch, cached_from):
    monkeypatch.setattr('transformer_jax.data.tasks.text.CACHED_FROM', cached_from)
    (tmp_path / 'input.txt').write_text('one\n\n\ntwo\n\n' + 'long' * 20)
    config = experiment(
        model__kind='decoder_only',
        data__task="text_file(validation='input.txt', documents=lines)",
        data__source_dir=str(tmp_path),
        data__cache_dir=str(tmp_path),
        data__tokenizer='bytes',
        data__vocab_size=260,
        data__batching='buckets(lengths=(16,))',
        model__position='rope',
    )
    for _ in range(2):  # the second time from what is kept, if anything
        _, log = load_everything(config, tmp_path)
        for said in ('training examples longer than 16 tokens dropped', 'validation examples long'):
            [line] = [line for line in log if said in line]
            assert line.endswith(f'1 (first: {tmp_path}/input.txt:6)')

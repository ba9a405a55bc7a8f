"""A text that goes through a tokenizer comes back as it was; old vocabularies stay as they were."""

import json

import hypothesis
import numpy as np
import pytest
from etils import epath
from hypothesis import strategies

from transformer_jax.batch import UNK
from transformer_jax.data import encoding
from transformer_jax.data.tasks.multi30k import Multi30k
from transformer_jax.data.tasks.parallel_text import ParallelText
from transformer_jax.data.tokenizers import (
    BYTE_FALLBACK_FROM,
    BytePairs,
    Bytes,
    Characters,
    Symbols,
    load_tokenizer,
)
from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig

WORDS = [
    f'{chr(0x61 + i % 26)}{chr(0x61 + i // 26 % 26)}{chr(0x61 + i * 7 % 26)} wort'
    for i in range(1500)
]
SENTENCES = ['der alte Hund sieht zwei große Katzen', 'die junge Maus\tsieht\n nichts']
ALPHABET = ''.join(sorted({*''.join(SENTENCES)}))
RICH = BytePairs.train(WORDS, BYTE_FALLBACK_FROM)  # spells any character in bytes
SMALL = BytePairs.train(SENTENCES, 50)  # knows the characters of ALPHABET alone
EXACT = {'rich': RICH, 'bytes': Bytes.train([], 260)}
# U+2581 is sentencepiece's space, U+2585 its reserved character, U+2047 its unknown one.
NASTY = '\u2581\u2585\u2047\ufdd0\ufdd1 \t\n\r\0\x85\xa0\u2028\u3000\ufeff\ufffd<s>/0xE2pad'
UNICODE = strategies.characters(exclude_categories=['Cs'])  # half characters are no text
any_text = strategies.text(strategies.one_of(UNICODE, strategies.sampled_from(NASTY)))


@pytest.mark.parametrize('name', EXACT)
@hypothesis.given(texts=strategies.lists(any_text, max_size=4))
def test_any_text_comes_back(name, texts):
    tokenizer = EXACT[name]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


@pytest.mark.parametrize('tokenizer', [SMALL, Characters.train([ALPHABET], 4 + len(ALPHABET))])
@hypothesis.given(texts=strategies.lists(strategies.text(ALPHABET), max_size=4))
def test_text_of_known_characters_comes_back(tokenizer, texts):
    ids = tokenizer.encode(texts)
    assert not {UNK} & {token for row in ids for token in row}
    assert tokenizer.decode(ids) == texts


@pytest.mark.parametrize(
    'text',
    [
        '  a  b ',
        '\u2581',
        'a\u2581b \u2581\u2581',
        '\ufdd0\u2581\ufdd0',
        ''.join(map(chr, range(0xFDD0, 0xFDF0))) + '\u2581',
        ' ',
        '    def f():\n        return 1\n',
        '\u2585',
        '<s> </s> <pad> <unk> <0x41>',
        'e\u0301 ﬁ ½ ①',
        '',
    ],
)
def test_what_used_to_be_lost(text):
    assert RICH.decode(RICH.encode([text])) == [text]
    assert not RICH.unknown(text)


def test_clean_text_has_the_ids_that_it_had():
    """The new reading of spaces changes neither models nor results of text without stray spaces."""
    for texts, tokenizer in ((WORDS, RICH), (SENTENCES[:1], SMALL)):
        old = BytePairs(tokenizer._model, keeps_spaces=False)
        assert tokenizer.encode(texts) == old.encode(texts)
        assert BytePairs.train(texts, 40, keep_spaces=False)._model == (
            BytePairs.train(texts, 40)._model
        )


def test_a_vocabulary_keeps_the_reading_that_it_was_stored_with(tmp_path):
    text, folders = '  a  b\u2581', [epath.Path(tmp_path / name) for name in ('old', 'new')]
    tokenizers = [BytePairs(RICH._model, keeps_spaces=False), RICH]
    for folder, tokenizer, kept in zip(folders, tokenizers, (False, True), strict=True):
        tokenizer.save(folder)
        record = json.loads((folder / 'tokenizer.json').read_text())
        assert ('spaces' in record) is kept  # an old file says nothing
        again = load_tokenizer(folder)
        assert again.encode([text]) == tokenizer.encode([text])
        assert again.sha256 == tokenizer.sha256 == record['sha256']
    assert tokenizers[0].decode(tokenizers[0].encode([text])) == ['a b']
    # Encodings that are kept on disk, and checkpoints, tell the two apart.
    assert tokenizers[0].sha256 != tokenizers[1].sha256
    record = json.loads((folders[1] / 'tokenizer.json').read_text())
    del record['spaces']
    (folders[1] / 'tokenizer.json').write_text(json.dumps(record))
    with pytest.raises(DataError, match='was changed or damaged'):
        load_tokenizer(folders[1])


def test_published_tables_keep_their_reading_of_spaces(tmp_path):
    for task, kept in ((ParallelText(), True), (Multi30k(), False)):
        for name in ('train.en', 'train.de'):
            (tmp_path / name).write_text('ein  Hund\n')
        task_of_files = task if kept else _FilesAsMulti30k()
        data = DataConfig(source='en', target='de', source_dir=str(tmp_path), vocab_size=18)
        tokenizer, _ = task_of_files.make_tokenizer(data, epath.Path(tmp_path / 'none'), True)
        assert tokenizer.keeps_spaces is kept


class _FilesAsMulti30k(ParallelText):
    keeps_spaces = Multi30k.keeps_spaces


def test_a_line_of_spaces_is_an_empty_line():
    assert encoding.ragged(RICH, ['  ', 'a', '']).lengths.tolist() == [1, 2, 1]


# --- A corpus in one line -------------------------------------------------------------------------


def one_line(separator: str, reserved: str = '') -> str:
    rng = np.random.default_rng(0)
    words = [''.join(rng.choice(list('abcdefgh'), 1 + i % 7)) for i in range(1000)]
    return separator.join(words * 320) + reserved  # over 1 MiB


@pytest.mark.parametrize(
    'text',
    [one_line(' '), one_line(' ', '\u2585'), one_line('ä'), one_line('\n')],
    ids=['spaces', 'reserved', 'unspaced', 'lines'],
)
def test_a_corpus_in_one_line(text):
    """Its vocabulary is that of the same words in several lines."""
    assert len(text.encode()) > 1 << 20
    tokenizer = BytePairs.train([text], 40)
    assert set(text) - {' ', '\u2585'} <= set(tokenizer.pieces(range(40)))
    if ' ' in text:
        words = text.rstrip('\u2585').split(' ')
        assert tokenizer._model == BytePairs.train(words, 40)._model
    assert tokenizer.decode(tokenizer.encode([text[:100]])) == [text[:100]]


@pytest.mark.parametrize('line', ['\u2585 a b', 'a b \u2585\u2585', '\u2585'])
def test_a_reserved_character_loses_no_other(line):
    tokenizer = BytePairs.train([f'{line} Hund', 'Katze'], 20)
    assert 'H' in tokenizer.pieces(range(20))


# --- Lists, strings and unknown symbols -----------------------------------------------------------


@pytest.mark.parametrize(
    'tokenizer', [RICH, SMALL, *EXACT.values(), Characters.of('ab'), Symbols.of(['a', 'b'])]
)
@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        ('seven', r"texts='seven' is one string: give a list of texts"),
        (b'seven', 'is one string: give a list of texts'),
        ([b'seven'], r"texts\[0\]=b'seven' is a bytes, no text"),
        (['a', None], r'texts\[1\]=None is a NoneType, no text'),
        (['a', ['b']], r"texts\[1\]=\['b'\] is a list, no text"),
        ('x' * 200, r"texts='x{56}… is one string"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(tokenizer, texts, message):
    with pytest.raises(DataError, match=message):
        tokenizer.encode(texts)
    with pytest.raises(DataError, match=message):
        type(tokenizer).train(texts, 30)


@pytest.mark.parametrize('tokenizer', [RICH, *EXACT.values(), Symbols.of(['a', 'b'])])
@pytest.mark.parametrize('ids', ['12', [4, 5], ['12'], np.array([4, 5])])
def test_what_is_no_list_of_rows_is_refused(tokenizer, ids):
    with pytest.raises(DataError, match='give a list of rows'):
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    ('tokenizer', 'text', 'unknown'),
    [
        (Symbols.of(['[MAX', '1', ']']), '[MAX hello 1 hello x ]', ['hello', 'x']),
        (Symbols.of(['[MAX', '1', ']']), '<pad> 1 <unk>', ['<pad>', '<unk>']),
        (Symbols.of(['[MAX', '1', ']']), '[MAX 1 ]', []),
        (Characters.of('ab'), 'abcc ', ['c', ' ']),
        (SMALL, 'der Q q Q\u2581', ['Q', 'q', '\u2581']),
        (SMALL, 'der alte', []),
        (RICH, 'Q\u2581', []),
        (EXACT['bytes'], 'Q😀', []),
    ],
)
def test_unknown_symbols_are_named(tokenizer, text, unknown):
    assert tokenizer.unknown(text) == unknown
    if tokenizer.is_fixed and unknown:
        with pytest.raises(DataError, match=rf"texts\[1\]: '{unknown[0]}' is no symbol"):
            tokenizer.encode(['1', text])
    else:
        assert (UNK in tokenizer.encode([text])[0]) is bool(unknown)


@pytest.mark.parametrize('tokenizer', [RICH, *EXACT.values()])
@pytest.mark.parametrize('text', ['a\udcff', '\ud800', 'a\udfffb'])
def test_half_characters_are_refused(tokenizer, text):
    with pytest.raises(DataError, match=r'texts\[1\]: invalid UTF-8'):
        tokenizer.encode(['a', text])

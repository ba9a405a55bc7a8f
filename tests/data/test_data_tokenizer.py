"""The tokenizer: reproducible, verified, reversible, and clear about sizes that do not fit."""

import pytest

from transformer_jax.batch import BOS, EOS, PAD, UNK
from transformer_jax.data.tokenizers import BYTE_FALLBACK_FROM, BytePairs, load_tokenizer
from transformer_jax.errors import DataError

TEXTS = [
    f'der {a}e Hund sieht {b} große Katzen'
    for a in ('alt', 'jung', 'müd')
    for b in ('zwei', 'drei', 'fünf')
]
RICH = [
    f'{chr(0x61 + i % 26)}{chr(0x61 + i // 26 % 26)}{chr(0x61 + i * 7 % 26)} wort'
    for i in range(1500)
]


def test_the_same_text_gives_the_same_bytes_and_special_ids(tmp_path):
    one, two = (BytePairs.train(TEXTS, 60) for _ in range(2))
    one.save(tmp_path / 'one')
    two.save(tmp_path / 'two')
    assert (tmp_path / 'one/tokenizer.model').read_bytes() == (
        tmp_path / 'two/tokenizer.model'
    ).read_bytes()
    assert one.sha256 == two.sha256
    assert one.vocab_size == 60
    assert BytePairs.train(TEXTS, 61).sha256 != one.sha256
    assert one.pieces([PAD, BOS, EOS, UNK]) == ['<pad>', '<s>', '</s>', '<unk>']


def test_text_survives_a_round_trip():
    tokenizer = BytePairs.train(TEXTS, 60)
    ids = tokenizer.encode([*TEXTS, ''])
    assert tokenizer.decode(ids) == [*TEXTS, '']
    assert ids[-1] == []
    assert not {PAD, BOS, EOS, UNK} & {token for row in ids for token in row}
    assert tokenizer.decode([[BOS, *ids[0], EOS, PAD, PAD]]) == TEXTS[:1]


def test_bytes_spell_unseen_characters_where_the_vocabulary_has_room():
    unseen = ['wort 😀 ½ ﬁ…']  # Unicode normalization would change the ligature and the dots
    rich = BytePairs.train(RICH, BYTE_FALLBACK_FROM)
    assert rich.decode(rich.encode(unseen)) == unseen
    small = BytePairs.train(TEXTS, 60)
    assert UNK in small.encode(unseen)[0]


def test_load_gives_back_what_was_saved_and_refuses_anything_else(tmp_path):
    tokenizer = BytePairs.train(TEXTS, 60)
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json', 'tokenizer.model']
    assert load_tokenizer(tmp_path).encode(TEXTS) == tokenizer.encode(TEXTS)
    raw = bytearray((tmp_path / 'tokenizer.model').read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / 'tokenizer.model').write_bytes(raw)
    with pytest.raises(
        DataError, match=rf'tokenizer.model has SHA-256 .* records {tokenizer.sha256[:12]}'
    ):
        load_tokenizer(tmp_path)
    (tmp_path / 'tokenizer.model').unlink()
    with pytest.raises(DataError, match='tokenizer is incomplete'):
        load_tokenizer(tmp_path)


def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path):
    one, other = BytePairs.train(TEXTS, 60), BytePairs.train(TEXTS, 61)
    one.require(one.sha256, tmp_path)
    with pytest.raises(
        DataError, match=rf'holds the tokenizer {one.sha256[:12]}…, .* with {other.sha256[:12]}…'
    ):
        one.require(other.sha256, tmp_path)


@pytest.mark.parametrize('asked', [500, 5000])  # without and with byte fallback
def test_a_vocabulary_larger_than_the_text_allows_names_the_largest_that_works(asked):
    with pytest.raises(DataError) as error:
        BytePairs.train(TEXTS, asked)
    assert f'data.vocab_size={asked} ' in str(error.value)
    assert '\n' not in str(error.value)
    largest = int(str(error.value).split()[-1])
    assert BytePairs.train(TEXTS, largest).vocab_size == largest
    with pytest.raises(DataError, match='the largest that works'):
        BytePairs.train(TEXTS, largest + 1)


def test_a_vocabulary_smaller_than_the_alphabet_names_the_smallest_that_works():
    with pytest.raises(DataError, match=r'data\.vocab_size=10 is too small') as error:
        BytePairs.train(TEXTS, 10)
    assert BytePairs.train(TEXTS, int(str(error.value).split()[-1]))

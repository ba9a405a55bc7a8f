"""Text without sources: files, tokenizers, windows; and pairs as a language model reads them."""

import dataclasses
import gzip

import numpy as np
import pytest
from etils import epath

from transformer_jax.batch import BOS, EOS, UNK
from transformer_jax.config import resolve
from transformer_jax.data import load_data
from transformer_jax.data.encoding import windows
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.data.tokenizers import Bytes, Characters, Symbols, load_tokenizer
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import (
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)

TEXT = 'To be, or not to be.\nThat is the question.\n\nWhether ’tis nobler\n' * 5


def everything(rows):
    return 0, rows


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'input.txt').write_text(TEXT)
    return tmp_path


def experiment(folder, kind='decoder_only', batching='buckets(lengths=(16,))', **data):
    given = {
        'task': 'text_file',
        'tokenizer': 'characters',
        'vocab_size': 4 + len(set(TEXT)),
        'source_dir': str(folder),
        'cache_dir': str(folder / 'cache'),
        'batching': batching,
        **data,
    }
    return ExperimentConfig(
        model=ModelConfig(kind=kind),
        data=DataConfig(**given),
        train=TrainConfig(batch_tokens=64),
        evaluate=EvaluateConfig(batch_tokens=64),
    )


def load(config, folder, splits=('train', 'validation')):
    return load_data(
        resolve(config).pipeline, epath.Path(folder) / 'tokenizer', lambda line: None, splits
    )


def test_the_end_of_a_text_is_its_validation_split(folder):
    data = DataConfig(source_dir=str(folder))
    parts = [TextFile(share=0.2).load(data, split).target[0] for split in ('train', 'validation')]
    assert ''.join(parts) == TEXT
    assert len(parts[1]) == pytest.approx(0.2 * len(TEXT), abs=1)


@pytest.mark.parametrize(
    ('documents', 'count', 'first'),
    [
        ('whole', 1, TEXT),
        ('lines', 15, 'To be, or not to be.'),
        ('paragraphs', 6, 'To be, or not to be.\nThat is the question.'),
    ],
)
def test_documents_are_what_stands_alone(folder, documents, count, first):
    task = TextFile(train='input.txt', validation='input.txt', documents=documents)
    texts = task.load(DataConfig(source_dir=str(folder)), 'train')
    assert (texts.source, len(texts), texts.target[0]) == (None, count, first)


def test_gzipped_text_is_the_same(folder):
    (folder / 'zipped.txt.gz').write_bytes(gzip.compress(TEXT.encode()))
    data = DataConfig(source_dir=str(folder))
    assert (
        TextFile(train='zipped.txt').load(data, 'train').target
        == TextFile().load(data, 'train').target
    )


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'empty'),
        (b'\n \n', 'empty'),
        (b'abc\0def' * 9, 'binary file'),
        (b'a\nb\xff\n', r'input\.txt:2: invalid UTF-8'),
    ],
)
def test_a_file_that_is_no_text_is_refused(folder, content, message):
    (folder / 'input.txt').write_bytes(content)
    with pytest.raises(DataError, match=message):
        TextFile().load(DataConfig(source_dir=str(folder)), 'train')


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ("text_file(documents='pages')", 'whole, lines, paragraphs'),
        ('text_file(share=1)', 'share=1.0'),
    ],
)
def test_impossible_options_are_refused(folder, spec, message):
    with pytest.raises(ConfigError, match=message):
        load(experiment(folder, task=spec), folder)


# --- Tokenizers -----------------------------------------------------------------------------------


def test_characters_are_those_of_the_text(tmp_path):
    tokenizer = Characters.train([TEXT], 4 + len(set(TEXT)))
    [ids] = tokenizer.encode([TEXT])
    assert len(ids) == len(TEXT)
    assert tokenizer.decode([ids]) == [TEXT]
    assert tokenizer.encode(['Tö']) == [[ids[0], UNK]]
    with pytest.raises(DataError, match=f'set data.vocab_size={tokenizer.vocab_size},'):
        Characters.train([TEXT], 100)
    tokenizer.save(epath.Path(tmp_path))
    again = load_tokenizer(epath.Path(tmp_path))
    assert (type(again), again.sha256, again.encode([TEXT])) == (
        Characters,
        tokenizer.sha256,
        [ids],
    )


def test_bytes_spell_everything():
    tokenizer = Bytes.train([TEXT], 260)
    [ids] = tokenizer.encode(['’tis ü'])
    assert ids == [byte + 4 for byte in '’tis ü'.encode()]
    assert tokenizer.decode([[BOS, *ids, EOS]]) == ['’tis ü']
    assert tokenizer.decode([ids[:1]]) == ['�']
    with pytest.raises(DataError, match=r'data\.vocab_size=260'):
        Bytes.train([TEXT], 256)


def test_symbols_are_written_with_spaces():
    tokenizer = Symbols.of(['[MAX', '1', ']'])
    assert tokenizer.encode(['[MAX 1 ]', '']) == [[4, 5, 6], []]
    assert tokenizer.decode([[BOS, 4, 5, 6, EOS]]) == ['[MAX 1 ]']
    assert tokenizer.pieces([EOS, 4]) == ['</s>', '[MAX']


# --- Windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize('stride', [0, 1, 3, 7])
@pytest.mark.parametrize('size', [5, 7, 8, 20, 21])
def test_windows_count_every_token_once(size, stride):
    tokenizer, text = Bytes(b''), ''.join(chr(65 + n) for n in range(size))
    encoded = windows(tokenizer, text, 7, stride)
    ids, counted = np.array(tokenizer.encode([text])[0]), []
    for index in range(len(encoded.target)):
        taken = encoded.take(np.array([index]))
        window = taken.target[0]
        at = int(window[0]) - ids[0]
        np.testing.assert_array_equal(window, ids[at : at + len(window)])
        assert taken.starts[0] == (ids[at - 1] if at else BOS)
        counted += window[taken.weights > 0].tolist()
        if 0 < stride < 7 and index:
            assert taken.weights[: len(window) - stride].sum() == 0
    assert counted == ids.tolist()


def test_a_language_model_reads_text_without_a_source(folder):
    data = load(experiment(folder), folder)
    batch = next(data.train_iterator(everything, 1))
    assert batch.source_BS is None
    assert batch.targets_BT.shape == (4, 16)
    inner = (batch.segments_BT > 0) & (batch.positions_BT > 0)
    np.testing.assert_array_equal(batch.inputs_BT[inner], np.roll(batch.targets_BT, 1, 1)[inner])
    counted = sum(
        batch.weights_BT.sum() for batch in data.eval_batches('validation', 1, everything)
    )
    assert counted == len(data.text('validation').target[0])
    assert data.plan.fill > 0.85


def test_packed_documents_share_rows(folder):
    data = load(
        experiment(
            folder,
            task="text_file(documents='lines')",
            batching='packed(length=64)',
            vocab_size=3 + len(set(TEXT)),
        ),
        folder,
    )
    batch = next(data.train_iterator(everything, 1))
    assert batch.segments_BT.max() > 1
    assert set(
        batch.targets_BT[np.roll(batch.positions_BT, -1) * (batch.segments_BT > 0) == 0].tolist()
    ) >= {EOS}


def test_a_pair_is_one_sequence_to_a_language_model(tmp_path):
    for language, text in (('en', 'a b\n'), ('de', 'x\n')):
        for split in ('train', 'val'):
            (tmp_path / f'{split}.{language}').write_text(text)
    config = experiment(tmp_path, task="parallel_text(test='')", vocab_size=8)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, source='en', target='de')
    )
    data = load(config, tmp_path)
    batch = next(data.train_iterator(everything, 1))
    [sentence] = data.tokenizer.encode(['a b'])
    [answer] = data.tokenizer.encode(['x'])
    joint = [*sentence, EOS, *answer, EOS]
    assert batch.targets_BT[0, : len(joint)].tolist() == joint
    assert batch.inputs_BT[0, : len(joint)].tolist() == [BOS, *joint[:-1]]
    assert batch.weights_BT[0, : len(joint)].tolist() == [0] * (len(sentence) + 1) + [1] * (
        len(answer) + 1
    )


def test_unknown_characters_of_the_validation_text_are_counted(folder):
    (folder / 'val.txt').write_text('To be, ž or ß not ž\n')
    config = experiment(folder, task="text_file(validation='val.txt')")
    lines = []
    load_data(
        resolve(config).pipeline,
        epath.Path(folder) / 'tokenizer',
        lines.append,
        ('train', 'validation'),
    )
    assert any('validation: 3 tokens that the vocabulary does not know' in line for line in lines)


def test_a_text_shorter_than_one_row_is_refused(folder):
    with pytest.raises(DataError, match=r'than one row of data\.batching, 512'):
        load(experiment(folder, batching='buckets(lengths=(512,))'), folder)

"""Batches of texts to translate: each text once, few shapes, what is too long is reported."""

from helpers.data import load, numbers

from transformer_jax.batch import EOS
from transformer_jax.data import source_batches


def test_source_batches_hold_every_text_once_with_few_shapes(tmp_path):
    data, _ = load(numbers(tmp_path), tmp_path)
    texts = [*data.text('validation').source, '', 'one ' * 40, *data.text('test').source]
    seen, shapes, lines = [], set(), []
    for indices, source_BS, positions_BS, segments_BS in source_batches(
        data.tokenizer, texts, (8, 16, 32), 256, lines.append
    ):
        shapes.add(source_BS.shape)
        for row, index in enumerate(indices):
            length = int(segments_BS[row].sum())
            assert source_BS[row, length - 1] == EOS
            assert positions_BS[row].tolist() == [
                *range(length),
                *[0] * (source_BS.shape[1] - length),
            ]
            if index != 21:
                assert data.tokenizer.decode([source_BS[row]]) == [texts[index]]
        assert not source_BS[len(indices) :].any()
        assert not segments_BS[len(indices) :].any()
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(texts)))
    assert shapes <= {(32, 8), (16, 16), (8, 32)}
    assert lines == ['input lines longer than 32 tokens cut: 1 (first: line 22)']


def test_a_handful_of_texts_is_not_padded_to_a_whole_batch(tmp_path):
    data, _ = load(numbers(tmp_path), tmp_path)
    shapes = [
        source_BS.shape[0]
        for _, source_BS, _, _ in source_batches(
            data.tokenizer, ['one', 'two', 'three'], (8, 16), 4096, print
        )
    ]
    assert shapes == [4]
    assert list(source_batches(data.tokenizer, [], (8, 16), 4096, print)) == []

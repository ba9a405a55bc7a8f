"""From configuration to batches: exact resume, dropped and cut examples, and refusals."""

import dataclasses
import threading

import numpy as np
import pytest
from helpers.data import everything, load, numbers

from transformer_jax.batch import EOS
from transformer_jax.data import batching, encoding, pipeline
from transformer_jax.data.tasks import text as text_tasks
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import DataConfig, ExperimentConfig, TrainConfig


def files(
    directory, train: tuple[str, str], validation: tuple[str, str] = ('a b\n', 'b a\n'), **data
):
    for name, texts in (('train', train), ('val', validation)):
        for language, text in zip(('en', 'de'), texts, strict=True):
            (directory / f'{name}.{language}').write_text(text)
    given = {
        'task': "parallel_text(test='')",
        'vocab_size': 9,
        'source_dir': str(directory),
        'cache_dir': str(directory / 'cache'),
        'batching': 'buckets(lengths=(4, 8))',
        **data,
    }
    return ExperimentConfig(data=DataConfig(**given), train=TrainConfig(batch_tokens=64))


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def assert_same(one: list, two: list) -> None:
    for batch, other in zip(one, two, strict=True):
        for array, wanted in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize('spec', ['buckets(lengths=(8, 16, 32))', 'packed(length=64)'])
@pytest.mark.parametrize('prefetch', [0, 3])
def test_resume_is_exact_within_an_epoch_and_across_its_end(tmp_path, spec, prefetch):
    config = numbers(tmp_path, batching=spec, prefetch=prefetch)
    data, _ = load(config, tmp_path)
    count = 2 * data.steps_per_epoch + 3
    iterator, states, whole = data.train_iterator(everything, 8), [], []
    for _ in range(count):
        states.append(iterator.get_state())
        whole.append(next(iterator))
    again, _ = load(config, tmp_path)
    for start in (0, 1, data.steps_per_epoch - 1, data.steps_per_epoch, data.steps_per_epoch + 2):
        resumed = again.train_iterator(everything, 8)
        resumed.set_state(states[start])
        assert_same(take(resumed, count - start), whole[start:])
    iterator.set_state(states[2])  # also on an iterator that has prefetched batches
    assert_same(take(iterator, 2), whole[2:4])


def test_batches_are_prepared_ahead_by_a_thread_only_where_asked(tmp_path, monkeypatch):
    threads = set()

    def spy(*args):
        threads.add(threading.current_thread() is threading.main_thread())
        return batching.materialize(*args)

    monkeypatch.setattr(pipeline, 'materialize', spy)
    for prefetch, in_main in ((0, True), (2, False)):
        threads.clear()
        take(
            load(numbers(tmp_path, prefetch=prefetch), tmp_path)[0].train_iterator(everything, 1), 3
        )
        assert threads == {in_main}


def test_the_seed_of_training_changes_the_order_and_not_the_text(tmp_path):
    one, two = (load(numbers(tmp_path, seed), tmp_path)[0] for seed in (0, 1))
    np.testing.assert_array_equal(one.train.source.values, two.train.source.values)
    assert one.text('validation') == two.text('validation')
    assert any(
        not np.array_equal(a.source_BS, b.source_BS)
        for a, b in zip(
            *(take(data.train_iterator(everything, 1), 3) for data in (one, two)), strict=True
        )
    )


def test_the_tokenizer_is_trained_once_and_then_read(tmp_path):
    config = numbers(tmp_path)
    data, _ = load(config, tmp_path)
    stamp = (tmp_path / 'tokenizer' / 'tokenizer.model').stat().st_mtime_ns
    again, _ = load(config, tmp_path, splits=('test',))
    assert again.tokenizer.sha256 == data.tokenizer.sha256
    assert again.training is None
    assert (tmp_path / 'tokenizer' / 'tokenizer.model').stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r'data.vocab_size=71, but .* holds a tokenizer with 70'):
        load(numbers(tmp_path, vocab_size=71), tmp_path)
    with pytest.raises(DataError, match='holds no tokenizer: train first'):
        load(config, tmp_path / 'other', splits=('test',))


def test_batches_decode_to_the_text(tmp_path):
    data, _ = load(numbers(tmp_path), tmp_path)
    words = dict(
        zip(
            *(
                getattr(data.task.load(data.config.data, 'train'), side)
                for side in ('source', 'target')
            ),
            strict=True,
        )
    )
    seen = set()
    for batch in take(data.train_iterator(everything, 1), data.steps_per_epoch):
        for source, target, weights in zip(
            batch.source_BS, batch.targets_BT, batch.weights_BT, strict=True
        ):
            if weights.any():
                source, target = data.tokenizer.decode([source, target])
                assert words[source] == target
                seen.add(source)
    assert seen == set(words)


def test_evaluation_sees_every_pair_once_whatever_the_rows(tmp_path):
    data, _ = load(numbers(tmp_path), tmp_path)
    whole = list(data.eval_batches('validation', 1, everything))
    assert_same(whole, list(data.eval_batches('validation', 1, everything)))
    plan, _ = data.evaluation('validation')
    orders = [plan.step(number).examples.tolist() for number in range(plan.steps_per_epoch)]
    assert all(order == sorted(order) for order in orders)
    texts = [text for batch in whole for text in data.tokenizer.decode(batch.source_BS) if text]
    assert sorted(texts) == sorted(data.text('validation').source)
    halves = [
        list(
            data.eval_batches(
                'validation', 6, lambda rows, p=p: (p * rows // 2, (p + 1) * rows // 2)
            )
        )
        for p in range(2)
    ]
    for one, left, right in zip(whole, *halves, strict=True):
        joined = np.concatenate([left.targets_BT, right.targets_BT])
        np.testing.assert_array_equal(joined[: len(one.targets_BT)], one.targets_BT)
        assert not joined[len(one.targets_BT) :].any()


def test_bad_training_lines_are_counted_named_and_dropped(tmp_path):
    config = files(tmp_path, ('a b\n\nb a b a b a b a b a\na\nb\n', 'b a\na\na\n  \nb\n'))
    data, lines = load(config, tmp_path)
    assert any(
        'training examples with an empty line dropped: 2' in line
        and f'{tmp_path}/train.en:2)' in line
        for line in lines
    )
    assert any(
        'training examples longer than 8 tokens dropped: 1' in line
        and f'{tmp_path}/train.en:3)' in line
        for line in lines
    )
    examples = np.concatenate([data.plan.step(n).examples for n in range(data.steps_per_epoch)])
    assert sorted(examples) == [0, 4]


def test_bad_evaluation_lines_are_counted_named_and_kept_aligned(tmp_path):
    config = files(
        tmp_path, ('a b\nb a\n', 'b a\na b\n'), ('a\n\nb\n', 'a b a b a b a b a b\nb\na\n')
    )
    data, lines = load(config, tmp_path)
    assert data.text('validation').source == ['a', '', 'b']
    assert any(
        'validation examples with an empty line kept as they are: 1' in line and 'val.en:2)' in line
        for line in lines
    )
    assert any(
        'validation examples longer than 8 tokens cut: 1' in line and 'val.de:1)' in line
        for line in lines
    )
    _, encoded = data.evaluation('validation')
    assert len(encoded.source) == 3
    tokens, lengths = encoded.target.take(np.array([0]))
    assert (lengths[0], tokens[-1]) == (8, EOS)
    assert encoded.source.take(np.array([1]))[0].tolist() == [EOS]


@pytest.mark.parametrize(
    ('train', 'validation', 'message'),
    [
        (('', ''), ('a\n', 'b\n'), r'train\.de: the training set is empty'),
        (('\n\n', '\n\n'), ('a\n', 'b\n'), 'the training set is empty'),
        (('a b\n', 'b a\n'), ('', ''), r'val\.en: the validation set is empty'),
        (
            ('a b a b a b a b a b\n\n', 'b\na\n'),
            ('a\n', 'b\n'),
            'no training example is left: 1 have an empty line, '
            r'1 are longer than the 8 tokens of data\.batching',
        ),
    ],
)
def test_sets_without_a_usable_pair_are_refused(tmp_path, train, validation, message):
    with pytest.raises(DataError, match=message) as error:
        load(files(tmp_path, train, validation, vocab_size=7), tmp_path)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'tokenizer').exists()


def test_a_vocabulary_too_large_is_refused_before_anything_is_stored(tmp_path):
    with pytest.raises(
        DataError, match=r'data\.vocab_size=9000 is more than the training text allows'
    ):
        load(files(tmp_path, ('a b\n', 'b a\n'), vocab_size=9000), tmp_path)
    assert not (tmp_path / 'tokenizer').exists()


def test_limit_keeps_the_first_examples(tmp_path):
    data, _ = load(numbers(tmp_path, max_train_examples=21), tmp_path)
    assert len(data.train.source) == 21
    assert data.tokenizer.decode([data.train.source.take(np.array([3]))[0]]) == ['three']


def test_large_sets_are_encoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tasks, 'CACHED_FROM', 10)
    config = files(tmp_path, ('a b\n\n' + 'b a\n' * 20, 'b a\nb\n' + 'a b\n' * 20))
    data, lines = load(config, tmp_path)
    monkeypatch.setattr(encoding, 'store', lambda *_: pytest.fail('encoded again'))
    again, repeated = load(config, tmp_path)
    assert isinstance(again.train.source.values, np.memmap)
    assert_same(
        take(data.train_iterator(everything, 1), 5), take(again.train_iterator(everything, 1), 5)
    )
    assert repeated == lines
    assert 'train.en:2' in lines[0]
    monkeypatch.undo()
    monkeypatch.setattr(text_tasks, 'CACHED_FROM', 10)
    resized = dataclasses.replace(config, data=dataclasses.replace(config.data, vocab_size=8))
    other, _ = load(resized, tmp_path / 'resized')
    assert other.train.source.values.tolist() != data.train.source.values.tolist()
    (tmp_path / 'train.en').write_text('a a\n' + 'b a\n' * 21)
    changed, _ = load(config, tmp_path)
    assert changed.train.source.values.tolist() != data.train.source.values.tolist()


def test_bad_batching_and_task_are_named_by_key(tmp_path):
    config = numbers(tmp_path)
    for key, value in (('batching', 'bucket'), ('task', 'number_word')):
        bad = dataclasses.replace(config, data=dataclasses.replace(config.data, **{key: value}))
        with pytest.raises(ConfigError, match=rf'data\.{key}={value!r}'):
            load(bad, tmp_path)

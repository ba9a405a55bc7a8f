"""Tasks of prepared TensorFlow Datasets: documents, classes, pixels, and errors of unfit sets."""

import io
import math
import sys

import numpy as np
import pytest
from etils import epath
from helpers.prepared_sets import prepare
from PIL import Image

from transformer_jax import spec
from transformer_jax.batch import EOS
from transformer_jax.config import resolve
from transformer_jax.data import TASKS, load_data
from transformer_jax.data.tasks.cifar10 import CLASSES, Cifar10, gray
from transformer_jax.data.tasks.tfds import TfdsClassification, TfdsText
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import (
    DataConfig,
    EvaluateConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)

REVIEWS = {
    'train': [('Gut — very\ngood', 1), ('bad', 0), ('x' * 50, 1), ('y' * 15, 0)] * 5,
    'test': [('so so', 0), ('z' * 40, 1)],
    'unlabelled': [('who knows', 1), ('nobody', -1)],
}
IMAGES = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)


def png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png')
    file.seek(0)
    return file


@pytest.fixture(scope='module')
def reviews(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp('reviews')
    splits = {
        split: [{'text': text, 'label': label, 'stars': label} for text, label in records]
        for split, records in REVIEWS.items()
    }
    label = tfds.features.ClassLabel
    prepare(
        folder,
        'imdb_reviews',
        {
            'text': tfds.features.Text(),
            'label': label(names=['neg', 'pos']),
            'stars': label(num_classes=2),
        },
        splits,
        'plain_text',
    )
    return folder


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp('cifar')
    records = [
        {'image': png(image), 'label': number % 10 if number < 11 else -1}
        for number, image in enumerate(IMAGES)
    ]
    features = {
        'image': tfds.features.Image(shape=(32, 32, 3)),
        'label': tfds.features.ClassLabel(names=CLASSES),
    }
    prepare(folder, 'cifar10', features, {'train': records[:8], 'test': records[8:]})
    return folder


def classifier(folder, batching='buckets(lengths=(8, 16))', **data):
    given = {
        'task': 'tfds_classification',
        'tokenizer': 'bytes',
        'vocab_size': 260,
        'source_dir': str(folder),
        'cache_dir': str(folder / 'cache'),
        'batching': batching,
        'prefetch': 0,
        **data,
    }
    return ExperimentConfig(
        model=ModelConfig(kind='classifier'),
        data=DataConfig(**given),
        train=TrainConfig(batch_tokens=64),
        evaluate=EvaluateConfig(batch_tokens=64),
    )


def load(config, tmp_path, splits=('train', 'validation')):
    lines = []
    return load_data(
        resolve(config).pipeline, epath.Path(tmp_path) / 'tokenizer', lines.append, splits
    ), '\n'.join(lines)


def everything(rows):
    return 0, rows


# --- Documents and classes ------------------------------------------------------------------------


def test_each_record_is_a_document(reviews):
    data = DataConfig(source_dir=str(reviews))
    task = TfdsText(name='imdb_reviews', validation='test', test='test[:50%]')
    texts = task.load(data, 'train')
    assert (task.form, texts.source) == ('language', None)
    assert texts.target == [text for text, _ in REVIEWS['train']]
    assert texts.origin(1, 'target') == 'imdb_reviews/train:2'
    assert task.load(data, 'test').target == ['so so']
    prints = {
        task.fingerprint(data, 'train'),
        task.fingerprint(data, 'test'),
        TfdsText(name='imdb_reviews', feature='stars').fingerprint(data, 'train'),
    }
    assert len(prints) == 3
    with pytest.raises(DataError, match=r"imdb_reviews has no Text called 'label'; it has text$"):
        TfdsText(name='imdb_reviews', feature='label').load(data, 'train')


def test_labels_are_classes_by_name(reviews):
    data = DataConfig(source_dir=str(reviews))
    texts = TfdsClassification().load(data, 'train')
    assert list(zip(texts.source, texts.target, strict=True)) == [
        (text, ('neg', 'pos')[label]) for text, label in REVIEWS['train'][:18]
    ]
    assert len(TfdsClassification().load(data, 'validation')) == 2
    # The set counts the classes of 'stars' without naming them.
    named = TfdsClassification(label='stars', names=('one', 'two')).load(data, 'test')
    assert named.target == ['one', 'two']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'names': ('pos', 'neg')},
            r"classes of imdb_reviews are \('neg', 'pos'\), not \('pos', 'neg'\)",
        ),
        (
            {'label': 'stars', 'names': ('a', 'b', 'c')},
            r"classes of imdb_reviews are \('0', '1'\), not",
        ),
        ({'label': 'text'}, r"no ClassLabel called 'text'; it has label, stars"),
        (
            {'train': 'unlabelled'},
            r'^imdb_reviews/unlabelled:2: the class -1 is outside 0 ≤ class < 2 \(neg, pos\)',
        ),
        ({'train': 'train[:x]'}, r"no split 'train\[:x\]': "),
        ({'train': 'dev'}, r"no split 'dev'; it has test, train, unlabelled"),
        (
            {'name': 'sst2'},
            r'prepare it with: tfds build sst2 --data_dir=.* --file_format=array_record$',
        ),
    ],
)
def test_an_unfit_set_is_refused(reviews, options, message):
    with pytest.raises(DataError, match=message):
        TfdsClassification(**options).load(DataConfig(source_dir=str(reviews)), 'train')


@pytest.mark.parametrize('names', ["('one',)", "('one', 'one')"])
def test_classes_have_different_names(names):
    with pytest.raises(ConfigError, match='different names of two classes or more'):
        spec.parse(f'tfds_classification(names={names})', TASKS, 'data.task')


def test_a_text_to_classify_is_cut_in_training_as_in_evaluation(reviews, tmp_path):
    data, log = load(classifier(reviews), tmp_path, ('train', 'test'))
    assert (
        'training examples longer than 16 tokens cut: 9 (first: imdb_reviews/train[:90%]:1)' in log
    )
    assert 'test examples longer than 16 tokens cut: 1 (first: imdb_reviews/test:2)' in log
    assert 'dropped' not in log
    seen = []
    for _, batch in zip(
        range(data.steps_per_epoch), data.train_iterator(everything, 1), strict=False
    ):
        for row, real, label in zip(
            batch.source_BS, batch.source_segments_BS, batch.targets_BT[:, 0], strict=True
        ):
            if real.any():
                seen.append((bytes(row[real > 0][:-1].astype(np.uint8) - 4), int(label)))
                assert row[real > 0][-1] == EOS
    assert sorted(seen) == sorted(
        (text.encode()[:15], label) for text, label in REVIEWS['train'][:18]
    )


# --- Pixels ---------------------------------------------------------------------------------------


def test_pixels_are_the_gray_of_long_range_arena():
    """Compare with tf.image.rgb_to_grayscale in double precision.

    It converts to [0, 1], weights, multiplies by 255.5 and truncates.
    """
    colors = np.random.RandomState(1).randint(0, 256, (4000, 3)).tolist() + [
        [v, v, v] for v in range(256)
    ]
    expected = [
        math.floor((r / 255 * 0.2989 + g / 255 * 0.587 + b / 255 * 0.114) * 255.5)
        for r, g, b in colors
    ]
    assert gray(np.array(colors, np.uint8)).tolist() == expected
    assert (expected[4000], expected[-1]) == (0, 255)


def test_images_are_sequences_of_pixels(cifar, tmp_path):
    config = classifier(
        cifar, 'buckets(lengths=(1024,))', task='cifar10(train=5, validation=3, test=2)'
    )
    data, _ = load(config, tmp_path)
    assert (len(data.train.lengths), data.tokenizer.vocab_size, data.task.count('test')) == (
        5,
        260,
        2,
    )
    for split, start in (('train', 0), ('validation', 5), ('test', 8)):
        for index in range(data.task.count(split)):
            source, target, weights = data.task.make_example(0, split, index)
            assert source.tolist() == (4 + gray(IMAGES[start + index])).reshape(-1).tolist()
            assert (target.tolist(), weights) == ([(start + index) % 10], None)
    texts = data.text('validation')
    assert texts.target == ['dog', 'frog', 'horse']
    assert texts.source[0].split() == list(map(str, gray(IMAGES[5]).reshape(-1).tolist()))
    batches = list(data.eval_batches('validation', 1, everything))
    assert [(batch.source_BS.shape, batch.targets_BT.tolist()) for batch in batches] == [
        ((1, 1024), [[label]]) for label in (5, 6, 7)
    ]


def test_unfit_images_are_refused(cifar, tmp_path):
    few = classifier(
        cifar, 'buckets(lengths=(1024,))', task='cifar10(train=8, validation=3, test=2)'
    )
    with pytest.raises(
        DataError, match=r"no split 'train\[8:11\]': .*incompatible with 8 examples"
    ):
        load(few, tmp_path)
    with pytest.raises(DataError, match=r'^cifar10/test:4: the class -1 is outside 0 ≤ class < 10'):
        Cifar10(test=4, folder=str(cifar)).make_example(0, 'test', 3)
    with pytest.raises(
        DataError, match=r'prepare it with: tfds build cifar10 --data_dir=.* --file_format=array_r'
    ):
        load(classifier(tmp_path, 'buckets(lengths=(1024,))', task='cifar10'), tmp_path)
    with pytest.raises(ConfigError, match='validation=0 is outside 1 ≤ value'):
        spec.parse('cifar10(validation=0)', TASKS, 'data.task')


def test_a_set_is_not_needed_to_know_its_task():
    task = spec.parse('cifar10', TASKS, 'data.task')
    assert [task.count(split) for split in ('train', 'validation', 'test')] == [
        45_000,
        5_000,
        10_000,
    ]
    assert (task.longest('train'), len(task.symbols()), len(task.classes())) == ((1024, 1), 256, 10)
    assert 'tensorflow' not in sys.modules

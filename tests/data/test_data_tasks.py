"""The tasks of text: disjoint splits, round trips through files, and errors that name the file."""

import gzip
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest

from transformer_jax import spec
from transformer_jax.data.tasks import TASKS, multi30k
from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.data.tasks.multi30k import Multi30k
from transformer_jax.data.tasks.number_words import NumberWords
from transformer_jax.data.tasks.parallel_text import ParallelText
from transformer_jax.data.tasks.tfds import TfdsTranslation
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.schema import DataConfig

SHARED = Path(__file__).parents[3] / 'shared' / 'data' / 'multi30k'
LINES = {'train': 5, 'val': 3, 'test_2016_flickr': 2}


def write_multi30k(directory: Path, suffix: str = '', zipped: bool = True) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, count in LINES.items():
        for language in ('en', 'de'):
            text = ''.join(f'{name} ü {language} {line}\n' for line in range(count)).encode()
            path = directory / f'{name}{suffix}.{language}{".gz" if zipped else ""}'
            path.write_bytes(gzip.compress(text) if zipped else text)


def test_number_words_translate_and_their_splits_are_disjoint():
    task = NumberWords(limit=300, held_out=40)
    numbers = {split: task.numbers(split) for split in SPLITS}
    assert sorted(itertools.chain(*numbers.values())) == list(range(300))
    assert [len(numbers[split]) for split in SPLITS] == [220, 40, 40]
    pairs = {split: task.load(DataConfig(), split) for split in SPLITS}
    assert not set(pairs['train'].source) & set(pairs['validation'].source + pairs['test'].source)
    words = {
        source: target
        for p in pairs.values()
        for source, target in zip(p.source, p.target, strict=True)
    }
    assert words['twenty-four'] == 'vierundzwanzig'
    french = task.load(DataConfig(source='de', target='fr'), 'test')
    assert french.source == pairs['test'].target
    assert pairs['test'].origin(0, 'source') == 'number_words/test.en:1'


def test_number_words_refuses_what_num2words_cannot():
    with pytest.raises(
        ConfigError, match=r"data.target='dee' is no language of num2words; did you mean 'de'"
    ):
        NumberWords().load(DataConfig(target='dee'), 'train')
    with pytest.raises(ConfigError, match=r"data.source='am': num2words cannot write \d+"):
        NumberWords().load(DataConfig(source='am'), 'train')
    with pytest.raises(ConfigError, match=r'data\.task=.*held_out=200 of limit=300'):
        spec.parse('number_words(limit=300, held_out=200)', TASKS, 'data.task')


@pytest.mark.parametrize(
    ('version', 'suffix', 'zipped'), [('raw', '', True), ('lc.norm.tok', '.lc.norm.tok', False)]
)
def test_multi30k_round_trip_through_tfds(tmp_path, version, suffix, zipped):
    write_multi30k(tmp_path / 'files', suffix, zipped)
    data = DataConfig(source_dir=str(tmp_path / 'files'), cache_dir=str(tmp_path / 'cache'))
    ending = '.gz' if zipped else ''
    for split, name in zip(SPLITS, LINES, strict=True):
        pairs = Multi30k(version=version).load(data, split)
        assert pairs.source == [f'{name} ü en {line}' for line in range(LINES[name])]
        assert pairs.target == [f'{name} ü de {line}' for line in range(LINES[name])]
        assert pairs.origin(1, 'target') == f'{tmp_path}/files/{name}{suffix}.de{ending}:2'
    assert list((tmp_path / 'cache' / 'tfds').rglob('*.array_record*'))
    assert 'tensorflow' not in sys.modules


def test_multi30k_is_prepared_once_and_other_files_are_not_confused(tmp_path, monkeypatch):
    write_multi30k(tmp_path / 'files')
    data = DataConfig(source_dir=str(tmp_path / 'files'), cache_dir=str(tmp_path / 'cache'))
    first = Multi30k().load(data, 'train')
    from transformer_jax.data import tfds_builders as builders

    monkeypatch.setattr(builders, 'read_pairs', lambda *paths: pytest.fail('prepared again'))
    assert Multi30k().load(data, 'train') == first
    monkeypatch.undo()
    changed = gzip.compress(''.join(f'changed {line}\n' for line in range(LINES['train'])).encode())
    (tmp_path / 'files' / 'train.en.gz').write_bytes(changed)
    assert Multi30k().load(data, 'train').source[0] == 'changed 0'
    assert len(list((tmp_path / 'cache' / 'tfds').iterdir())) == 2
    backwards = DataConfig(data.task, 'de', 'en', data.source_dir, data.cache_dir)
    assert Multi30k().load(backwards, 'train').target[0] == 'changed 0'


def test_multi30k_with_bad_files_leaves_nothing_behind(tmp_path):
    write_multi30k(tmp_path / 'files', zipped=False)
    data = DataConfig(source_dir=str(tmp_path / 'files'), cache_dir=str(tmp_path / 'cache'))
    (tmp_path / 'files' / 'val.de').write_bytes(b'1\n2\n')
    with pytest.raises(DataError, match=r'val\.en has 3 lines but .*val\.de has 2'):
        Multi30k().load(data, 'train')
    assert not list(tmp_path.glob('cache/tfds/*'))
    (tmp_path / 'files' / 'val.de').unlink()
    with pytest.raises(
        DataError, match=r'val\.de: no such file, plain or \.gz; check data.source_dir'
    ):
        Multi30k().load(data, 'train')


def test_multi30k_downloads_from_its_public_layout_once(tmp_path, monkeypatch):
    write_multi30k(tmp_path / 'web' / 'raw')
    write_multi30k(tmp_path / 'web' / 'tok', '.lc.norm.tok', zipped=False)
    monkeypatch.setattr(multi30k, 'URL', (tmp_path / 'web').as_uri())
    data = DataConfig(cache_dir=str(tmp_path / 'cache'))
    loaded = {
        version: Multi30k(version=version).load(data, 'train') for version in ('raw', 'lc.norm.tok')
    }
    assert all(len(pairs) == LINES['train'] for pairs in loaded.values())
    monkeypatch.setattr(multi30k, 'URL', (tmp_path / 'gone').as_uri())
    assert Multi30k().load(data, 'train') == loaded['raw']
    with pytest.raises(DataError, match=r'cannot download .*train\.fr\.gz .*set data.source_dir'):
        Multi30k().load(DataConfig(source='fr', cache_dir=str(tmp_path / 'cache')), 'train')


@pytest.mark.skipif(not SHARED.exists(), reason=f'{SHARED} is not there')
def test_the_real_multi30k_validation_set(tmp_path):
    for name in LINES:  # validation takes the place of training, to keep this small
        for language in ('en', 'de'):
            real = SHARED / f'{"val" if name == "train" else name}.{language}.gz'
            (tmp_path / f'{name}.{language}.gz').symlink_to(real)
    data = DataConfig(source_dir=str(tmp_path), cache_dir=str(tmp_path / 'cache'))
    pairs = Multi30k().load(data, 'validation')
    assert len(pairs) == 1014
    assert pairs.source[0] == 'A group of men are loading cotton onto a truck'
    assert pairs.target[0] == 'Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen'


def test_parallel_text_reads_any_two_aligned_files(tmp_path):
    (tmp_path / 'corpus.old').write_text('a\nb\n')
    (tmp_path / 'corpus.new.gz').write_bytes(gzip.compress(b'c\nd\n'))
    task = ParallelText(train='corpus.{lang}', validation=str(tmp_path / 'corpus.{lang}'), test='')
    data = DataConfig(source='old', target='new', source_dir=str(tmp_path))
    for split in ('train', 'validation'):
        pairs = task.load(data, split)
        assert (pairs.source, pairs.target) == (['a', 'b'], ['c', 'd'])
    before = task.fingerprint(data, 'train')
    (tmp_path / 'corpus.old').write_text('a\nB\n')
    assert task.fingerprint(data, 'train') != before
    with pytest.raises(DataError, match='has no test split'):
        task.load(data, 'test')
    with pytest.raises(DataError, match=r'corpus\.fr: no such file.*data.source_dir='):
        task.load(DataConfig(source='fr', target='new', source_dir=str(tmp_path)), 'train')
    with pytest.raises(ConfigError, match=r"train='corpus\.en' must hold \{lang\}"):
        spec.parse("parallel_text(train='corpus.en')", TASKS, 'data.task')


def build_tfds(directory: Path, file_format: str) -> None:
    import tensorflow_datasets as tfds

    class TinyTranslate(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = 'tiny_translate'
        VERSION = tfds.core.Version('1.0.0')
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.Translation(languages=['de', 'en']),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split):
            for line in range(10):
                yield line, {'en': f'{split}\nen {line}', 'de': f'{split} ß {line}'}

    TinyTranslate(data_dir=directory, file_format=file_format).download_and_prepare()


def test_tfds_translation_reads_array_records(tmp_path):
    build_tfds(tmp_path, 'array_record')
    data = DataConfig(source_dir=str(tmp_path))
    task = TfdsTranslation(name='tiny_translate', train='train[:50%]')
    pairs = task.load(data, 'train')
    # A line feed in a record becomes a space: it would break the alignment of lines.
    assert pairs.source == [f'train en {line}' for line in range(5)]
    assert pairs.target == [f'train ß {line}' for line in range(5)]
    assert len(task.load(data, 'test')) == 10
    assert task.fingerprint(data, 'train') != task.fingerprint(data, 'test')
    with pytest.raises(
        DataError, match=r"data.source='fr': tiny_translate has the languages de, en"
    ):
        task.load(DataConfig(source='fr', source_dir=str(tmp_path)), 'train')
    with pytest.raises(DataError, match=r"no split 'dev'; it has test, train, validation"):
        TfdsTranslation(name='tiny_translate', validation='dev').load(data, 'validation')


def test_tfds_translation_says_how_to_prepare_a_set(tmp_path):
    data = DataConfig(source_dir=str(tmp_path))
    with pytest.raises(DataError) as error:
        TfdsTranslation().load(data, 'train')
    command = f'tfds build wmt14_translate/de-en --data_dir={tmp_path} --file_format=array_record'
    assert str(error.value).endswith(command)
    assert '\n' not in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec('tensorflow') is not None, reason='the format would be readable'
)
def test_tfds_translation_refuses_other_formats(tmp_path):
    build_tfds(tmp_path, 'array_record')
    info = next(tmp_path.rglob('dataset_info.json'))
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(DataError, match=r'--file_format=array_record --overwrite$'):
        TfdsTranslation(name='tiny_translate').load(DataConfig(source_dir=str(tmp_path)), 'train')

"""Sets of TensorFlow Datasets, read as ArrayRecord files without TensorFlow."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import read_only_builder

from transformer_jax.data.files import CACHE, Texts, content_hash, read_pairs
from transformer_jax.data.tfds_records import Builder, Records, first_line, named_damage
from transformer_jax.errors import DataError
from transformer_jax.storage.files import new_directory

tfds.disable_progress_bar()


class Multi30kBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Multi30k, task 1 (Elliott et al. 2016): captions and translations in the files' order."""

    name = 'multi30k'
    VERSION = tfds.core.Version('1.0.0')
    # Otherwise TFDS looks for checksums of downloads next to this file, through a package that it
    # does not install.
    code_path = None

    def __init__(
        self, languages: tuple[str, str], splits: Mapping[str, Texts], data_dir: epath.Path
    ):
        """Open the builder of a set that is prepared, or is about to be.

        Args:
            languages: of source and target.
            splits: what `download_and_prepare` writes; empty for a set that is prepared already.
            data_dir: the folder of the prepared set.
        """
        self._languages = languages
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format='array_record')

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.Translation(languages=tuple(dict.fromkeys(self._languages)))
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            disable_shuffling=True,
            homepage='https://github.com/multi30k/dataset',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the files were read already, for the hash in the directory's name
        return {split: self._generate_examples(pairs) for split, pairs in self._splits.items()}

    def _generate_examples(self, pairs: Texts) -> Iterator[tuple[int, dict[str, str]]]:
        for line, texts in enumerate(zip(pairs.source or (), pairs.target, strict=True)):
            yield line, dict(zip(self._languages, texts, strict=True))


def multi30k(
    files: Mapping[str, tuple[epath.Path, epath.Path]],
    languages: tuple[str, str],
    cache: epath.Path,
    split: str,
) -> Texts:
    """Read one split of the set made of `files`, as ArrayRecord.

    The set is prepared once, in a directory that is named by the hash of its content.

    Raises:
        DataError: the files cannot be read as aligned text.
    """
    digest = content_hash(*(path for pair in files.values() for path in pair))
    root = cache / 'tfds' / f'multi30k-{digest}'
    if not root.exists():
        splits = {name: read_pairs(*pair) for name, pair in files.items()}
        with new_directory(root, CACHE) as partial, contextlib.redirect_stdout(io.StringIO()):
            Multi30kBuilder(languages, splits, partial).download_and_prepare()
    remedy = f'delete {root}: it is made anew'
    with named_damage(str(root), remedy):
        builder = Multi30kBuilder(languages, {}, root)
    source, target = map(str, files[split])
    return _read(Records(builder, split, remedy), languages, (source, target))


def translation(name: str, data_dir: str, split: str, languages: tuple[str, str]) -> Texts:
    """Read one split of any TFDS translation set that is prepared as ArrayRecord.

    Raises:
        DataError: it is not prepared so (the message gives the command that does it), or lacks the
            split or a language.
    """
    builder = _with_split(name, data_dir, split)
    for key, language in zip(('source', 'target'), languages, strict=True):
        if language not in builder.info.features:
            known = ', '.join(builder.info.features)
            raise DataError(f'data.{key}={language!r}: {name} has the languages {known}')
    source, target = languages
    names = f'{name}/{split}.{source}', f'{name}/{split}.{target}'
    return _read(Records(builder, split), languages, names)


def documents(name: str, data_dir: str, split: str, feature: str) -> Texts:
    """Read the texts of one feature of a prepared set, each of which stands alone.

    Raises:
        DataError: as `translation`, or the set has no such text.
    """
    builder, origin = _with_split(name, data_dir, split), f'{name}/{split}'
    _feature(builder, feature, tfds.features.Text)
    texts = [
        _text(row[feature], f'{origin}:{number}')
        for number, row in enumerate(Records(builder, split), 1)
    ]
    return Texts(None, texts, origin, origin)


def classification(
    name: str, data_dir: str, split: str, features: tuple[str, str], classes: Sequence[str]
) -> Texts:
    """Read the texts of a prepared set and the names of their classes.

    `features` are the set's names for text and label.

    Raises:
        DataError: as `translation`, the set has no such text or label, or other classes, or a
            record has none of them.
    """
    builder, origin, (text, label) = _with_split(name, data_dir, split), f'{name}/{split}', features
    _feature(builder, text, tfds.features.Text)
    _check_classes(builder, label, classes)
    texts, names = [], []
    for number, row in enumerate(Records(builder, split), 1):
        texts.append(_text(row[text], f'{origin}:{number}'))
        names.append(classes[checked_class(row[label], classes, f'{origin}:{number}')])
    return Texts(texts, names, origin, origin)


def images(
    name: str, data_dir: str, split: str, shape: tuple[int, ...], classes: Sequence[str]
) -> Sequence[Any]:
    """Open the records of a prepared set of images, which are read when they are asked for.

    A record has 'image', as it is stored, and 'label'.

    Raises:
        DataError: as `translation`, or images of another shape or classes other than these.
    """
    builder = _with_split(name, data_dir, split)
    found = _feature(builder, 'image', tfds.features.Image).shape
    if tuple(found) != shape:
        raise DataError(f'data.task: the images of {name} are {found}, it takes {shape}')
    _check_classes(builder, 'label', classes)
    return Records(builder, split, decoders={'image': tfds.decode.SkipDecoding()})


def checked_class(label: int, classes: Sequence[str], origin: str) -> int:
    """Return the number of a class.

    Raises:
        DataError: it is no class (TFDS writes -1 where a record has no label).
    """
    if not 0 <= label < len(classes):
        bounds = f'0 ≤ class < {len(classes)} ({", ".join(classes)})'
        raise DataError(f'{origin}: the class {label} is outside {bounds}')
    return int(label)


def fingerprint(name: str, data_dir: str, split: str) -> str:
    """Identify the text of a prepared split without reading it."""
    info = _prepared(name, data_dir).info
    sizes = [(found.num_examples, found.num_bytes) for found in info.splits.values()]
    return f'{info.full_name} {split} {sizes}'


def _prepared(name: str, data_dir: str) -> Builder:
    """Open the files of a set; its own code is not run, because it may need TensorFlow."""
    overwrite = ''
    try:
        return read_only_builder.builder_from_files(
            name, data_dir=data_dir or None, file_format='array_record'
        )
    except tfds.core.DatasetNotFoundError:
        reason = 'nothing is prepared there'
    except Exception as error:  # prepared in another format only, or a damaged description
        reason, overwrite = first_line(error), ' --overwrite'
    where = f' --data_dir={data_dir}' if data_dir else ''
    raise DataError(
        f'data.task: {name} cannot be read as ArrayRecord from '
        f'{data_dir or "~/tensorflow_datasets"} ({reason}); prepare it with: '
        f'tfds build {name}{where} --file_format=array_record{overwrite}'
    )


def _with_split(name: str, data_dir: str, split: str) -> Builder:
    builder = _prepared(name, data_dir)
    known = sorted(builder.info.splits)
    if any(part.split('[')[0] not in known for part in split.split('+')):
        raise DataError(f'data.task: {name} has no split {split!r}; it has {", ".join(known)}')
    try:
        builder.info.splits[split]
    except ValueError as error:  # no slice, or one beyond the end
        raise DataError(
            f'data.task: {name} has no split {split!r}: {str(error).splitlines()[0]}'
        ) from None
    return builder


def _feature(builder: Builder, feature: str, kind: type) -> Any:
    features = builder.info.features
    if feature not in features or not isinstance(features[feature], kind):
        able = sorted(name for name, connector in features.items() if isinstance(connector, kind))
        raise DataError(
            f'data.task: {builder.info.name} has no {kind.__name__} called {feature!r}; '
            f'it has {", ".join(able) or "none"}'
        )
    return features[feature]


def _check_classes(builder: Builder, label: str, classes: Sequence[str]) -> None:
    """Raise DataError unless the set's classes are these, in order, or as many without names."""
    names = list(_feature(builder, label, tfds.features.ClassLabel).names)
    counted = names == [str(number) for number in range(len(names))]
    if names != list(classes) and not (counted and len(names) == len(classes)):
        found = f'the classes of {builder.info.name} are {tuple(names)}'
        raise DataError(f'data.task: {found}, not {tuple(classes)}')


def _read(records: Records, languages: tuple[str, str], names: tuple[str, str]) -> Texts:
    """Read both sides of a split.

    A line feed inside a record would break the alignment of line-based output: it becomes a space.
    """
    texts = ([], [])
    for number, row in enumerate(records, 1):
        for side, language, name in zip(texts, languages, names, strict=True):
            side.append(_text(row[language], f'{name}:{number}').replace('\n', ' '))
    return Texts(*texts, *names)


def _text(raw: bytes, origin: str) -> str:
    try:
        return raw.decode('utf-8')
    except UnicodeDecodeError:
        raise DataError(f'{origin}: invalid UTF-8') from None

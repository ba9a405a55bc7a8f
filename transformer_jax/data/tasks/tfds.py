"""Tasks whose texts TensorFlow Datasets has prepared as ArrayRecord.

Its module is imported by the methods that read: that takes seconds, which other tasks need not
spend.
"""

import dataclasses

from transformer_jax.data.files import Texts
from transformer_jax.data.tasks.text import Documents, TextPairs
from transformer_jax.schema import DataConfig


@dataclasses.dataclass(frozen=True)
class TfdsTranslation(TextPairs):
    """Any translation set of TensorFlow Datasets that is prepared as ArrayRecord.

    It is read from `data.source_dir`, or from TFDS's own data folder when that is empty. The other
    fields are its names for the splits, slices like 'train[:10%]' included.
    """

    name: str = 'wmt14_translate/de-en'
    train: str = 'train'
    validation: str = 'validation'
    test: str = 'test'

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        languages = data.source, data.target
        return tfds_builders.translation(
            self.name, data.source_dir, getattr(self, split), languages
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        found = tfds_builders.fingerprint(self.name, data.source_dir, getattr(self, split))
        return f'{found} {data.source} {data.target}'


@dataclasses.dataclass(frozen=True)
class TfdsText(Documents):
    """A text feature of any prepared set of TensorFlow Datasets, each a document that stands alone.

    It is prepared as `tfds_translation` is.

    The default is the One Billion Word Benchmark (Chelba et al. 2014), which has no validation
    split: it is cut from the held-out text, the rest of which is the test split.
    """

    name: str = 'lm1b'
    feature: str = 'text'
    train: str = 'train'
    validation: str = 'test[:2%]'
    test: str = 'test[2%:]'

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        return tfds_builders.documents(
            self.name, data.source_dir, getattr(self, split), self.feature
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        found = tfds_builders.fingerprint(self.name, data.source_dir, getattr(self, split))
        return f'{found} {self.feature}'


@dataclasses.dataclass(frozen=True)
class TfdsClassification(TextPairs):
    """Texts and their classes, from any such set of TensorFlow Datasets.

    It is prepared as `tfds_translation` is.

    `names` are the names that the set gives its labels, in their order. The default is IMDB (Maas
    et al. 2011), which has no validation split: it is the last tenth of the training set.
    """

    name: str = 'imdb_reviews'
    feature: str = 'text'
    label: str = 'label'
    names: tuple[str, ...] = ('neg', 'pos')
    train: str = 'train[:90%]'
    validation: str = 'train[90%:]'
    test: str = 'test'

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise ValueError(
                f'names={self.names}, it takes the different names of two classes or more'
            )

    def classes(self) -> tuple[str, ...]:
        """See Task."""
        return self.names

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        features = self.feature, self.label
        return tfds_builders.classification(
            self.name, data.source_dir, getattr(self, split), features, self.names
        )

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        from transformer_jax.data import tfds_builders

        found = tfds_builders.fingerprint(self.name, data.source_dir, getattr(self, split))
        return f'{found} {self.feature} {self.label} {self.names}'

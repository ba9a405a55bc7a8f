"""Sets of TensorFlow Datasets that tests prepare themselves."""

from pathlib import Path


def prepare(directory: Path, name: str, features: dict, splits: dict, config: str = '') -> None:
    """Write a set as ArrayRecord.

    `splits` maps a split's name to its records; `config` is the name of its one configuration.
    """
    import tensorflow_datasets as tfds

    class Fake(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.0.0')
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version='1.0.0')] if config else []
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(records) for split, records in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Fake.name = name
    Fake(data_dir=directory, file_format='array_record').download_and_prepare()

"""Any two text files aligned line by line."""

import dataclasses

from etils import epath

from transformer_jax.data.files import Texts, content_hash, find, read_pairs
from transformer_jax.data.tasks.base import SPLITS
from transformer_jax.data.tasks.text import TextPairs
from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.paths import expand_home


@dataclasses.dataclass(frozen=True)
class ParallelText(TextPairs):
    """Any two text files aligned line by line, plain or gzipped.

    The patterns are paths relative to `data.source_dir`, or absolute; `{lang}` stands for
    `data.source` on one side and `data.target` on the other, which may be any part of a file name.
    `test=''`: there is no test split.
    """

    train: str = 'train.{lang}'
    validation: str = 'val.{lang}'
    test: str = 'test.{lang}'

    def __post_init__(self):
        super().__post_init__()
        for split in SPLITS:
            pattern = getattr(self, split)
            if '{lang}' not in pattern and (pattern or split != 'test'):
                raise ValueError(
                    f'{split}={pattern!r} must hold {{lang}}, for data.source and data.target'
                )

    def load(self, data: DataConfig, split: str) -> Texts:
        """See TextTask."""
        return read_pairs(*self._files(data, split))

    def fingerprint(self, data: DataConfig, split: str) -> str:
        """See TextTask."""
        return content_hash(*self._files(data, split))

    def _files(self, data: DataConfig, split: str) -> tuple[epath.Path, epath.Path]:
        pattern = getattr(self, split)
        if not pattern:
            raise DataError(f"data.task: parallel_text({split}='') has no {split} split")
        folder = expand_home(data.source_dir)
        key = f'data.source_dir={data.source_dir!r} and data.task'
        return (
            find(folder / pattern.replace('{lang}', data.source), key),
            find(folder / pattern.replace('{lang}', data.target), key),
        )

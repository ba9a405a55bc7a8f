"""CIFAR-10 as sequences of pixels."""

import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from transformer_jax.data.tasks.symbols import FIRST, Example, SymbolTask
from transformer_jax.ranges import number
from transformer_jax.schema import DataConfig

SHAPE = (32, 32, 3)
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


@dataclasses.dataclass(frozen=True)
class Cifar10(SymbolTask):
    """CIFAR-10 (Krizhevsky 2009) as in Long Range Arena (Tay et al. 2021): 1,024 gray pixels.

    Pixels are read row by row.

    The fields count the images of each split; validation has those of the training set that follow
    `train`. Images are read one by one from the set that TensorFlow Datasets has prepared in
    `folder`, by default `data.source_dir`.
    """

    train: int = number(45_000, low=1, high=50_000)
    validation: int = number(5_000, low=1, high=50_000)
    test: int = number(10_000, low=1, high=10_000)
    folder: str = ''

    seed: ClassVar[int] = 0  # nothing is random

    def opened(self, data: DataConfig) -> 'Cifar10':
        """See Task: the folder is `data.source_dir` where none is given."""
        return dataclasses.replace(self, folder=self.folder or data.source_dir)

    def symbols(self) -> tuple[str, ...]:
        """See SymbolTask: the shades of gray, from black to white."""
        return tuple(map(str, range(256)))

    def classes(self) -> tuple[str, ...]:
        """See Task."""
        return CLASSES

    def count(self, split: str) -> int:
        """See SymbolTask."""
        return getattr(self, split)

    def sizes(self, split: str, count: int) -> np.ndarray:
        """See SymbolTask.

        Raises:
            DataError: the set is not prepared in `folder`, or is no CIFAR-10, or has too
                few images.
        """
        self._records(split)  # so that errors are raised before training starts
        return np.tile(self.longest(split), (count, 1))

    def longest(self, split: str) -> tuple[int, int]:
        """See SymbolTask."""
        return SHAPE[0] * SHAPE[1], 1

    def make_example(self, seed: int, split: str, index: int) -> Example:
        """See SymbolTask.

        Raises:
            DataError: the image has a class outside 0 … 9.
        """
        from transformer_jax.data import tfds_builders

        record = self._records(split)[index]
        origin = f'cifar10/{split}:{index + 1}'
        label = tfds_builders.checked_class(record['label'], CLASSES, origin)
        pixels = gray(np.asarray(Image.open(io.BytesIO(record['image']))))
        return Example(FIRST + pixels.reshape(-1), np.array([label], np.int32))

    def _records(self, split: str) -> Sequence[Any]:
        start = self.train if split == 'validation' else 0
        stored = 'test' if split == 'test' else 'train'
        return _open(self.folder, stored, start, start + self.count(split))


@functools.lru_cache(maxsize=8)
def _open(folder: str, split: str, start: int, stop: int) -> Sequence[Any]:
    # Importing TensorFlow Datasets takes seconds, which other tasks need not spend.
    from transformer_jax.data import tfds_builders

    return tfds_builders.images('cifar10', folder, f'{split}[{start}:{stop}]', SHAPE, CLASSES)


def gray(image: np.ndarray) -> np.ndarray:
    """Convert [..., 3] red, green and blue from 0 to 255 to [...] int32 shades of gray.

    What TensorFlow's rgb_to_grayscale computes, and Long Range Arena with it: 0.2989 R + 0.587
    G + 0.114 B of numbers from 0 to 1, times 255.5, rounded down. Integers make it exact; no
    intermediate result reaches 2³¹.
    """
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    return (2989 * red + 5870 * green + 1140 * blue) * 511 // (10_000 * 510)

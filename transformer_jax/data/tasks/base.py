"""What the pipeline asks of a task."""

import abc
from typing import ClassVar

from transformer_jax.data.files import Texts
from transformer_jax.schema import DataConfig

SPLITS = ('train', 'validation', 'test')


class Task(abc.ABC):
    """A task of text: what the pipeline asks of it. Generated tasks (see `generated`) answer
    other questions.
    """

    form: ClassVar[str] = (
        'translation'  # 'language': targets that stand alone; 'classification': targets are classes
    )
    drawn: ClassVar[bool] = False  # examples are drawn one by one, as token ids
    contiguous: ClassVar[bool] = False  # the one text of a split is cut into windows

    @abc.abstractmethod
    def load(self, data: DataConfig, split: str) -> Texts:
        """The texts of 'train', 'validation' or 'test', in a fixed order.

        Raises:
            DataError, ConfigError: there are none, or none that can be used.
        """

    @abc.abstractmethod
    def fingerprint(self, data: DataConfig, split: str) -> str:
        """Identifies the text that `load` returns, more cheaply than by loading it."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by their numbers; empty where targets are text."""
        return ()

"""Examples that are made when they are asked for: drawn by a generated task, or joined
from pairs.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from transformer_jax.data.encoding import Examples, Taken
from transformer_jax.data.files import Texts
from transformer_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The examples of a split of a generated task: any process can draw any of them."""

    task: Any
    split: str
    limit: int = 0  # 0: all

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Bounds: how long an example is shows when it is drawn."""
        count = self.task.count(self.split)
        return self.task.sizes(self.split, min(self.limit or count, count))

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        drawn = [self.task.draw(self.task.seed, self.split, int(number)) for number in index]

        def flat(field, dtype=np.int32):
            parts = [getattr(example, field) for example in drawn]
            return np.concatenate([np.zeros(0, dtype), *parts]), np.array(
                [len(part) for part in parts], np.int64
            )

        source = None if self.task.form == 'language' else flat('source')
        weighted = bool(drawn) and drawn[0].weights is not None
        return Taken(source, flat('target'), flat('weights', np.float32)[0] if weighted else None)

    def texts(self, tokenizer: Tokenizer) -> Texts:
        """All examples in symbols, without EOS."""
        name = f'{type(self.task).__name__}/{self.split}'
        taken = self.take(np.arange(len(self.lengths)))

        def read(side):
            if side is None:
                return None
            values, lengths = side
            return tokenizer.decode(np.split(values, np.cumsum(lengths)[:-1]))

        classification = self.task.form == 'classification'
        classes = self.task.classes()
        targets = (
            [classes[label] for label in taken.target[0]] if classification else read(taken.target)
        )
        return Texts(read(taken.source), targets, name, name)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Pairs as a language model reads them: source and target in one sequence, of which the source
    does not count.
    """

    pairs: Examples

    @property
    def lengths(self) -> np.ndarray:
        """See Examples."""
        total = self.pairs.lengths.sum(axis=1)
        return np.stack([np.zeros_like(total), total], axis=1)

    def take(self, index: np.ndarray) -> Taken:
        """See Examples."""
        taken = self.pairs.take(index)
        (source, source_lengths), (target, target_lengths) = taken.source, taken.target
        turns = [
            np.repeat(2 * np.arange(len(lengths)) + side, lengths)
            for side, lengths in enumerate((source_lengths, target_lengths))
        ]
        place = np.argsort(np.concatenate(turns), kind='stable')
        weights = np.ones(len(target), np.float32) if taken.weights is None else taken.weights
        return Taken(
            None,
            (np.concatenate([source, target])[place], source_lengths + target_lengths),
            np.concatenate([np.zeros(len(source), np.float32), weights])[place],
        )

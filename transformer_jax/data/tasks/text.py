"""Tasks of text: pairs, documents that stand alone, and contiguous text cut into windows."""

import abc
from typing import ClassVar

import numpy as np
from etils import epath

from transformer_jax.batch import UNK
from transformer_jax.data import encoding
from transformer_jax.data.encoding import Encoded
from transformer_jax.data.files import Texts, cache_dir
from transformer_jax.data.tasks.base import ReadContext, Task, TrainingSet, check_vocab_size
from transformer_jax.data.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer
from transformer_jax.errors import DataError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.files import exists

CACHED_FROM = 1_000_000  # examples: smaller sets are encoded again for each run, in seconds


class TextTask(Task):
    """A task whose texts are read whole and encoded one by one by a learned tokenizer."""

    text_is_tokenized: ClassVar[bool] = False
    exact_match_by_tokens: ClassVar[bool] = False
    # False: byte pairs read several spaces as one, and drop those at the ends of a text.
    keeps_spaces: ClassVar[bool] = True

    @abc.abstractmethod
    def load(self, data: DataConfig, split: str) -> Texts:
        """Read the texts of 'train', 'validation' or 'test', in a fixed order.

        Raises:
            DataError, ConfigError: there are no texts, or they cannot be used.
        """

    @abc.abstractmethod
    def fingerprint(self, data: DataConfig, split: str) -> str:
        """Identify the texts that `load` returns, more cheaply than by loading them."""

    @property
    def predicts_natural_text(self) -> bool:
        """See Task."""
        return not self.predicts_class

    def make_tokenizer(
        self, data: DataConfig, directory: epath.Path, trains: bool
    ) -> tuple[Tokenizer, Texts | None]:
        """See Task. The names of classes are not part of the text that it is learned from."""
        texts = None
        if exists(directory / 'tokenizer.json'):
            tokenizer = load_tokenizer(directory)
        elif trains:
            texts = self._training_texts(data)
            sources = list(texts.source or ())
            learned_from = sources if self.predicts_class else texts.everything()
            tokenizer = TOKENIZERS[data.tokenizer].train(
                learned_from, data.vocab_size, keep_spaces=self.keeps_spaces
            )
        else:
            raise DataError(f'{directory} holds no tokenizer: train first')
        check_vocab_size(tokenizer, data, f'{directory} holds a tokenizer with')
        return tokenizer, texts

    def read_texts(self, data: DataConfig, tokenizer: Tokenizer, split: str) -> Texts:
        """See Task."""
        del tokenizer
        return self.load(data, split)

    def training_examples(self, context: ReadContext, texts: Texts | None) -> TrainingSet:
        """See Task. From CACHED_FROM examples on, their token ids are kept on disk between runs."""
        encoded, names = self._encode_training(context, texts)
        examples = self._shortened(context, encoded, names)
        return TrainingSet(examples, self._empty(encoded), names)

    def evaluation_examples(self, context: ReadContext, split: str, stride: int) -> Encoded:
        """See Task."""
        texts, longest = context.texts(split), context.longest
        encoded = encoding.encode(context.tokenizer, texts, self.classes())
        self._report_unknown(context, encoded, texts, split)
        context.report(
            self._empty(encoded), texts, f'{split} examples with an empty line kept as they are'
        )
        context.report(
            encoded.lengths > longest, texts, f'{split} examples longer than {longest} tokens cut'
        )
        source, target = encoded.source, encoded.target
        return Encoded(
            None if source is None else encoding.cut(source, longest),
            target if self.predicts_class else encoding.cut(target, longest),
        )

    def _encode_training(self, context: ReadContext, texts: Texts | None) -> tuple[Encoded, Texts]:
        data = context.data
        path = encoding.cache_path(
            cache_dir(data),
            context.tokenizer,
            self.fingerprint(data, 'train'),
            data.max_train_examples,
        )
        if path.exists():
            return encoding.restore(path)
        texts = texts or self._training_texts(data)
        encoded = encoding.encode(context.tokenizer, texts, self.classes())
        if len(texts) < CACHED_FROM:
            return encoded, texts.head(0)
        encoding.store(path, encoded, texts)
        return encoding.restore(path)

    def _shortened(self, context: ReadContext, encoded: Encoded, names: Texts) -> Encoded:
        """Return the training examples; those that stay too long are dropped by the pipeline."""
        del context, names
        return encoded

    def _training_texts(self, data: DataConfig) -> Texts:
        texts = self.load(data, 'train')
        for side in (texts.source, texts.target):
            if side is not None and not any(map(str.strip, side)):
                names = f'{texts.source_name}, {texts.target_name}'
                raise DataError(f'{names}: the training set is empty')
        return texts.head(data.max_train_examples) if data.max_train_examples else texts

    def _empty(self, encoded: Encoded) -> np.ndarray:
        """Return which texts are EOS alone, [examples, 2]; a class is no text."""
        return (encoded.lengths <= 1) & np.array([self.has_source, not self.predicts_class])

    def _report_unknown(
        self, context: ReadContext, encoded: Encoded, texts: Texts, split: str
    ) -> None:
        """Log how many tokens of a split the vocabulary does not know."""
        sides = [encoded.source, None if self.predicts_class else encoded.target]
        unknown = sum(int((side.values == UNK).sum()) for side in sides if side is not None)
        if unknown:
            context.log(
                f'data: {split}: {unknown} tokens that the vocabulary does not know, read as '
                f'unknown (in {texts.source_name})'
            )


class TextPairs(TextTask):
    """Aligned texts: a source and its translation, or a source and the name of its class."""

    def _shortened(self, context: ReadContext, encoded: Encoded, names: Texts) -> Encoded:
        """Cut texts to classify, as in evaluation (and in Long Range Arena); translations stay."""
        long = encoded.lengths > context.longest
        if encoded.source is None or not self.predicts_class or not long.any():
            return encoded
        context.report(long, names, f'training examples longer than {context.longest} tokens cut')
        return encoded._replace(source=encoding.cut(encoded.source, context.longest))


class Documents(TextTask):
    """Texts that stand alone: packed rows keep them apart."""

    has_source: ClassVar[bool] = False


class ContiguousText(Documents):
    """One text a split, cut into windows as long as the rows; documents where not `windowed`."""

    @property
    def windowed(self) -> bool:
        """See Task; a subclass may let one of its fields decide."""
        return True

    def training_examples(self, context: ReadContext, texts: Texts | None) -> TrainingSet:
        """See Task.

        Raises:
            DataError: the text is shorter than one row.
        """
        if not self.windowed:
            return super().training_examples(context, texts)
        texts = texts or self._training_texts(context.data)
        encoded, longest = self._windows(context, texts), context.longest
        if encoded.target.lengths[0] < longest:
            raise DataError(
                f'{texts.target_name}: the training text has {encoded.target.lengths[0]} tokens, '
                f'fewer than one row of data.batching, {longest}; give more text, or shorter rows'
            )
        names = Texts(None, [], texts.source_name, f'{texts.target_name}, window')
        return TrainingSet(encoded, np.zeros_like(encoded.lengths, bool), names)

    def evaluation_examples(self, context: ReadContext, split: str, stride: int) -> Encoded:
        """See Task."""
        if not self.windowed:
            return super().evaluation_examples(context, split, stride)
        texts = context.texts(split)
        encoded = self._windows(context, texts, stride)
        self._report_unknown(context, encoded, texts, split)
        return encoded

    def _windows(self, context: ReadContext, texts: Texts, stride: int = 0) -> Encoded:
        [text] = texts.target
        return encoding.windows(context.tokenizer, text, context.longest, stride)

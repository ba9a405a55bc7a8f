"""What a trained model says of texts: a continuation, translations, or classes."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.attention import cache as caches
from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.data.encoding import cut, ragged
from transformer_jax.data.tokenizers import require_texts, require_unicode
from transformer_jax.decoding.beam_search import beam_search
from transformer_jax.decoding.sampling import sample_tokens
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference.requirements import check_text, line_of_input, require_one_text
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.partitioning.partitioner import to_host

# Prompts are padded to a multiple of so many tokens, so that few shapes are compiled.
PROMPT_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class Generator:
    """A language model that continues prompts; it keeps what it compiles between calls."""

    trained: TrainedRun
    max_tokens: int  # at most so many follow the prompt, 1 or more
    stop: Sequence[str] = ()  # texts that end a continuation; they are left out

    def __post_init__(self):
        require_texts(self.stop, 'stop')
        for text in self.stop:
            require_unicode(text, 'stop')
            if not text:
                raise ConfigError("stop='' is empty: give a text, or leave it out")

    def continue_text(self, prompt: str, seed: int) -> Iterator[str]:
        """Return a continuation by `decode.method`: of beam search at once, else as `stream`."""
        settings = self.trained.config.decode
        if settings.method == 'beam' and settings.beam > 1:
            return iter([self.search(prompt)])
        return self.stream(prompt, seed)

    def stream(self, prompt: str, seed: int) -> Iterator[str]:
        """Return a continuation in pieces, which come as its tokens are sampled.

        It ends at EOS, before a stop text, or after `max_tokens`.

        Args:
            prompt: the text to continue; may be empty.
            seed: of the tokens that `decode.method='sample'` takes.

        Raises:
            DataError: the prompt and what may follow it are longer than the model can read.
        """
        return self._pieces(prompt, self._encode(prompt), seed)

    def _pieces(self, prompt: str, ids: list[int], seed: int) -> Iterator[str]:
        settings = self.trained.config.decode
        cache, memory = self._compiled_start(self.trained.params, *self._padded(ids))
        key, token, tokens, shown = jax.random.PRNGKey(seed), BOS, [], ''
        temperature = settings.temperature if settings.method == 'sample' else 0.0
        for t in range(self.max_tokens):
            last_1, step_key = jnp.full(1, token, jnp.int32), jax.random.fold_in(key, t)
            token_1, cache = self._compiled_step(
                self.trained.params, last_1, cache, memory, step_key, temperature
            )
            token = int(to_host(token_1)[0])
            if token != EOS:
                tokens.append(token)
            text = self._continuation(prompt, ids, tokens)
            ended = token == EOS or t + 1 == self.max_tokens
            before_stop = self._cut_at_stop(text)
            if len(before_stop) < len(text):
                text, ended = before_stop, True
            # Letters wait that a later token may turn into a stop text, or into a character of
            # which some bytes are missing.
            sure = text if ended else text[: len(text) - self._unsettled(text)]
            if len(sure) > len(shown):
                yield sure[len(shown) :]
                shown = sure
            if ended:
                return

    def search(self, prompt: str) -> str:
        """Return the best continuation that beam search finds.

        It ends as that of `stream`; one that is as long as `max_tokens` allows need not end there.

        Raises:
            DataError: as `stream`.
        """
        ids = self._encode(prompt)
        found = self._compiled_search(self.trained.params, *self._padded(ids))
        tokens = to_host(found.tokens_BKT)[0, 0].tolist()
        return self._cut_at_stop(self._continuation(prompt, ids, tokens))

    def _continuation(self, prompt: str, ids: Sequence[int], tokens: Sequence[int]) -> str:
        """Return what tokens add to the text of a prompt, the space before a word included."""
        decode = self.trained.data.tokenizer.decode
        before, whole = decode([ids, [*ids, *tokens]])
        # Older vocabularies lose a space at the end of the prompt, which was printed.
        lost = prompt.endswith(' ') and not before.endswith(' ')
        return whole[len(before) :].removeprefix(' ' if lost else '')

    def _encode(self, prompt: str) -> list[int]:
        check_text(self.trained, prompt, 'the prompt')
        [ids] = self.trained.data.tokenizer.encode([prompt])
        architecture = self.trained.model.architecture
        if len(ids) + self.max_tokens > architecture.max_length:
            raise DataError(
                f'the prompt has {len(ids)} tokens and max_tokens={self.max_tokens} more may '
                f'follow, but the model reads {architecture.max_length} at most: shorten the '
                'prompt, or lower max_tokens'
            )
        prefix = architecture.prefix_length
        if prefix > 1 and len(ids) < prefix:
            raise DataError(
                f'the prompt has {len(ids)} tokens, but the model sees a prefix of {prefix} at '
                'once: give it that many'
            )
        return ids

    def _padded(self, ids: Sequence[int]) -> tuple[np.ndarray, Tokens]:
        """Lay out a prompt as one row: (source_1S, positions and segments)."""
        length = -(-max(len(ids), 1) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
        source, positions, segments = np.zeros((3, 1, length), np.int32)
        source[0, : len(ids)] = ids
        positions[0, : len(ids)] = range(len(ids))
        segments[0, : len(ids)] = 1
        return source, Tokens(positions, segments)

    @functools.cached_property
    def _compiled_start(self) -> Any:
        def start(params, source_1S, tokens):
            return self.trained.model.apply(
                {'params': params}, source_1S, tokens, self.max_tokens, method='start'
            )

        return self.trained.partitioner.compile(start)

    @functools.cached_property
    def _compiled_step(self) -> Any:
        settings = self.trained.config.decode

        def step(params, token_1, cache, memory, key, temperature):
            logits_1V, cache = self.trained.model.apply(
                {'params': params}, token_1, cache, memory, method='step'
            )
            token_1 = sample_tokens(
                logits_1V, key[None], temperature, settings.top_k, settings.top_p
            )
            return token_1, cache

        return self.trained.partitioner.compile(step, static_argnums=5)

    @functools.cached_property
    def _compiled_search(self) -> Any:
        settings, model = self.trained.config.decode, self.trained.model

        def search(params, source_1S, tokens):
            variables, room = {'params': params}, self.max_tokens * settings.beam
            cache, memory = model.apply(variables, source_1S, tokens, room, method='start')
            return beam_search(
                lambda tokens_R, cache: model.apply(
                    variables, tokens_R, cache, memory, method='step'
                ),
                cache,
                caches.reorder,
                jnp.full(1, self.max_tokens, jnp.int32),
                beam=settings.beam,
                max_len=self.max_tokens,
                alpha=settings.length_penalty,
                open_end=True,
            )

        return self.trained.partitioner.compile(search)

    def _cut_at_stop(self, text: str) -> str:
        """Cut a text before the first stop text in it."""
        return text[: min((text.find(stop) for stop in self.stop if stop in text), default=None)]

    def _unsettled(self, text: str) -> int:
        """Count the letters at the end that a later token may change or make a stop text."""
        starts = [n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max([*starts, len(text) - len(text.rstrip('\N{REPLACEMENT CHARACTER}'))])


def translate(
    trained: TrainedRun,
    chunks: Iterable[Sequence[str]],
    name: Callable[[int], str] = line_of_input,
) -> Iterator[list[str]]:
    """Yield the translations of each chunk of lines, one line for each.

    Args:
        trained: the model.
        chunks: lines to translate; a chunk is taken when the one before is translated.
        name: names a line in messages, given its number from 0.

    Raises:
        DataError: a line that the model cannot read, see `check_text`; those before it in its
            chunk are translated first.
    """
    first = 0
    for lines in chunks:
        error = None
        for number, line in enumerate(lines):
            try:
                check_text(trained, line, name(first + number))
            except DataError as found:
                lines, error = lines[:number], found
                break
        yield trained.evaluator.translate(trained.params, lines, first=first)
        if error:
            raise error
        first += len(lines)


def classify(
    trained: TrainedRun, texts: Iterable[str], name: Callable[[int], str] = line_of_input
) -> Iterator[tuple[str, float]]:
    """Yield the most likely class of each text, and its probability.

    Texts longer than the rows of the model are cut: the log names the first, and at the end their
    number.

    Args:
        trained: the model.
        texts: a text is taken when the one before is classified.
        name: names a text in messages, given its number from 0.

    Raises:
        DataError: a text without tokens, or one that the model cannot read, see `check_text`.
        ConfigError: the model reads two texts at once.
    """
    require_one_text(trained)
    classes = trained.data.task.classes()
    lengths = trained.data.batching.row_lengths()

    def probabilities(params, batch):
        logits_BTV = cast(jax.Array, trained.model.apply({'params': params}, batch))
        return jax.nn.softmax(logits_BTV)

    forward = trained.partitioner.compile(probabilities)
    long = 0
    for number, text in enumerate(texts):
        if not text.strip():
            raise DataError(f'{name(number)}: an empty text has no class')
        check_text(trained, text, name(number))
        whole = ragged(trained.data.tokenizer, [text])
        if len(whole.values) > lengths[-1]:
            long += 1
            if long == 1:
                trained.log(
                    f'texts longer than {lengths[-1]} tokens are cut (first: {name(number)})'
                )
        sentence = cut(whole, lengths[-1]).values
        length = next(length for length in lengths if len(sentence) <= length)
        shares_11V = to_host(forward(trained.params, _class_batch(sentence, length)))
        best = int(shares_11V[0, 0].argmax())
        yield classes[best], float(shares_11V[0, 0, best])
    if long:
        trained.log(f'texts longer than {lengths[-1]} tokens cut: {long}')


def _class_batch(sentence: np.ndarray, length: int) -> Batch:
    """Make a batch of one text, in a row of `length` tokens, with a dummy class as its target."""
    source, positions, segments = np.zeros((3, 1, length), np.int32)
    source[0, : len(sentence)] = sentence
    positions[0, : len(sentence)] = range(len(sentence))
    segments[0, : len(sentence)] = 1
    one_11, zero_11 = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int32)
    weights_11 = np.ones((1, 1), np.float32)
    return Batch(source, positions, segments, one_11, one_11, zero_11, one_11, weights_11)

"""What a trained model says of a single text: a continuation, token by token, or its class."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.data.encoding import cut, ragged
from transformer_jax.decoding.decoder import make_decoder
from transformer_jax.decoding.sampling import sample_tokens
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.evaluation.evaluator import Trained
from transformer_jax.models import MODELS

FEW = 16  # prompts are padded to a multiple of so many tokens: few shapes are compiled


def require_ability(trained: Trained, command: str) -> None:
    """Raises ConfigError where a model cannot do what is asked of it; the message says what
    it can.
    """
    kind = trained.config.model.kind
    if command not in MODELS[kind].commands:
        raise ConfigError(
            f'{command}: {trained.workdir.path} holds a model of kind {kind!r}, which cannot; it can '
            f'{", ".join(MODELS[kind].commands)} and evaluate'
        )


@dataclasses.dataclass(frozen=True)
class Generator:
    """A language model that continues prompts; compiled functions are kept between calls."""

    trained: Trained
    max_tokens: int
    stop: tuple[str, ...] = ()

    def stream(self, prompt: str, seed: int) -> Iterator[str]:
        """The continuation in pieces, as it is drawn: until EOS, a stop string (left out) or
        `max_tokens`.

        Raises:
            DataError: the prompt and what may follow it are longer than the model can read.
        """
        ids, settings = self._encode(prompt), self.trained.config.decode
        cache, memory = self._start(ids)
        key, token, found, told = jax.random.PRNGKey(seed), BOS, [], ''
        temperature = settings.temperature if settings.method == 'sample' else 0.0
        for t in range(self.max_tokens):
            token, cache = self._next(token, cache, memory, jax.random.fold_in(key, t), temperature)
            found += [] if token == EOS else [token]
            [text] = self.trained.data.tokenizer.decode([found])
            ended = token == EOS or t + 1 == self.max_tokens
            cut = min((text.find(stop) for stop in self.stop if stop in text), default=-1)
            if cut >= 0:
                text, ended = text[:cut], True
            # What may yet become a stop string, or a character of which some bytes are
            # missing, waits.
            sure = text if ended else text[: len(text) - self._held(text)]
            if len(sure) > len(told):
                yield sure[len(told) :]
                told = sure
            if ended:
                return

    def search(self, prompt: str) -> str:
        """The best continuation that beam search finds."""
        ids = self._encode(prompt)
        source = self._padded(ids)
        settings = dataclasses.replace(
            self.trained.config.decode, method='beam', max_len=self.max_tokens - len(ids)
        )
        decoder = make_decoder(self.trained.model, settings, self.trained.data.tokenizer.vocab_size)
        with self.trained.partitioner.context():
            tokens_1T, _ = decoder(
                self.trained.params, *source, jax.random.PRNGKey(0), np.zeros(1, np.int32)
            )
        [text] = self.trained.data.tokenizer.decode(np.asarray(tokens_1T).tolist())
        return text[
            : min((text.find(stop) for stop in self.stop if stop in text), default=len(text))
        ]

    def _encode(self, prompt: str) -> list[int]:
        [ids] = self.trained.data.tokenizer.encode([prompt])
        longest = self.trained.model.architecture.max_length
        if len(ids) + self.max_tokens > longest:
            raise DataError(
                f'the prompt has {len(ids)} tokens and --max_tokens={self.max_tokens} more may follow, but '
                f'the model reads {longest} at most: shorten the prompt, or lower --max_tokens'
            )
        prefix = self.trained.model.architecture.prefix_length
        if prefix > 1 and len(ids) < prefix:
            raise DataError(
                f'the prompt has {len(ids)} tokens, but the model sees a prefix of {prefix} at once: give '
                'it that many'
            )
        return ids

    def _padded(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, positions, segments) of one row."""
        row = np.zeros((3, 1, -(-max(len(ids), 1) // FEW) * FEW), np.int32)
        row[:, 0, : len(ids)] = ids, range(len(ids)), np.ones(len(ids))
        return tuple(row)

    def _start(self, ids: Sequence[int]) -> tuple[Any, Any]:
        source_1S, *places = self._padded(ids)
        with self.trained.partitioner.context():
            return self._compiled_start(self.trained.params, source_1S, Tokens(*places))

    @functools.cached_property
    def _compiled_start(self) -> Any:
        return jax.jit(
            lambda params, source_1S, tokens: self.trained.model.apply(
                {'params': params}, source_1S, tokens, self.max_tokens, method='start'
            )
        )

    def _next(
        self, token: int, cache: Any, memory: Any, key: jax.Array, temperature: float
    ) -> tuple[int, Any]:
        with self.trained.partitioner.context():
            token_1, cache = self._compiled_step(
                self.trained.params, jnp.full(1, token, jnp.int32), cache, memory, key, temperature
            )
        return int(token_1[0]), cache

    @functools.cached_property
    def _compiled_step(self) -> Any:
        settings = self.trained.config.decode

        @functools.partial(jax.jit, static_argnums=5)
        def step(params, token_1, cache, memory, key, temperature):
            logits_1V, cache = self.trained.model.apply(
                {'params': params}, token_1, cache, memory, method='step'
            )
            return sample_tokens(
                logits_1V, key[None], temperature, settings.top_k, settings.top_p
            ), cache

        return step

    def _held(self, text: str) -> int:
        """Letters at the end of a text that a later token may change, or make part of a
        stop string.
        """
        starts = [n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max([*starts, len(text) - len(text.rstrip('�'))])


def classify(trained: Trained, texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The most likely class of each text, and its probability.

    Raises:
        DataError: a text without tokens.
    """
    classes = trained.data.task.classes()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f'standard input:{number}: an empty line has no class')
    lengths = trained.data.batching.row_lengths()
    forward = jax.jit(
        lambda params, batch: jax.nn.softmax(trained.model.apply({'params': params}, batch))
    )
    sentences = cut(ragged(trained.data.tokenizer, texts), lengths[-1])
    for number in range(len(texts)):
        sentence, _ = sentences.take(np.array([number]))
        length = next(length for length in lengths if len(sentence) <= length)
        row = np.zeros((3, 1, length), np.int32)
        row[:, 0, : len(sentence)] = sentence, range(len(sentence)), np.ones(len(sentence))
        one_11 = np.ones((1, 1), np.int32)
        with trained.partitioner.context():
            shares_11V = forward(
                trained.params, Batch(*row, one_11, one_11, 0 * one_11, one_11, one_11 * 1.0)
            )
        best = int(shares_11V[0, 0].argmax())
        yield classes[best], float(shares_11V[0, 0, best])

"""A trained run as a notebook uses it: texts, attention, probes and metrics in one object."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import flax.linen as nn
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from transformer_jax import spec
from transformer_jax.config.arguments import checked
from transformer_jax.data.tokenizers import Tokenizer, require_texts
from transformer_jax.display.attention_heads import attention_figure
from transformer_jax.display.data_table import Table
from transformer_jax.errors import ConfigError
from transformer_jax.inference import generate, probes, requirements
from transformer_jax.inference.attention_maps import attend_to_text
from transformer_jax.inference.decode_keys import Decoding
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.metrics_writer import read_metrics

LOGGED = ('train', 'validation', 'skipped')  # the splits of metrics.jsonl


class Run:
    """A run that has been trained, or still trains, read from its workdir; see `open_run`.

    Example:
        >>> run = transformer_jax.open_run('runs/demo')
        >>> run.translate(['twenty-four'])
        ['vierundzwanzig']
    """

    def __init__(self, trained: TrainedRun):
        self._trained = trained
        self._by_decoding = {repr([]): trained}  # keyed by the keys that were replaced
        self._generators: dict[Any, generate.Generator] = {}

    def __repr__(self) -> str:
        steps = ', '.join(map(str, self.steps))
        return f'Run({str(self.workdir)!r}, {self.config.model.kind}, step {steps})'

    @property
    def workdir(self) -> epath.Path:
        """The directory that the run was read from."""
        return self._trained.workdir.path

    @property
    def config(self) -> ExperimentConfig:
        """The configuration of training, but with the mesh and the engines of this machine."""
        return self._trained.config

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps whose parameters these are, newest first; several are averaged."""
        return self._trained.steps

    @property
    def model(self) -> nn.Module:
        """The Flax module: `run.model.apply({'params': run.params}, batch)` gives logits_BTV."""
        return self._trained.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters, nested dictionaries of float32 arrays; of `train.ema` the average."""
        return self._trained.params

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: `encode(texts)`, `decode(ids)`, `pieces(ids)`, `vocab_size`."""
        return self._trained.data.tokenizer

    @checked
    def translate(self, texts: Sequence[str], **decode: Unpack[Decoding]) -> list[str]:
        """Translate texts.

        Args:
            texts: sentences; longer ones than the model reads are cut, which is logged.
            **decode: replace keys of `decode`, as `beam=1` for greedy search; a key that only one
                method reads selects that method.

        Returns:
            one translation for each text, '' for an empty one.

        Raises:
            ConfigError: the model does not translate, or a key of `decode` cannot be used.

        Example:
            >>> run.translate(['seven', 'twenty-four'], beam=4)
            ['sieben', 'vierundzwanzig']
        """
        self._require('translate')
        trained = self._decoding(decode)
        require_texts(texts)
        [translations] = generate.translate(trained, [texts], requirements.item_of_texts)
        return translations

    @checked
    def generate(
        self,
        prompt: str = '',
        max_tokens: int = 256,
        seed: int = 0,
        stop: Sequence[str] = (),
        **decode: Unpack[Decoding],
    ) -> str:
        """Continue a text with a language model.

        Args:
            prompt: the text to continue; it is not repeated in the result.
            max_tokens: at most so many tokens follow, 1 or more.
            seed: of sampling, from 0 to 2³² − 1; the same seed gives the same text.
            stop: texts that end the continuation; they are left out.
            **decode: replace keys of `decode`, as `temperature=0.8, top_k=40` for sampling or
                `beam=4` for beam search; `max_tokens` stands in place of max_extra_tokens.

        Returns:
            the continuation.

        Raises:
            ConfigError: the model is no language model, or a key of `decode` cannot be used.
            DataError: prompt and continuation may be longer than the model can read.

        Example:
            >>> run.generate('ROMEO:', max_tokens=100, temperature=0.8)
        """
        self._require('generate')
        if 'max_extra_tokens' in decode:
            raise ConfigError(
                f'max_extra_tokens={decode["max_extra_tokens"]!r} has no effect on a continuation: '
                'give max_tokens'
            )
        trained = self._decoding(decode)
        require_texts(stop, 'stop')
        key = trained.config.decode, max_tokens, tuple(stop)
        if key not in self._generators:
            self._generators[key] = generate.Generator(trained, max_tokens, tuple(stop))
        return ''.join(self._generators[key].continue_text(prompt, seed))

    @checked
    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return the most likely class of each text and its probability.

        Raises:
            ConfigError: the model is no classifier.
            DataError: a text is empty.

        Example:
            >>> run.classify(['a fine film', 'two hours lost'])
            [('positive', 0.93), ('negative', 0.88)]
        """
        self._require('classify')
        require_texts(texts)
        return list(generate.classify(self._trained, texts, requirements.item_of_texts))

    @checked
    def evaluate(self, split: str = 'test', **decode: Unpack[Decoding]) -> dict[str, Any]:
        """Measure all metrics of a split, as the command `evaluate` does.

        The scores are appended to evaluations.json of the workdir, translations are written to its
        samples/.

        Args:
            split: 'validation' or 'test'.
            **decode: replace keys of `decode`, as in `translate`.

        Returns:
            the scores by name, and what they are of: split, checkpoint, steps, intervals,
            signatures.

        Example:
            >>> run.evaluate('test')['bleu']
        """
        requirements.require_decoding(self._trained, decode)
        return self._decoding(decode).evaluate(_split(split)).scores

    @checked
    def attention_weights(self, text: str, target: str | None = None) -> dict[str, np.ndarray]:
        """Compute the attention weights of every head while the model reads a text.

        A model that translates reads the text and writes its translation; a language model writes
        the text; a classifier reads it. Every text ends with EOS, which counts as a token.

        Args:
            text: S tokens, or T of a language model.
            target: the T tokens of the translation; by default the model's own translation.

        Returns:
            float32 arrays of the stacks that the model has: 'encoder' [L, N, S, S], 'decoder'
            [L, N, T, T], 'cross' [L, N, T, S], with L layers and N heads. Row t is the step that
            writes token t; column t of 'decoder' is its input, one token earlier: BOS first.

        Raises:
            DataError: a text is empty, or longer than those of training.
            ConfigError: the model has no attention, or no target text.

        Example:
            >>> run.attention_weights('twenty-four')['cross'][1, 0].sum(-1)  # layer 1, head 0
        """
        return attend_to_text(self._trained, text, target).weights

    @checked
    def plot_attention(
        self,
        text: str,
        layer: int | None = None,
        head: int | None = None,
        stack: str = '',
        target: str | None = None,
    ) -> Figure:
        """Draw the attention weights of a text as heat maps with its tokens.

        Args:
            text: see `attention_weights`.
            layer: draw only this layer, from 0; by default all.
            head: draw only this head, from 0; by default all.
            stack: draw only 'encoder', 'decoder' or 'cross'; by default all.
            target: see `attention_weights`.

        Returns:
            a figure, which a notebook shows; `savefig(path)` writes it.

        Raises:
            DataError, ConfigError: as `attention_weights`, or there is no such stack, layer or
                head.

        Example:
            >>> run.plot_attention('twenty-four', layer=1, head=0, stack='cross')
        """
        found = attend_to_text(self._trained, text, target)
        weights = found.weights
        if stack:
            if stack not in weights:
                raise ConfigError(f'stack={stack!r}: {spec.nearest(stack, weights)}')
            weights = {stack: weights[stack]}
        return attention_figure(weights, found.source_tokens, found.target_tokens, layer, head)

    @checked
    def probes(self, split: str = 'validation', batches: int = 4) -> Table:
        """Measure every attention head over some batches of a split.

        Args:
            split: 'validation' or 'test'.
            batches: how many batches are read, 1 or more, taken evenly from short rows to long
                ones; all where there are fewer.

        Returns:
            one row for each head: site, layer and head (from 0), entropy (nats),
            normalized_entropy, distance (tokens), sink (weight on the first token), max_logit,
            logit_std (of scores). None where a number has no meaning.

        Raises:
            ConfigError: a model without attention.

        Example:
            >>> run.probes()['entropy'].min()
        """
        [checkpoint] = probes.probe(self._trained, _split(split), batches)['checkpoints']
        return Table(checkpoint['sites'])

    @checked
    def metrics(self, split: str = '') -> Table:
        """Read what was logged during training.

        Args:
            split: 'train', 'validation' or 'skipped' (steps whose update was not finite); by
                default all, in the order of the log.

        Returns:
            one row for each line of metrics.jsonl, with its `step`.

        Raises:
            WorkdirError: a line of the file is damaged.
            ConfigError: there is no such split.

        Example:
            >>> run.metrics('train')['loss']  # a NumPy array
        """
        if split and split not in LOGGED:
            raise ConfigError(f'split={split!r}: {spec.nearest(split, LOGGED)}')
        events = read_metrics(self._trained.workdir.metrics_path)
        return Table([event for event in events if event['split'] == split or not split])

    def _require(self, command: str) -> None:
        requirements.require_ability(self._trained, command)

    def _decoding(self, decode: Mapping[str, Any]) -> TrainedRun:
        """Return the run with some keys of `decode` replaced; what it compiled is kept."""
        key = repr(sorted(decode.items()))
        if key not in self._by_decoding:
            self._by_decoding[key] = self._trained.with_decoding(decode)
        return self._by_decoding[key]


def _split(split: str) -> str:
    if split not in ('validation', 'test'):
        raise ConfigError(f"split={split!r}: it is 'validation' or 'test'")
    return split

"""The attention weights of every head of a trained model while it reads a text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from transformer_jax import spec
from transformer_jax.batch import BOS, EOS, Batch
from transformer_jax.display.attention_heads import draw_attention
from transformer_jax.display.figures import check_figure
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference.requirements import check_text, require_one_text
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.layers.recurrent import RNNS
from transformer_jax.models import MODELS
from transformer_jax.partitioning.partitioner import to_host
from transformer_jax.storage.processes import write_once


class TextAttention(NamedTuple):
    """The attention weights of a model that reads a text, and the tokens that they belong to."""

    weights: dict[str, np.ndarray]  # see `attention_weights`
    source_tokens: list[str]  # S labels; none of a language model
    target_tokens: list[str]  # T labels, those of the targets; none of a classifier
    translation: str | None  # None of a model that writes none


def attention_weights(
    model: nn.Module,
    params: Any,
    source_S: Sequence[int] | None,
    target_T: Sequence[int] | None,
) -> dict[str, np.ndarray]:
    """Compute the attention weights of every head while a model reads and writes a sentence.

    Targets are teacher-forced.

    Args:
        model: of any kind, a Transformer or recurrent.
        params: its parameters, unboxed.
        source_S: token ids, EOS included; None of a language model.
        target_T: token ids, EOS included; None of a classifier.

    Returns:
        float32 weights by layer and head, of the stacks that the model has: 'encoder'
        [L, N, S, S], 'decoder' [L, N, T, T], 'cross' [L, N, T, S]. Row t of the last two is the
        step that produces target t; column t of 'decoder' is its input: BOS, then the targets. A
        recurrent model has 'cross' alone, with L = N = 1. A classifier with `model.pooling='first'`
        reads a BOS for each tower before the S tokens.

    Raises:
        ConfigError: a recurrent model without attention.
    """
    intermediates = jax.tree.map(
        to_host, _intermediates(model, params, _one_row(source_S, target_T))
    )
    architecture = model.architecture
    if not architecture.sites:  # a recurrent model
        if not intermediates:
            cell = spec.text(architecture.cell, RNNS)
            raise ConfigError(f'model.rnn={cell!r} has no attention to draw')
        return {'cross': intermediates['weights_BNTS'][0]}
    stacks: dict[str, list[np.ndarray]] = {}
    for site, layer in architecture.sites:
        block = intermediates[f'{"encoder" if site == "encoder" else "decoder"}_{layer}']
        [weights_BNTS] = block['cross' if site == 'cross' else 'attention']['weights_BNTS']
        stacks.setdefault(site, []).append(weights_BNTS[0])
    return {site: np.stack(weights) for site, weights in stacks.items()}


def _one_row(source_S: Sequence[int] | None, target_T: Sequence[int] | None) -> Batch:
    """Make a batch of one row that holds one pair of sentences, or one sentence."""
    if source_S is None:
        source = (None, None, None)
    else:
        source_1S = np.asarray(source_S, np.int32)[None]
        positions_1S = np.arange(len(source_S), dtype=np.int32)[None]
        source = (source_1S, positions_1S, np.ones_like(source_1S))
    # A classifier's target is one class: which one has no influence on attention.
    target_1T = np.asarray([0] if target_T is None else target_T, np.int32)[None]
    length = target_1T.shape[1]
    return Batch(
        *source,
        np.concatenate([[[BOS]], target_1T[:, :-1]], axis=1, dtype=np.int32),
        target_1T,
        np.arange(length, dtype=np.int32)[None],
        np.ones_like(target_1T),
        np.ones((1, length), np.float32),
    )


@functools.partial(jax.jit, static_argnums=0)
def _intermediates(model: nn.Module, params: Any, batch: Batch) -> Any:
    _, sown = model.apply({'params': params}, batch, method='features', mutable=['intermediates'])
    return sown['intermediates'] if sown else {}


def attend_to_text(trained: TrainedRun, text: str, target: str | None = None) -> TextAttention:
    """Compute the attention weights of a trained model of any kind while it reads a text.

    A model that translates reads the text and writes its translation, a language model writes the
    text itself, a classifier reads it.

    Args:
        trained: the model.
        text: of 1 token or more; at most as long as the rows that the model was trained on.
        target: the translation to write; by default the model's own.

    Raises:
        DataError: a text is empty or too long.
        ConfigError: a target of a model that does not translate, or a model without attention.
    """
    kind = MODELS[trained.model.architecture.kind]
    if not kind.reads_source or kind.predicts_class:
        if target is not None:
            raise ConfigError(f'model.kind={trained.config.model.kind!r} has no target text')
        return _attend_to_one(trained, text, kind.predicts_class)
    source = _tokens(trained, text)
    if target is None:
        [target] = trained.evaluator.translate(trained.params, [text])
        written = [*trained.data.tokenizer.encode([target])[0], EOS]
    else:
        written = _tokens(trained, target)
    weights = attention_weights(trained.model, trained.params, source, written)
    pieces = trained.data.tokenizer.pieces
    return TextAttention(weights, pieces(source), pieces(written), target)


def _attend_to_one(trained: TrainedRun, text: str, is_source: bool) -> TextAttention:
    """Compute the weights of a model that reads one text: a classifier or a language model."""
    tokens, architecture = _tokens(trained, text), trained.model.architecture
    if is_source:
        require_one_text(trained)
        weights = attention_weights(trained.model, trained.params, tokens, None)
        added = ['<s>'] if architecture.pooling == 'first' else []
        labels = added + trained.data.tokenizer.pieces(tokens)
        return TextAttention(weights, labels, [], None)
    weights = attention_weights(trained.model, trained.params, None, tokens)
    return TextAttention(weights, [], trained.data.tokenizer.pieces(tokens), None)


def _tokens(trained: TrainedRun, text: str) -> list[int]:
    """Encode a text with its EOS, or raise DataError where it is empty or too long."""
    check_text(trained, text, 'the text')
    longest = trained.data.batching.row_lengths()[-1]
    tokens = [*trained.data.tokenizer.encode([text])[0], EOS]
    if not 1 < len(tokens) <= longest:
        raise DataError(
            f'the text has {len(tokens) - 1} tokens; a picture of attention needs 1 to '
            f'{longest - 1}'
        )
    return tokens


def draw_text(
    trained: TrainedRun, text: str, path: epath.PathLike, show: Callable[[str], None]
) -> list[epath.Path]:
    """Draw the attention weights of a model of any kind while it reads a text.

    Args:
        trained: the model, see `attend_to_text`.
        text: of 1 token or more.
        path: of the picture; its suffix says the format.
        show: receives the translation, if the model translates, before the picture is drawn.

    Returns:
        the files written; of several processes, process 0 writes them.

    Raises:
        DataError: an empty text, or one that is longer than what the model reads.
        ConfigError: the suffix of `path` is not that of a picture, or the model has no attention.
        WorkdirError: the picture cannot be written.
    """
    check_figure(epath.Path(path))
    found = attend_to_text(trained, text)
    if found.translation is not None:
        show(found.translation)
    files: list[epath.Path] = []
    write_once(
        lambda: files.extend(
            draw_attention(found.weights, found.source_tokens, found.target_tokens, path)
        )
    )
    return files

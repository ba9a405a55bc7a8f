"""The attention weights of every head of a trained model while it translates a sentence."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from transformer_jax import spec
from transformer_jax.batch import BOS, EOS, Batch
from transformer_jax.display.attention_heads import draw_attention
from transformer_jax.display.figures import check_format
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.layers.recurrent import RNNS


def attention_weights(
    model: nn.Module, params: Any, source_S: Sequence[int], target_T: Sequence[int]
) -> dict[str, np.ndarray]:
    """Compute the attention weights of every head while a model reads and writes a sentence.

    The translation is teacher-forced.

    Args:
        model: an encoder-decoder, a Transformer or recurrent.
        params: its parameters, unboxed.
        source_S: token ids, EOS included.
        target_T: token ids, EOS included.

    Returns:
        float32 weights by layer and head: 'encoder' [L, N, S, S], 'decoder' [L, N, T, T], 'cross'
        [L, N, T, S]. Row t of the last two is the step that produces target t; column t of
        'decoder' is its input: BOS, then the targets. A recurrent model has 'cross' alone, with
        L = N = 1.

    Raises:
        ConfigError: a recurrent model without attention.
    """
    intermediates = jax.device_get(_intermediates(model, params, _one_pair(source_S, target_T)))
    architecture = model.architecture
    if not architecture.sites:  # a recurrent model
        if not intermediates:
            cell = spec.text(architecture.cell, RNNS)
            raise ConfigError(f'model.rnn={cell!r} has no attention to draw')
        return {'cross': intermediates['weights_BNTS'][0]}

    def stack(blocks: str, layers: int, site: str) -> np.ndarray:
        of_layers = (intermediates[f'{blocks}_{layer}'] for layer in range(layers))
        return np.stack([layer[site]['weights_BNTS'][0][0] for layer in of_layers])

    return {
        'encoder': stack('encoder', architecture.encoder_layers, 'attention'),
        'decoder': stack('decoder', architecture.decoder_layers, 'attention'),
        'cross': stack('decoder', architecture.decoder_layers, 'cross'),
    }


def _one_pair(source_S: Sequence[int], target_T: Sequence[int]) -> Batch:
    """Make a batch of one row that holds one pair of sentences."""
    source_1S = np.asarray(source_S, np.int32)[None]
    target_1T = np.asarray(target_T, np.int32)[None]
    inputs_1T = np.asarray([BOS, *target_T[:-1]], np.int32)[None]
    return Batch(
        source_1S,
        np.arange(len(source_S), dtype=np.int32)[None],
        np.ones_like(source_1S),
        inputs_1T,
        target_1T,
        np.arange(len(target_T), dtype=np.int32)[None],
        np.ones_like(target_1T),
        np.ones(target_1T.shape, np.float32),
    )


@functools.partial(jax.jit, static_argnums=0)
def _intermediates(model: nn.Module, params: Any, batch: Batch) -> Any:
    _, sown = model.apply({'params': params}, batch, method='features', mutable=['intermediates'])
    return sown['intermediates'] if sown else {}


def draw_translation(
    trained: TrainedRun, text: str, path: epath.PathLike
) -> tuple[str, list[epath.Path]]:
    """Translate a sentence and draw its attention weights.

    Args:
        trained: an encoder-decoder.
        text: the sentence.
        path: of the picture; its suffix says the format.

    Returns:
        (the translation, the files written).

    Raises:
        DataError: an empty text, or one that is longer than what the model reads.
        ConfigError: the suffix of `path` is not that of a picture.
    """
    check_format(epath.Path(path))
    tokenizer = trained.data.tokenizer
    longest = trained.data.batching.row_lengths()[-1]
    source = [*tokenizer.encode([text])[0], EOS]
    if not 1 < len(source) <= longest:
        raise DataError(f'--text has {len(source) - 1} tokens; a picture needs 1 to {longest - 1}')
    [hypothesis] = trained.evaluator.translate(trained.params, [text])
    target = [*tokenizer.encode([hypothesis])[0], EOS]
    weights = attention_weights(trained.model, trained.params, source, target)
    pieces = tokenizer.pieces(source), tokenizer.pieces(target)
    return hypothesis, draw_attention(weights, *pieces, path)

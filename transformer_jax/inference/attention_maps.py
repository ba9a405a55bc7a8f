"""Where every attention head of a trained model looks while it translates a sentence."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from transformer_jax.batch import BOS, EOS, Batch
from transformer_jax.display.figures import check_format, draw_attention
from transformer_jax.errors import ConfigError, DataError
from transformer_jax.evaluation.evaluator import Trained


def attention_weights(
    model: nn.Module, params: Any, source_S: Sequence[int], target_T: Sequence[int]
) -> dict[str, np.ndarray]:
    """Where every head looks while the model reads a sentence and, teacher-forced, writes its
    translation.

    Args:
        model: an encoder-decoder, a Transformer or recurrent.
        params: its parameters.
        source_S: token ids, EOS included.
        target_T: token ids, EOS included.

    Returns:
        float32 weights by layer and head: 'encoder' [L, N, S, S], 'decoder' [L, N, T, T], 'cross'
        [L, N, T, S]. Row t of the last two is the step that produces target t; column t of
        'decoder' is its input: BOS, then the targets. A recurrent model has 'cross' alone,
        L = N = 1.

    Raises:
        ConfigError: a recurrent model without attention.
    """
    sides = [np.asarray(ids, np.int32)[None] for ids in (source_S, [BOS, *target_T[:-1]], target_T)]
    source_BS, inputs_BT, targets_BT = sides
    places = [
        (np.arange(a.shape[1], dtype=np.int32)[None], np.ones_like(a))
        for a in (source_BS, targets_BT)
    ]
    batch = Batch(
        source_BS,
        *places[0],
        inputs_BT,
        targets_BT,
        *places[1],
        np.ones(targets_BT.shape, np.float32),
    )
    sown = jax.device_get(_intermediates(model, params, batch))

    def stack(blocks: str, layers: int, site: str) -> np.ndarray:
        return np.stack(
            [sown[f'{blocks}_{layer}'][site]['weights_BNTS'][0][0] for layer in range(layers)]
        )

    architecture = model.architecture
    if not architecture.sites:  # a recurrent model
        if not sown:
            raise ConfigError('model.rnn has no attention to draw')
        return {'cross': sown['weights_BNTS'][0]}
    return {
        'encoder': stack('encoder', architecture.encoder_layers, 'attention'),
        'decoder': stack('decoder', architecture.decoder_layers, 'attention'),
        'cross': stack('decoder', architecture.decoder_layers, 'cross'),
    }


@functools.partial(jax.jit, static_argnums=0)
def _intermediates(model: nn.Module, params: Any, batch: Batch) -> Any:
    _, sown = model.apply({'params': params}, batch, method='features', mutable=['intermediates'])
    return sown['intermediates'] if sown else {}


def draw_translation(
    trained: Trained, text: str, path: epath.PathLike
) -> tuple[str, list[epath.Path]]:
    """Translates a sentence and draws the attention of it; returns (the translation, the
    files written).

    Raises:
        DataError: an empty text, or one that is longer than what the model reads.
        ConfigError: `path` has a suffix that is no picture's.
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
    return hypothesis, draw_attention(
        weights, tokenizer.pieces(source), tokenizer.pieces(target), path
    )

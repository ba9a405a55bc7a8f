"""How a model does at each length, those beyond training included: `evaluate --lengths=…`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from transformer_jax.data.batching import Buckets
from transformer_jax.display.figures import save_figure
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.evaluator import Evaluator, Trained
from transformer_jax.evaluation.metrics import wilson_interval


def by_length(trained: Trained, split: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Metrics for each length, ascending.

    Of contiguous text: loss, perplexity and accuracy over windows of that many tokens. Of examples:
    accuracy and exact match, teacher-forced, of those whose longer side (EOS included; source and
    target together where a decoder-only model reads both) has more tokens than the length before
    and at most this many. Lengths that no example has, and generated examples that are longer than
    all, are left out; the log tells.

    Raises:
        ConfigError: a length that the model cannot read, or no examples.
    """
    config, lengths = trained.config, sorted(set(lengths))
    longest = trained.model.architecture.max_length
    if lengths[-1] > longest or lengths[0] < 2:
        raise ConfigError(
            f'--lengths={",".join(map(str, lengths))}: model.position={config.model.position!r} and '
            f'model.attention={config.model.attention!r} reach from 2 to {longest} tokens; for more, '
            'train with positions without a last one: none, sinusoidal, rope, alibi, t5, kerple, fire'
        )
    if trained.data.task.contiguous:
        return [
            {'length': length} | _evaluator(trained, (length,)).likelihood(trained.params, split)
            for length in lengths
        ]
    return _examples(_evaluator(trained, lengths), trained.params, split, lengths)


def _evaluator(trained: Trained, lengths: Sequence[int]) -> Evaluator:
    data = dataclasses.replace(trained.data, batching=Buckets(tuple(lengths)))
    return Evaluator(trained.config, data, trained.parallel, trained.data.log)


def _examples(
    evaluator: Evaluator, params: Any, split: str, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    counts = np.zeros(
        (len(lengths) + 1, 4), np.int64
    )  # examples, those all right, tokens, those right
    for batch, predicted_BT in evaluator.predictions(params, split):
        counted_BT = batch.weights_BT > 0
        right_BT = (predicted_BT == batch.targets_BT) & counted_BT
        size_B = (batch.segments_BT > 0).sum(1)
        if batch.source_BS is not None:
            size_B = np.maximum(size_B, (batch.source_segments_BS > 0).sum(1))
        real_B = counted_BT.any(1)
        whole_B = (right_BT == counted_BT).all(1)
        rows_B4 = np.stack([real_B, whole_B & real_B, counted_BT.sum(1), right_BT.sum(1)], axis=1)
        np.add.at(counts, np.searchsorted(lengths, size_B[real_B]), rows_B4[real_B])
    *counts, beyond = counts
    if not any(n for n, *_ in counts):
        raise ConfigError(
            f'--lengths={",".join(map(str, lengths))}: no {split} example has 2 to {lengths[-1]} tokens'
        )
    empty = [str(length) for length, (n, *_) in zip(lengths, counts, strict=True) if not n]
    if empty:
        evaluator.log(
            f'left out, since no {split} example is counted there: length {", ".join(empty)}'
        )
    if beyond[0]:
        evaluator.log(f'left out: {beyond[0]:,} {split} examples of more than {lengths[-1]} tokens')
    return [
        {
            'length': length,
            'examples': int(n),
            'exact_match': exact / n,
            'exact_match_interval': wilson_interval(int(exact), int(n)),
            'accuracy': right / tokens,
        }
        for length, (n, exact, tokens, right) in zip(lengths, counts, strict=True)
        if n
    ]


def draw(rows: Sequence[dict[str, Any]], trained_to: int, path: epath.PathLike) -> epath.Path:
    """Draws each metric against the length; a line marks the longest of training.

    Raises:
        ConfigError: a suffix that is no picture's.
    """
    names = [name for name in ('loss', 'accuracy', 'exact_match') if name in rows[0]]
    figure = Figure(figsize=(4.5 * len(names), 3.2), dpi=110, layout='constrained')
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.plot(
            [row['length'] for row in rows], [row[name] for row in rows], marker='o', markersize=3
        )
        if f'{name}_interval' in rows[0]:
            low, high = zip(*(row[f'{name}_interval'] for row in rows), strict=True)
            axes.fill_between([row['length'] for row in rows], low, high, alpha=0.2)
        axes.axvline(trained_to, color='0.6', linestyle='--', linewidth=1)
        axes.set(
            title=name.replace('_', ' '),
            xlabel='length in tokens (dashed: the longest of training)',
        )
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The metrics as aligned text, a line for each length."""
    columns = ('length', 'examples', 'loss', 'perplexity', 'accuracy', 'exact_match')
    names = [name for name in columns if name in rows[0]]

    def cell(value):
        return (
            f'{value:,}'
            if isinstance(value, int)
            else f'{value:.4f}'
            if math.isfinite(value)
            else str(value)
        )

    lines = [names, *([cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )

"""Metrics of a model at each length, those beyond training included: `evaluate --lengths=…`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax.data import Data
from transformer_jax.data.batching import Buckets
from transformer_jax.data.encoding import encode
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.evaluation.metrics import wilson_interval
from transformer_jax.evaluation.teacher_forcing import ScoredBatch


def by_length(
    evaluator: Evaluator, params: Any, split: str, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Measure each length of text by itself, teacher-forced.

    Where a split is one text: loss, perplexity and accuracy over windows of that many tokens.
    Where it has examples: accuracy and exact match of the examples whose longer side has more
    tokens than the length before and at most this many. A side includes EOS; for a decoder-only
    model source and target together are one side. Lengths without examples, and generated
    examples longer than all lengths, are left out; the log says so.

    Args:
        evaluator: of the model on the data.
        params: of the model.
        split: 'validation' or 'test'.
        lengths: in tokens, 2 or more.

    Returns:
        an object for each length, ascending.

    Raises:
        ConfigError: a length that the model cannot read, or no examples.
    """
    lengths = sorted(set(lengths))
    _check_reach(evaluator, lengths)
    if evaluator.data.task.windowed:
        return [
            {'length': length} | _at(evaluator, (length,)).teacher_forced(params, split).scores
            for length in lengths
        ]
    return _examples_by_length(_at(evaluator, lengths), params, split, lengths)


def sort_by_length(
    data: Data, split: str, made_of: Sequence[Any], lengths: Sequence[int]
) -> dict[int, list[Any]]:
    """Sort what a score of translations is made of by the lengths of the sentences.

    Args:
        data: whose sentences these are.
        split: 'validation' or 'test'.
        made_of: an entry for each sentence of the split, as of `Evaluation.examples['bleu']`.
        lengths: in tokens; a sentence counts as an example of `by_length` does.

    Returns:
        the entries of each length, ascending; those of longer sentences are left out.
    """
    sides_E2 = encode(data.tokenizer, data.text(split)).lengths
    sizes_E = sides_E2.sum(1) if data.config.joins_pairs else sides_E2.max(1)
    lengths = sorted(set(lengths))
    found: dict[int, list[Any]] = {length: [] for length in lengths}
    for place, entry in zip(np.searchsorted(lengths, sizes_E), made_of, strict=True):
        if place < len(lengths):
            found[lengths[place]].append(entry)
    return found


def _check_reach(evaluator: Evaluator, lengths: Sequence[int]) -> None:
    model, longest = evaluator.config.model, evaluator.model.architecture.max_length
    if lengths[-1] > longest or lengths[0] < 2:
        raise ConfigError(
            f'{_flag(lengths)}: model.position={model.position!r} and '
            f'model.attention={model.attention!r} reach from 2 to {longest} tokens; for more, '
            'train with positions without a last one: none, sinusoidal, rope, alibi, t5, kerple, '
            'fire'
        )


def _at(evaluator: Evaluator, lengths: Sequence[int]) -> Evaluator:
    return evaluator.with_batching(Buckets(tuple(lengths)))


def _flag(lengths: Sequence[int]) -> str:
    return f'--lengths={",".join(map(str, lengths))}'


def _examples_by_length(
    evaluator: Evaluator, params: Any, split: str, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    # Of each length: examples, exact ones, counted tokens, correct ones. The last row is of
    # examples that are longer than all lengths.
    counts = np.zeros((len(lengths) + 1, 4), np.int64)
    for scored in evaluator.score_batches(params, split):
        sizes_E, counts_E4 = _count_examples(scored)
        np.add.at(counts, np.searchsorted(lengths, sizes_E), counts_E4)
    *counts, beyond = counts.tolist()
    _report_left_out(evaluator, split, lengths, counts, beyond[0])
    return [
        {
            'length': length,
            'examples': examples,
            'exact_match': exact / examples,
            'exact_match_interval': wilson_interval(exact, examples),
            'accuracy': correct / tokens,
        }
        for length, (examples, exact, tokens, correct) in zip(lengths, counts, strict=True)
        if examples
    ]


def _count_examples(scored: ScoredBatch) -> tuple[np.ndarray, np.ndarray]:
    """Count a batch in buckets, one example a row: (tokens of the longer side, the counts)."""
    batch, counted_BT, correct_BT = scored.batch, scored.counted_BT, scored.correct_BT
    size_B = (batch.segments_BT > 0).sum(1)
    if batch.source_BS is not None:
        size_B = np.maximum(size_B, (batch.source_segments_BS > 0).sum(1))
    real_B = counted_BT.any(1)  # The other rows pad the batch.
    exact_B = (correct_BT == counted_BT).all(1)
    counts_B4 = np.stack([real_B, exact_B, counted_BT.sum(1), correct_BT.sum(1)], axis=1)
    return size_B[real_B], counts_B4[real_B]


def _report_left_out(
    evaluator: Evaluator,
    split: str,
    lengths: Sequence[int],
    counts: Sequence[Sequence[int]],
    beyond: int,
) -> None:
    """Log which lengths and examples are left out; raise ConfigError where nothing remains."""
    empty = [str(length) for length, (n, *_) in zip(lengths, counts, strict=True) if not n]
    if len(empty) == len(lengths):
        raise ConfigError(f'{_flag(lengths)}: no {split} example has 2 to {lengths[-1]} tokens')
    if empty:
        evaluator.log(
            f'left out, since no {split} example is counted there: length {", ".join(empty)}'
        )
    if beyond:
        evaluator.log(f'left out: {beyond:,} {split} examples of more than {lengths[-1]} tokens')

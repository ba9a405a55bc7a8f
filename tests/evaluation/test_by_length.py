"""Metrics at each length: how long an example is, and which lengths and examples are left out."""

from pathlib import Path

import numpy as np
import pytest
from helpers.support import experiment, quiet

from transformer_jax.config import resolve
from transformer_jax.data import load_data
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation import by_length as lengths
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.evaluation.teacher_forcing import ScoredBatch
from transformer_jax.partitioning.partitioner import Partitioner


class Copier(Evaluator):
    """An evaluator of a model that predicts every token."""

    def score_batches(self, params, split):
        """See Evaluator."""
        plan, _ = self.data.evaluation(split)
        batches = self.data.eval_batches(split, 1, lambda count: (0, count))
        for number, batch in enumerate(batches):
            nll_BT = np.zeros(batch.targets_BT.shape, np.float32)
            yield ScoredBatch(plan.step(number), batch, nll_BT, batch.targets_BT)


def copier(kind: str, tmp_path: Path) -> tuple[Copier, list[str]]:
    """Make a model that copies 4 to 6 symbols without a fault, where training had 3 at most.

    Returns:
        (its evaluator, the lines of the log).
    """
    config = experiment(
        **{
            'data.task': 'copy(alphabet=10, length=3, test_length=6, held_out=30)',
            'data.vocab_size': 14,
            'model.kind': kind,
            'model.position': 'rope',
            'data.batching': 'buckets(lengths=(16,))',
            'evaluate.batch_tokens': 64,
        }
    )
    components, lines = resolve(config), []
    data = load_data(components.pipeline, tmp_path, quiet, ('test',))
    return Copier(components, data, Partitioner(config.parallel.mesh), lines.append), lines


def by_length(kind: str, wanted: list[int], tmp_path: Path) -> tuple[list[dict], list[str]]:
    """Measure such a model: (an object for each length, the lines of the log)."""
    evaluator, lines = copier(kind, tmp_path)
    return lengths.by_length(evaluator, None, 'test', wanted), lines


@pytest.mark.parametrize(
    ('kind', 'wanted'), [('encoder_decoder', [5, 6, 7]), ('decoder_only', [10, 12, 14])]
)
def test_a_language_model_reads_source_and_answer_together(kind, wanted, tmp_path):
    rows, lines = by_length(kind, wanted, tmp_path)
    assert [row['length'] for row in rows] == wanted
    assert sum(row['examples'] for row in rows) == 30
    assert {row['exact_match'] for row in rows} == {row['accuracy'] for row in rows} == {1.0}
    assert lines == []


def test_what_is_left_out_is_said(tmp_path):
    rows, lines = by_length('decoder_only', [8, 9, 10, 12], tmp_path)
    assert [row['length'] for row in rows] == [10, 12]
    longer = 30 - sum(row['examples'] for row in rows)
    assert lines == [
        'left out, since no test example is counted there: length 8, 9',
        f'left out: {longer} test examples of more than 12 tokens',
    ]
    with pytest.raises(ConfigError, match='no test example has 2 to 9 tokens'):
        by_length('decoder_only', [8, 9], tmp_path)


@pytest.mark.parametrize(
    ('kind', 'wanted'), [('encoder_decoder', [7, 5, 6]), ('decoder_only', [10, 12])]
)
def test_sentences_are_sorted_as_examples_are_counted(kind, wanted, tmp_path):
    evaluator, _ = copier(kind, tmp_path)
    counted = lengths.by_length(evaluator, None, 'test', wanted)
    found = lengths.sort_by_length(evaluator.data, 'test', range(30), wanted)
    assert {row['length']: row['examples'] for row in counted} == {
        length: len(numbers) for length, numbers in found.items()
    }
    sources = evaluator.data.text('test').source
    symbols = {length: [*found].index(length) + 4 for length in found}
    assert all(
        len(sources[number].split()) == symbols[length]
        for length, numbers in found.items()
        for number in numbers
    )


def test_sentences_longer_than_a_row_are_not_cut(tmp_path):
    config = experiment(data__batching='buckets(lengths=(6,))')
    data = load_data(resolve(config).pipeline, tmp_path, quiet, ('train', 'test'))
    texts = data.text('test')
    sizes = [
        1 + max(map(len, data.tokenizer.encode(pair)))
        for pair in zip(texts.source, texts.target, strict=True)
    ]
    found = lengths.sort_by_length(data, 'test', sizes, [6, max(sizes) - 1])
    assert found == {
        6: [size for size in sizes if size <= 6],
        max(sizes) - 1: [size for size in sizes if 6 < size < max(sizes)],
    }
    assert max(sizes) > 8

"""Scores by length: what counts as an example's length, and what is left out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.support import experiment, quiet

from transformer_jax.config import resolve
from transformer_jax.data import load_data
from transformer_jax.errors import ConfigError
from transformer_jax.evaluation import by_length as lengths


def by_length(kind: str, wanted: list[int], tmp_path: Path) -> tuple[list[dict], list[str]]:
    """(rows, log) of a model of that kind that copies without a fault 2 to 4 symbols beyond the 3
    of training.
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
    data, lines = load_data(resolve(config).pipeline, tmp_path, quiet, ('test',)), []

    def evaluator(trained, _):
        batches = data.eval_batches('test', 1, lambda count: (0, count))
        return SimpleNamespace(
            log=lines.append,
            predictions=lambda params, split: ((batch, batch.targets_BT) for batch in batches),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths, '_evaluator', evaluator)
        return lengths.by_length(
            SimpleNamespace(config=config, data=data, params=None), 'test', wanted
        ), lines


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
    assert lines == [
        'left out, since no test example is counted there: length 8, 9',
        f'left out: {30 - sum(row["examples"] for row in rows)} test examples of more than 12 tokens',
    ]
    with pytest.raises(ConfigError, match='no test example has 2 to 9 tokens'):
        by_length('decoder_only', [8, 9], tmp_path)

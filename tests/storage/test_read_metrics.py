"""Reading metrics.jsonl, also while a run writes it."""

import math

import pytest
from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.metrics_writer import read_metrics


def test_numbers_that_json_lacks_are_floats_again(tmp_path):
    path = epath.Path(tmp_path / 'metrics.jsonl')
    path.write_text('{"step": 1, "split": "skipped", "loss": "nan", "grad_norm": "-inf"}\n')
    [event] = read_metrics(path)
    assert math.isnan(event['loss'])
    assert (event['grad_norm'], event['split']) == (-math.inf, 'skipped')


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = epath.Path(tmp_path / 'metrics.jsonl')
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "sp')
    assert [event['step'] for event in read_metrics(path)] == [1]


def test_a_damaged_line_is_named(tmp_path):
    path = epath.Path(tmp_path / 'metrics.jsonl')
    path.write_text('{"step": 1, "split": "train"}\n{"step"\n')
    with pytest.raises(WorkdirError, match=r'metrics.jsonl:2 is damaged \(not JSON'):
        read_metrics(path)


def test_no_file_has_no_events(tmp_path):
    assert read_metrics(epath.Path(tmp_path / 'metrics.jsonl')) == []

"""JSON that is none: every number that commands print and files hold is finite, or a string."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.ablation import results
from transformer_jax.cli import evaluate as evaluate_command
from transformer_jax.cli import probe as probe_command
from transformer_jax.display.tables import print_benchmark
from transformer_jax.inference import probe_display, probes
from transformer_jax.inference import trained_run as trained_run_lib
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.json_text import decode_non_finite, to_json
from transformer_jax.storage.metrics_writer import MetricsWriter, read_metrics
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.training_run import Record

INF, NAN = float('inf'), float('nan')


def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')


def strict(text):
    """Read JSON as a reader does that knows only the standard."""
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ('value', 'written'),
    [
        (INF, '"inf"'),
        (-INF, '"-inf"'),
        (NAN, '"nan"'),
        (np.float64('inf'), '"inf"'),
        (1e308, '1e+308'),
        ([1, [NAN]], '[1, ["nan"]]'),
        ((INF, 0.5), '["inf", 0.5]'),
        ({'a': {'b': INF}}, '{"a": {"b": "inf"}}'),
        (None, 'null'),
        ('inf', '"inf"'),
        (True, 'true'),
    ],
)
def test_numbers_that_json_lacks_are_strings(value, written):
    assert to_json(value) == written
    strict(to_json(value))


@settings(max_examples=20)
@given(
    st.recursive(
        st.none() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_all_that_is_written_is_json(value):
    strict(to_json(value))


@given(st.floats())
def test_a_number_is_read_as_it_was(value):
    assert repr(decode_non_finite(strict(to_json(value)))) == repr(value)


class Trained:
    """A run whose scores are not finite."""

    def __init__(self, folder):
        self.workdir = Workdir(folder)
        self.evaluator = self.params = None
        self.data = types.SimpleNamespace(batching=types.SimpleNamespace(row_lengths=lambda: [8]))

    def require_same_data(self, splits):
        pass

    def measure(self, split):
        return types.SimpleNamespace(scores={'perplexity': INF, 'loss': NAN, 'p': [-INF, 1.0]})

    def write_evaluation(self, found):
        self.workdir.append_evaluation(found.scores)


def print_scores(folder, patch):
    patch.setattr(evaluate_command, 'open_trained', lambda *_, **__: Trained(folder))
    patch.setattr(evaluate_command, 'given_decoding', lambda *_: {})
    evaluate_command.run_evaluate(types.SimpleNamespace(lengths=[], split='test', json=True))


def print_lengths(folder, patch):
    from transformer_jax.display import evaluations
    from transformer_jax.evaluation import by_length

    patch.setattr(evaluate_command, 'open_trained', lambda *_, **__: Trained(folder))
    patch.setattr(evaluate_command, 'given_decoding', lambda *_: {})
    patch.setattr(evaluate_command, 'whole_numbers', lambda *_: [5])
    patch.setattr(by_length, 'by_length', lambda *_: [{'length': 5, 'perplexity': INF}])
    patch.setattr(evaluations, 'draw_lengths', lambda *_: 'x.png')
    evaluate_command.run_evaluate(
        types.SimpleNamespace(lengths=['5'], split='test', json=True, out='')
    )


def print_probes(folder, patch):
    found = {'split': 'test', 'checkpoints': [{'step': 1, 'sites': [{'max_logit': INF}]}]}
    patch.setattr(trained_run_lib, 'TrainedRun', lambda *_: Trained(folder))
    patch.setattr(probe_command, 'required', lambda *_: str(folder))
    patch.setattr(probes, 'probe', lambda *_: found)
    patch.setattr(probe_display, 'draw_probes', lambda *_: 'x.png')
    probe_command.run_probe(
        types.SimpleNamespace(
            **dict.fromkeys(('checkpoint', 'out', 'source_dir', 'mesh'), ''),
            **dict.fromkeys(('all_checkpoints', 'allow_changed_data'), False),
            split='test',
            batches=1,
            json=True,
        )
    )


def print_bench(folder, patch):
    from transformer_jax.profiling.bench_attention_result import AttentionBench

    names = AttentionBench.__dataclass_fields__
    print_benchmark(AttentionBench(**dict.fromkeys(names, INF)), [], as_json=True)


@pytest.mark.parametrize('show', [print_scores, print_lengths, print_probes, print_bench])
def test_a_command_prints_json(show, tmp_path, monkeypatch, capsys):
    show(epath.Path(tmp_path), monkeypatch)
    printed = capsys.readouterr().out
    assert '"inf"' in printed
    strict(printed)
    for path in tmp_path.rglob('*.json'):
        strict(path.read_text())


def write_evaluation(folder):
    Workdir(folder).append_evaluation({'perplexity': INF})


def write_metrics(folder):
    writer = MetricsWriter(folder / 'metrics.jsonl', folder / 'events', -1)
    writer.write(1, 'train', {'loss': INF})
    assert read_metrics(folder / 'metrics.jsonl')[0]['loss'] == INF


def write_checkpoint(folder):
    checkpoints = Checkpoints(folder, keep=1)
    record = Record(best={'step': 1, 'metric': 'perplexity', 'value': INF})
    checkpoints.save(1, {'a': jnp.ones(3)}, {'record': record.as_json(), 'best': record.best})
    checkpoints.wait()
    assert Record.from_json(checkpoints.meta(1)['record']) == record


def write_config(folder):
    with Workdir(folder).open_for_training({'optim': {'clip': INF}}, limit=INF):
        pass


def write_results(folder):
    text = results._lines({'runs': [{'scores': {'test perplexity': INF}}], 'x': {'y': NAN}}, 3)
    (folder / 'results.json').write_text(text)


def write_probes(folder):
    probes.write_probes({'split': 'test', 'checkpoints': [{'a': INF}]}, folder)


@pytest.mark.parametrize(
    'write',
    [write_evaluation, write_metrics, write_checkpoint, write_config, write_results, write_probes],
)
def test_a_file_is_json(write, tmp_path):
    write(epath.Path(tmp_path))
    found = [path for path in tmp_path.rglob('*.json*') if 'state' not in path.parts]
    assert any('"inf"' in path.read_text() for path in found)
    for path in found:
        for text in (
            path.read_text().splitlines() if path.suffix == '.jsonl' else [path.read_text()]
        ):
            strict(text)

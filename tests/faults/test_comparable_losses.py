"""A loss of training is drawn next to that of validation only where it means the same.

The kind: one step's loss with label smoothing beside a mean without it.
"""

import json
import math

import pytest
from etils import epath
from helpers.support import experiment, quiet
from helpers.tiny_ablation import plan

from transformer_jax.ablation.live_table import LiveTable
from transformer_jax.display import learning_curves
from transformer_jax.report.traces import read_curves
from transformer_jax.storage.json_text import to_json
from transformer_jax.storage.metrics_writer import read_metrics, training_loss
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.training_run import Record, TrainingRun

SMOOTHED = {'loss': 0.844, 'nll': 0.07, 'mean_nll': 0.061}
WITHOUT_MEAN = {'loss': 0.844, 'nll': 0.07}  # what earlier versions logged
FIRST = {'loss': 0.844}


def step_values(nll, tokens, finite=True):
    return {'loss': 9.0, 'nll': nll, 'tokens': tokens, 'grad_norm': 1.0, 'finite': finite}


@pytest.fixture
def run(tmp_path):
    config = experiment(train__on_nonfinite='skip', train__label_smoothing=0.1)
    made = TrainingRun(config, None, Workdir(tmp_path), quiet)
    made.start(None)
    return made


def test_the_mean_counts_every_token_since_the_line_before(run):
    for step, (nll, tokens) in enumerate([(1.0, 10.0), (2.0, 30.0), (4.0, 10.0), (3.0, 5.0)], 1):
        values = step_values(nll, tokens)
        run.accept_step(step, values)
        if step in (3, 4):
            run.log_step(step, values)
    first, second = read_metrics(run.workdir.metrics_path)
    assert first['mean_nll'] == pytest.approx((10 + 60 + 40) / 50)
    assert (second['mean_nll'], second['nll'], second['loss']) == (3.0, 3.0, 9.0)


def test_a_step_that_was_not_applied_does_not_count(run):
    run.accept_step(1, step_values(1.0, 10.0))
    run.accept_step(2, step_values(math.nan, 10.0, finite=False))
    run.log_step(2, {})
    assert read_metrics(run.workdir.metrics_path)[-1]['mean_nll'] == 1.0


def test_a_line_without_any_step_has_no_mean(run):
    run.log_step(1, {})
    assert math.isnan(read_metrics(run.workdir.metrics_path)[-1]['mean_nll'])


def test_a_resumed_run_logs_the_same_mean(run, tmp_path):
    steps = [step_values(0.1 * n + 1 / 3, 7.0 + n) for n in range(6)]
    whole = TrainingRun(run.config, None, Workdir(tmp_path / 'whole'), quiet)
    for made in (run, whole):
        made.workdir.path.mkdir(exist_ok=True)
    whole.start(None)
    for step, values in enumerate(steps, 1):
        whole.accept_step(step, dict(values))
        if step == 3:  # saved, stopped and resumed here
            stored = to_json(run.record.as_json())
            run.record = Record.from_json(json.loads(stored))
        run.accept_step(step, dict(values))
    for made in (run, whole):
        made.log_step(6, {})
    means = [read_metrics(m.workdir.metrics_path)[-1]['mean_nll'] for m in (run, whole)]
    assert means[0] == means[1]


def test_a_record_of_an_earlier_version_is_read():
    old = {
        'best': None,
        'evaluations_since_best': 0,
        'stopped_early': False,
        'evaluated': 5,
        'failed': '',
        'saves': [5],
    }
    assert Record.from_json(old) == Record(evaluated=5, saves=[5])


CASES = [
    (SMOOTHED, 0.061),
    (WITHOUT_MEAN, 0.07),
    (FIRST, 0.844),
    ({'mean_nll': 'nan', 'loss': 0.844}, math.nan),
]


@pytest.mark.parametrize(('values', 'expected'), [*CASES, ({}, None)])
def test_the_loss_of_a_line(values, expected):
    found = training_loss(values)
    assert found == expected or math.isnan(float(found))


@pytest.mark.parametrize(('values', 'expected'), CASES)
def test_learning_curves_draw_losses_that_compare(tmp_path, monkeypatch, values, expected):
    figures = []
    monkeypatch.setattr(learning_curves, 'save_figure', lambda figure, path: figures.append(figure))
    path = tmp_path / 'metrics.jsonl'
    events = [{'step': 1, 'split': 'train'} | values]
    events += [{'step': 1, 'split': 'validation', 'loss': 0.061}]
    path.write_text(''.join(to_json(event) + '\n' for event in events))
    learning_curves.draw_learning_curves(path, tmp_path / 'curves.png')
    train, validation = figures[0].axes[0].lines
    assert validation.get_ydata()[0] == 0.061
    drawn = train.get_ydata()[0]
    assert drawn == expected or (math.isnan(drawn) and math.isnan(expected))


@pytest.mark.parametrize(('values', 'expected'), CASES[:3])
def test_the_report_draws_losses_that_compare(tmp_path, values, expected):
    folder = tmp_path / 'softmax' / '0'
    folder.mkdir(parents=True)
    line = to_json({'step': 1, 'split': 'train'} | values)
    (folder / 'metrics.jsonl').write_text(line + '\n')
    curves = read_curves(epath.Path(tmp_path), {'softmax': [('softmax', 0)]})
    assert curves['train loss']['softmax'].mean == [(1, expected)]
    assert 'train nll' not in curves  # the same quantity under two names


@pytest.mark.parametrize(('values', 'expected'), CASES[:3])
def test_the_live_table_shows_that_loss(tmp_path, values, expected):
    made = plan(tmp_path, {'base': {}}, seeds=1)
    table = LiveTable(made, set(made.trials), quiet)
    [trial] = made.trials
    trial.workdir.mkdir(parents=True)
    line = {'step': 1, 'split': 'train', 'steps_per_second': 1.0} | values
    (trial.workdir / 'metrics.jsonl').write_text(to_json(line) + '\n')
    table.set_state(trial, 'training')
    assert f'{expected:.4f}' in [
        str(cell) for column in table.table().columns for cell in column.cells
    ]

"""A score or cost that an edited experiment would measure otherwise is measured again."""

import json

import pytest
from helpers.made_up_ablation import make_experiment, make_results, write_file
from helpers.support import quiet
from helpers.tiny_ablation import BASE, VARIANTS, plan, write_result

from transformer_jax.ablation import Metric
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import ablate
from transformer_jax.ablation.score import Findings
from transformer_jax.cli import main
from transformer_jax.errors import ConfigError
from transformer_jax.report.analysis import analyze
from transformer_jax.report.sentences import command, notes
from transformer_jax.storage.workdir import Workdir

EVALUATED = {'evaluate.every': 2, 'checkpoint.average': 2}


def test_another_checkpoint_of_a_metric_is_scored_again(pretend, tmp_path, monkeypatch):
    """Metric('loss', checkpoint='best') became 'avg:2'."""

    def measure(trial, metrics, log):
        selected = {str(metric): metric.checkpoint for metric in metrics}
        scores = {label: 2.0 if kind == 'avg:2' else 1.0 for label, kind in selected.items()}
        write_result(trial, scores=scores, selected=selected)

    monkeypatch.setattr(score_lib, 'score', measure)
    for checkpoint, score in (('best', 1.0), ('avg:2', 2.0), ('', 1.0)):
        made = plan(tmp_path, BASE, (Metric('loss', checkpoint=checkpoint),), **EVALUATED)
        if checkpoint != 'best':
            assert 'its test loss is of checkpoint=' in made.lacks(made.trials[0])
        ablate(made, quiet)
        assert [run['scores']['test loss'] for run in load_results(tmp_path)['runs']] == 2 * [score]


@pytest.mark.parametrize(
    ('selected', 'lacks'),
    [({'test loss': 'best'}, True), ({'test loss': 'avg:2'}, False), ({}, False)],
)
def test_a_finding_is_of_its_checkpoint(selected, lacks):
    found = Findings({'test loss': 1.0}, {}, {}, {'test loss': [12]}, selected, {}, {})
    assert found.lack(Metric('loss', checkpoint='avg:2'), 'test avg:2', []) == lacks


def test_a_report_leaves_out_scores_of_another_checkpoint(tmp_path):
    results = make_results()
    results['runs'][0]['selected'] = {'test bleu': 'avg:2', 'test loss': 'best'}
    results['runs'][1]['selected'] = {'test bleu': 'best', 'test loss': 'best'}
    found = load_results(write_file(tmp_path / 'results.json', results))
    assert found['missing'][0]['why'] == "its test bleu is of checkpoint='avg:2', not 'best'"
    assert len(found['runs']) == len(results['runs']) - 1


def test_the_time_of_a_step_is_of_this_mesh(pretend, tmp_path):
    mesh = {'data': -1, 'fsdp': 1, 'tensor': 1, 'context': 1}
    ablate(plan(tmp_path, BASE), quiet)
    made = plan(tmp_path, BASE)
    write_result(made.trials[0], mesh=mesh)
    assert not any(map(made.lacks, made.trials))  # the other result is of an earlier version
    other = plan(tmp_path, BASE, **{'parallel.mesh.data': 1})
    assert [other.lacks(trial) for trial in other.trials] == [
        'its step time was measured with another parallel.mesh',
        '',
    ]


def test_no_run_is_resumed_in_another_mode(tmp_path):
    """Dropout masks differ between jit and pmap."""
    config = {'train': {'steps': 4}, 'parallel': {'mode': 'jit', 'mesh': {'data': -1}}}
    with Workdir(tmp_path).open_for_training(config) as run:
        run['exit'] = 'done'
    with Workdir(tmp_path).open_for_training(config | {'parallel': {'mode': 'jit', 'mesh': {}}}):
        pass
    pmap = config | {'parallel': {'mode': 'pmap', 'mesh': {}}}
    with (
        pytest.raises(ConfigError, match=r'parallel\.mode: "jit" -> "pmap"'),
        Workdir(tmp_path).open_for_training(pmap),
    ):
        pass


@pytest.mark.parametrize(
    ('seeds', 'overrides', 'expected'),
    [
        ([0, 1, 2], {}, '--seeds=3'),
        ([0, 1, 2], {'train.steps': 5}, '--seeds=3 --config.train.steps=5'),
        ([5, 6], {'train.seed': 5}, '--seeds=2 --config.train.seed=5'),
        ([0], {'train.seed': 0}, '--seeds=1 --config.train.seed=0'),
        ([7], {}, '--seeds=1 --config.train.seed=7'),
        (
            [0, 1, 5, 6, 7],
            {'train.seed': 5, 'model.attention': 'softmax(mask=window(8))'},
            "--seeds=2 --config.train.seed=0 '--config.model.attention=softmax(mask=window(8))' && "
            'transformer-jax ablate experiments/made_up/table1.py:small --root=DIR --seeds=3 '
            "--config.train.seed=5 '--config.model.attention=softmax(mask=window(8))'",
        ),
    ],
)
def test_the_command_makes_these_runs(seeds, overrides, expected):
    start = 'transformer-jax ablate experiments/made_up/table1.py:small --root=DIR '
    assert command(make_experiment(seeds) | {'overrides': overrides}) == start + expected


def test_the_command_line_records_its_overrides(tmp_path, monkeypatch):
    path = tmp_path / 'table.py'
    path.write_text(
        'from transformer_jax.ablation import Experiment, Metric, config_file\n'
        'def get_experiment():\n'
        "    base = config_file('configs/number_words.py:en-de')\n"
        "    return Experiment('', base, {'base': {}}, (Metric('loss'),))\n"
    )
    plans = []
    monkeypatch.setattr(
        'transformer_jax.ablation.runner.ablate', lambda plan, *_: plans.append(plan)
    )
    command_line = ['ablate', str(path), f'--root={tmp_path / "root"}', '--config.train.steps=7']
    assert main(command_line) == 0
    assert plans[0].record['overrides'] == {'train.steps': 7}
    assert plans[0].record['variants']['base']['config']['train.steps'] == 7


def test_a_variant_that_comes_back_changed_has_another_folder(pretend, tmp_path):
    ablate(plan(tmp_path), quiet)
    rest = {name: VARIANTS[name] for name in ('base', 'no dropout')}
    ablate(plan(tmp_path, rest), quiet)
    same = plan(tmp_path, VARIANTS)
    assert not [trial for trial in same.trials if same.lacks(trial)]  # its runs are found again
    changed = plan(tmp_path, rest | {'one head': {'model.num_heads': 1, 'model.d_ff': 8}})
    [folder] = {trial.setting.folder for trial in changed.trials} - {'base', 'no-dropout'}
    assert folder.startswith('one-head-')
    ablate(changed, quiet)
    assert not load_results(tmp_path)['missing']
    kept = json.loads((tmp_path / 'one-head/0/config.json').read_text())
    assert kept['model']['d_ff'] != 8


@pytest.mark.parametrize(
    ('noise', 'said', 'left_out'),
    [
        (0.0, 'by the permutation test of all runs where no run differs', "Welch's test"),
        (0.25, 'by ', 'permutation'),
    ],
)
def test_a_report_names_the_test_that_decided(noise, said, left_out, tmp_path):
    results = make_results(noise=noise, lost=())
    table = analyze(write_file(tmp_path / 'results.json', results)).tables[0]
    note = next(iter(notes(table)))
    assert said in note
    assert left_out not in note

"""Results are read strictly: what is missing or damaged is named."""

import json

import pytest
from helpers.support import experiment, quiet
from helpers.tiny_ablation import VARIANTS, plan, write_result

from transformer_jax import config as config_lib
from transformer_jax.ablation import Metric
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import ablate
from transformer_jax.errors import ConfigError, WorkdirError


@pytest.fixture
def done(pretend, tmp_path):
    """Return (root, its trials), all of them done."""
    made = plan(tmp_path)
    ablate(made, quiet)
    return tmp_path, made.trials


def test_a_results_file_stands_for_its_root(done):
    root, _ = done
    assert (
        load_results(root / 'results.json')
        == load_results(root)
        == json.loads((root / 'results.json').read_text())
    )
    assert len(load_results(root)['runs']) == 6
    assert max(map(len, (root / 'results.json').read_text().splitlines())) > 1000  # a run is a line


@pytest.mark.parametrize(
    ('damage', 'why'),
    [
        (
            lambda run: write_result(run, scores={'test exact_match': 0.5}),
            'its validation loss is not measured',
        ),
        (
            lambda run: write_result(run, scores={'test exact_match': 'nan', 'validation loss': 1}),
            'its test exact_match is nan',
        ),
        (lambda run: write_result(run, seed=7), 'damaged: result.json is of seed 7'),
        (
            lambda run: write_result(run, lengths=[]),
            "damaged: in result.json 'lengths' is not an object",
        ),
        (
            lambda run: (run.workdir / 'result.json').write_text('{"scores": {}}'),
            "damaged: in result.json it lacks 'seed'",
        ),
        (
            lambda run: (run.workdir / 'result.json').write_text('{"scores'),
            'result.json is damaged (not JSON: Unterminated string',
        ),
        (
            lambda run: (run.workdir / 'result.json').write_text('[]'),
            'result.json is damaged (it is not',
        ),
        (lambda run: (run.workdir / 'config.json').unlink(), 'config.json is missing: '),
        (lambda run: (run.workdir / 'result.json').unlink(), 'not run'),
        (
            lambda run: (run.workdir / 'config.json').write_text(
                json.dumps(config_lib.to_dict(experiment()))
            ),
            'of another version of the experiment: model.num_heads: 2 -> 1; train.steps: 12 -> 4',
        ),
    ],
)
def test_what_is_damaged_is_missing(done, damage, why):
    root, runs = done
    damage(runs[3])
    found = load_results(root)
    assert [(run['folder'], run['seed']) for run in found['runs']] == [
        (run.setting.folder, run.seed) for run in runs if run is not runs[3]
    ]
    [missing] = found['missing']
    assert (missing['folder'], missing['seed']) == ('one-head', 1)
    assert missing['why'].startswith(why)
    assert plan(root).lacks(runs[3]) == missing['why']


def test_lengths_that_were_binned_otherwise_are_measured_again(done):
    root, runs = done
    metrics = (Metric('accuracy', length=12), Metric('accuracy', length=24))
    write_result(
        runs[0], scores={str(metric): 1.0 for metric in metrics}, lengths={'test': [12, 24]}
    )
    assert not plan(root, VARIANTS, metrics).lacks(runs[0])
    assert plan(root, VARIANTS, metrics[1:]).lacks(runs[0]) == 'test was measured at other lengths'


def test_a_run_on_its_way_says_how_far_it_is(done):
    root, runs = done
    (runs[0].workdir / 'result.json').unlink()
    (runs[0].workdir / 'metrics.jsonl').write_text(
        '{"step": 3, "split": "train"}\n{"step": 4, "spl'
    )
    assert load_results(root)['missing'][0]['why'] == 'not finished: at step 3 of 4'


@pytest.mark.parametrize(
    'content', ['[]', '{', '{"runs": []}', '{"runs": [], "experiment": {"variants": {}}}']
)
def test_files_that_are_no_results(tmp_path, content):
    (tmp_path / 'results.json').write_text(content)
    with pytest.raises(WorkdirError, match=r'results\.json'):
        load_results(tmp_path / 'results.json')
    with pytest.raises(ConfigError, match='there is no such root'):
        load_results(tmp_path / 'none')


def test_a_results_file_lacks_what_it_does_not_list(done):
    root, _ = done
    content = json.loads((root / 'results.json').read_text())
    del content['runs'][0], content['runs'][0]['scores']['validation loss']
    (root / 'results.json').write_text(json.dumps(content))
    found = load_results(root / 'results.json')
    assert [entry['why'] for entry in found['missing']] == [
        'not in results.json',
        'its validation loss is not measured',
    ]
    assert len(found['runs']) == 4

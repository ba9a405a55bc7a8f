"""Edited or damaged files of an ablation: `report` names the fault, or leaves the run out.

The kind: a value of another type or beyond any float, which a table or figure then fails on.
"""

import json

import pytest
from helpers.made_up_ablation import make_results, write_file, write_root

from transformer_jax.ablation.results import load_results
from transformer_jax.cli import main

HUGE = 10**400
RUNS = [  # key, value -> what is said of the run
    ('params', 'abc', "'params' is not a whole number"),
    ('params', True, "'params' is not a whole number"),
    ('params', HUGE, "'params' is not a finite number"),
    ('flops', [1], "'flops' is not a whole number"),
    ('step_spread', 'x', "'step_spread' is not a whole number"),
    ('memory_bytes', {}, "'memory_bytes' is not a whole number"),
    ('state_bytes', 'x', "'state_bytes' is not a whole number"),
    ('state_length', HUGE, "'state_length' is not a finite number"),
    ('mfu', [1], "'mfu' is not a whole number"),
    ('steps', '300', "'steps' is not a whole number"),
    ('steps', None, "'steps' is not a whole number"),
    ('commit', 5, "'commit' is not a text"),
    ('date', 20261122, "'date' is not a text"),
    ('machine', [], "'machine' is not an object"),
    ('machine', {'versions': []}, "'versions' is not an object"),
    ('lengths', {'test': 3}, "'test' is not a list"),
    ('checkpoints', {'test bleu': ['4']}, 'is not a whole number'),
    ('scores', [], "'scores' is not an object"),
    ('scores', {'test bleu': True, 'test loss': 1.0}, 'its test bleu is True'),
    ('scores', {'test bleu': HUGE, 'test loss': 1.0}, 'its test bleu is (about 10^400)'),
    ('scores', {'test bleu': [1], 'test loss': 1.0}, 'its test bleu is [1]'),
    ('scores', {'test bleu': 'inf', 'test loss': 1.0}, 'its test bleu is inf'),
    ('splits', {'test': 5}, "'test' is not a text"),
    ('seed', '0', "'seed' is not a whole number"),
]


def printed(path, capsys) -> str:
    """Return what `report` prints; it ends well, or with one line about the file."""
    code = main(['report', str(path), f'--out={path.parent / "report"}'])
    streams = capsys.readouterr()
    assert code in (0, 3)
    if code == 3:
        assert streams.err.startswith('transformer-jax: ')
        assert str(path) in streams.err
        assert streams.err.count('\n') == 1
    return streams.out + streams.err


def edited(results, *place, value):
    *path, last = place
    inner = results
    for key in path:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return results


@pytest.mark.fault('damaged results of ablations')
@pytest.mark.parametrize(('key', 'value', 'said'), RUNS)
@pytest.mark.parametrize('as_file', [True, False], ids=['results.json', 'root'])
def test_a_damaged_run_is_left_out_by_name(key, value, said, as_file, tmp_path):
    results = edited(make_results(), 'runs', 0, key, value=value)
    if as_file:
        path = write_file(tmp_path / 'results.json', results)
    else:
        path = write_root(tmp_path / 'root', make_results())
        (path / 'softmax' / '0' / 'result.json').write_text(json.dumps(results['runs'][0]))
    found = load_results(path)
    whys = [
        gap['why'] for gap in found['missing'] if (gap['folder'], gap['seed']) == ('softmax', 0)
    ]
    if as_file and key == 'seed':  # Then no entry is of seed 0.
        said = 'not in results.json'
    assert [why for why in whys if said in why], whys
    assert len(found['runs']) == len(make_results()['runs']) - 1


@pytest.mark.parametrize('text', ['nan', 'inf', '-inf'])
@pytest.mark.parametrize('key', ['step_seconds', 'wall_seconds', 'step_spread', 'mfu'])
def test_a_cost_that_is_not_finite_was_not_measured(key, text, tmp_path, capsys):
    results = make_results()
    for run in results['runs']:
        run[key] = text
    path = write_file(tmp_path / 'results.json', results)
    assert {run[key] for run in load_results(path)['runs']} == {None}
    assert 'Traceback' not in printed(path, capsys)


EXPERIMENT = [  # place, value -> what is said of the file
    *((('claim',), value, "'claim'") for value in (KeyError, None, 3)),
    *((('match',), value, "'match'") for value in (KeyError, None, 'size')),
    (('axis',), KeyError, "lacks 'axis'"),
    (('axis',), [], "'axis' is not an object"),
    (('axis',), {'label': 'x', 'points': {'softmax': ['line', '3']}}, "the point of 'softmax'"),
    (('axis',), {'label': 'x', 'points': {'softmax': ['line']}}, "the point of 'softmax'"),
    (('axis',), {'label': 'x', 'points': {'other': ['line', 3]}}, "the point of 'other'"),
    (('axis',), {'label': 'x', 'points': {'softmax': ['line', HUGE]}}, "the point of 'softmax'"),
    (('file',), KeyError, "lacks 'file'"),
    (('seeds',), [0, '1'], 'is not a whole number'),
    (('seeds',), 5, "'seeds' is not a list"),
    (('reference',), KeyError, "lacks 'reference'"),
    (('reference',), 'nonesuch', "reference='nonesuch' is none"),
    (('metrics', 0, 'lower_is_better'), KeyError, "lacks 'lower_is_better'"),
    (('metrics', 0, 'name'), 'blue', "the metric 'blue' is unknown"),
    (('metrics', 0, 'label'), 3, "'label' is not a text"),
    (('metrics',), [], 'lacks variants, their folders or metrics'),
    (('metrics',), {}, "'metrics' is not a list"),
    (('variants', 'linear', 'matched'), [1], "'matched' is not an object"),
    (('variants', 'linear', 'matched'), {'model.d_ff': 'x'}, 'is not a whole number'),
    (('variants', 'linear', 'folder'), '', 'lacks variants, their folders or metrics'),
    (('variants', 'linear', 'config'), KeyError, "lacks 'config'"),
    (('variants', 'linear', 'config'), {}, "lacks 'train.steps'"),
    (('variants',), {}, 'lacks variants'),
    (('published', 0, 'values', 'linear'), None, "'linear' is not a whole number"),
    (('published', 0, 'values', 'linear'), HUGE, "published numbers of 'linear'"),
    (('published', 0, 'values', 'other'), 3.0, "published numbers of 'other'"),
    (('published', 0, 'metric'), 'test chrf', "published numbers by 'test chrf'"),
    (('published', 0, 'measure'), None, "'measure' is not a text"),
    (('published',), None, "'published' is not a list"),
    (('differences',), 'none', "'differences' is not a list"),
    (('differences',), [{'what': 'data', 'paper': 'WMT'}], "lacks 'here'"),
    (('overrides',), ['x'], "'overrides' is not an object"),
]


@pytest.mark.fault('damaged results of ablations')
@pytest.mark.parametrize(('place', 'value', 'said'), EXPERIMENT)
def test_a_damaged_experiment_is_named(place, value, said, tmp_path, capsys):
    results = edited(make_results(), 'experiment', *place, value=value)
    path = write_file(tmp_path / 'results.json', results)
    assert said in printed(path, capsys)


@pytest.mark.parametrize(
    ('place', 'value', 'said'),
    [
        (('experiment',), KeyError, "lacks 'experiment'"),
        (('experiment',), [], "'experiment' is not an object"),
        (('runs',), {}, "'runs' is not a list"),
        (('missing',), 5, "'missing' is not a list"),
    ],
)
def test_a_damaged_results_file_is_named(place, value, said, tmp_path, capsys):
    path = write_file(tmp_path / 'results.json', edited(make_results(), *place, value=value))
    assert said in printed(path, capsys)


@pytest.mark.parametrize(
    'content', [{'test bleu': 'x'}, {'test bleu': [['a']]}, {'test bleu': [[1, 2], [3]]}, [], {}]
)
def test_damaged_sentences_are_left_out(content, tmp_path, capsys):
    root = write_root(tmp_path / 'root', make_results())
    (root / 'softmax' / '0' / 'sentences.json').write_text(json.dumps(content))
    assert 'Traceback' not in printed(root, capsys)

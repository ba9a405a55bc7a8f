"""What a report says for a reviewer: recorded, of an earlier version, or damaged."""

import json

import pytest
from helpers.made_up_ablation import analyzed, make_results, row_of, write_file, write_root
from helpers.recorded import (
    ENVIRONMENT,
    HASHES,
    make_recorded,
    start,
    write_records,
    write_times,
)

from transformer_jax.ablation import families
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.statistics import NOT_TESTED, Comparison
from transformer_jax.report import analysis
from transformer_jax.report.analysis import analyze
from transformer_jax.report.columns import cell, table_columns
from transformer_jax.report.csv_tables import summary_csv
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report
from transformer_jax.report.reviewer import answers, fingerprint_rows
from transformer_jax.report.seed_sources import seed_sources

METRICS = [{'name': 'bleu'}, {'name': 'loss'}]


@pytest.fixture(autouse=True)
def without_statistics(monkeypatch):
    """Leave out the tests of differences, which take seconds and are not what is looked at."""
    untested = Comparison(NOT_TESTED, reason='left out')
    monkeypatch.setattr(
        families, 'compare_pairs', lambda values, pairs, *_: dict.fromkeys(pairs, untested)
    )
    monkeypatch.setattr(analysis, 'bootstrap', lambda sentences, references: {})


@pytest.fixture
def root(tmp_path):
    results = make_recorded()
    return write_records(write_root(tmp_path / 'root', results), results)


def said(path):
    return dict(answers(analyze(path)))


def edit_run(root, records, folder='softmax', seed=0):
    (root / folder / str(seed) / 'run.json').write_text(json.dumps(records))


def test_every_answer_of_a_table_that_recorded_all(root):
    found = said(root)
    best = 'the best validation bleu of 8 evaluations'  # every 50 of 400 steps
    assert found['checkpoint of test bleu'] == found['checkpoint of test loss'] == best
    # 19 sound runs, of 1 s of setup, 2 s compiling, 3 + 2 s evaluating and 10 s of steps.
    assert found['compute'] == (
        '5.7 min in 19 runs (training 3.2 min, evaluation 95.0 s, compilation 38.0 s, '
        'other 19.0 s), 19.0G FLOPs of training steps; no run failed'
    )
    varies = 'initialization, order of the training data, dropout. Equal for all seeds: splits'
    assert found['varies with the seed'].startswith(varies)
    assert found['environment'] == (
        'Python 3.11.7 on Linux-6, 1 x cpu cpu, 2 packages (SHA-256 of the list '
        f'{"d" * 64}), XLA_FLAGS=--xla_x; the same in all runs'
    )
    assert 'docs/explanation/exact-resume.md' in found['determinism']
    assert found['determinism'].count('. ') == 1  # two sentences
    assert 'damaged files' not in found
    assert fingerprint_rows(analyze(root)) == [
        (split, digest, 'all runs') for split, digest in HASHES.items()
    ]


def test_markdown_and_html_say_it_and_escape_it(root):
    report = analyze(root)
    text, page = markdown_report(report), html_report(report)
    assert '| data | WMT 2014 \\| 4.5M | Multi30k &lt;29k&gt; |' in text
    assert f'| test | `{HASHES["test"]}` | all runs |' in text
    assert 'Multi30k &lt;29k&gt;' in page
    assert 'href="#differences"' in page
    assert f'>{HASHES["train"]}</td>' in page
    for _, answer in answers(report):
        assert answer.split('<')[0] in page


def test_the_file_alone_says_the_same(root, tmp_path):
    path = write_file(tmp_path / 'results.json', load_results(root))
    assert said(path) == said(root)
    assert fingerprint_rows(analyze(path)) == fingerprint_rows(analyze(root))


def test_validation_stands_beside_test(root):
    event = {'step': 350, 'split': 'validation', 'bleu': 37.5, 'loss': 2.5}
    for seed, bleu in ((0, 37.5), (1, 38.5)):
        with (root / 'softmax' / str(seed) / 'metrics.jsonl').open('a') as lines:
            lines.write(json.dumps(event | {'bleu': bleu}) + '\n')
    report = analyze(root)
    row = row_of(report, 'softmax')
    assert (row.validation[0], row.validation[1]) == (37.5, 38.5)  # of the scored step, the last
    table = report.tables[0]
    [column] = [each for each in table_columns(table) if each.key == 'validation']
    shown = cell(table, row, column)
    assert shown.value == pytest.approx(sum(row.validation.values()) / 5)
    assert ' ± ' in shown.text
    assert 'validation: mean' in summary_csv(report).partition('\n')[0]
    assert said(root)['validation beside test'] == (
        'at the checkpoints that were scored; test bleu: all runs; test loss: all runs'
    )


@pytest.mark.parametrize(
    ('steps', 'evaluation', 'expected'),
    [
        ([350], {'split': 'validation', 'steps': [350], 'bleu': 12.5}, 12.5),
        ([350, 300], {'split': 'validation', 'steps': [350, 300], 'bleu': 12.5}, 12.5),
        ([350, 300], {'split': 'validation', 'steps': [350], 'bleu': 12.5}, None),
        ([350, 300], {'split': 'test', 'steps': [350, 300], 'bleu': 12.5}, None),
        ([350, 300], {'split': 'validation', 'steps': [350, 300], 'bleu': 'nan'}, None),
        ([399], {'split': 'validation', 'steps': 399, 'bleu': 1.0}, None),
    ],
)
def test_validation_is_of_the_same_checkpoints(root, steps, evaluation, expected):
    workdir = root / 'softmax' / '0'
    result = json.loads((workdir / 'result.json').read_text())
    result['checkpoints']['test bleu'] = steps
    (workdir / 'result.json').write_text(json.dumps(result))
    (workdir / 'evaluations.json').write_text(json.dumps([evaluation]))
    assert row_of(analyze(root), 'softmax').validation.get(0) == expected


def test_results_of_earlier_versions_say_not_recorded(tmp_path):
    report = analyzed(tmp_path, make_results())
    found = dict(answers(report))
    questions = ('compute', 'varies with the seed', 'environment')
    assert {found[question] for question in questions} == {'not recorded'}
    assert found['checkpoint of test bleu'] == 'the best (of how many evaluations: not recorded)'
    assert 'test bleu: not recorded' in found['validation beside test']
    assert {digest for _, digest, _ in fingerprint_rows(report)} == {'not recorded'}
    for text in (markdown_report(report), html_report(report)):
        assert 'Differences from the paper: not recorded.' in text
    assert 'validation' not in [column.key for column in table_columns(report.tables[0])]
    assert 'validation' not in summary_csv(report).partition('\n')[0]


def test_an_experiment_without_differences_says_that_it_states_none(tmp_path):
    results = make_results()
    results['experiment']['differences'] = []
    assert 'The experiment states none.' in markdown_report(analyzed(tmp_path, results))


def test_runs_on_other_data_are_named(root):
    other = {'train': 'e' * 64, 'validation': HASHES['validation']}
    for seed in range(5):
        edit_run(root, [start(splits=other)], 'additive', seed)
    edit_run(root, [start(splits=other)], 'softmax', 3)
    rows = [row for row in fingerprint_rows(analyze(root)) if row[0] == 'train']
    assert [digest for _, digest, _ in rows] == [HASHES['train'], 'e' * 64]
    assert rows[1][2] == 'softmax, same as softmax (seeds 3); additive'
    assert rows[0][2].startswith('softmax, same as softmax (seeds 0, 1, 2, 4); linear; ')


def test_environments_that_differ_say_in_what(root):
    newer = ENVIRONMENT | {'packages_sha256': 'f' * 64, 'flags': {}}
    edit_run(root, [start(environment=newer)])
    found = said(root)['environment']
    assert found.startswith('2 that differ in packages, flags: Python 3.11.7')
    assert '(softmax, same as softmax (seeds 0))' in found


def test_a_later_start_names_its_list_of_packages_by_the_hash(root):
    short = {key: value for key, value in ENVIRONMENT.items() if key != 'packages'}
    edit_run(root, [start(), start(environment=short)])
    assert said(root)['environment'].endswith('the same in all runs')


def test_failed_withdrawn_and_shared_runs_are_counted(root):
    write_times(root / 'lost' / '0', seconds=100.0)  # planned; it failed
    write_times(root / 'withdrawn' / '0', seconds=1000.0, flops=None)
    write_times(root / 'softmax' / '0-1', seconds=20.0)  # a group that was taken apart
    found = said(root)['compute']
    assert 'in 22 runs' in found
    assert '21.0G FLOPs of training steps, of 1 run not recorded' in found
    # 6 + 100 and 6 + 20; 6 + 1000.
    assert 'of it 2 runs failed, stopped or unfinished: 2.2 min' in found
    assert '1 run of withdrawn variants or otherwise not in the table: 16.8 min' in found
    alone = load_results(root)['compute']['sound']
    groups = {'0-1': {'members': ['0', '3'], 'released': []}}
    content = {'version': 1, 'groups': groups}
    (root / 'linear' / 'seed_groups.json').write_text(json.dumps(content))
    write_times(root / 'linear' / '0-1', seconds=50.0, flops=8e9)
    compute = load_results(root)['compute']
    assert compute['sound']['training'] == alone['training'] + 25.0  # linear/3 is missing
    assert compute['unfinished']['flops'] == 1e9 + 1e9 + 4e9


DAMAGED = [  # of run.json
    [start(environment=[])],
    [start(environment=ENVIRONMENT | {'packages_sha256': 3})],
    [start(environment=ENVIRONMENT | {'packages': ['jax']})],
    [start(environment={})],
    [start(splits={'train': 5}, environment=ENVIRONMENT)],
    [start(splits=[])],
    [3],
    {},
]


@pytest.mark.fault('damaged results of ablations')
@pytest.mark.parametrize('content', DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_named_and_loses_no_run(content, root):
    edit_run(root, content)
    report = analyze(root)
    assert len(report.runs) == 19
    assert dict(answers(report))['damaged files'].startswith('softmax/0/run.json')
    assert 'not recorded' in markdown_report(report)
    html_report(report)


def test_other_damaged_files_are_named(root):
    (root / 'softmax' / '0' / 'evaluations.json').write_text('{')
    line = {'first': 0, 'last': 1, 'began': 0, 'ended': float('inf'), 'seconds': {}}
    (root / 'linear' / '0' / 'times.jsonl').write_text(json.dumps(line) + '\n')
    found = said(root)['damaged files']
    assert 'linear/0/times.jsonl' in found
    assert 'softmax/0/evaluations.json' in found


@pytest.mark.fault('damaged results of ablations')
@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('facts', []),
        ('facts', {'splits': {'train': 1}, 'environments': {}, 'evaluations': 'x'}),
        ('facts', {'environments': [{'python': '3'}], 'validation': {'test bleu': 'x'}}),
        ('compute', []),
        ('compute', {'sound': {}}),
    ],
)
def test_damaged_facts_of_a_results_file_are_not_recorded(key, value, root, tmp_path):
    results = load_results(root)
    for entry in [results] if key == 'compute' else results['runs']:
        entry[key] = value
    report = analyze(write_file(tmp_path / 'results.json', results))
    assert len(report.runs) == 19
    question = 'compute' if key == 'compute' else 'environment'
    assert dict(answers(report))[question] == 'not recorded'
    html_report(report)


@pytest.mark.parametrize(
    ('metric', 'changes', 'expected'),
    [
        ({'checkpoint': 'last'}, {}, 'the last checkpoint'),
        ({'checkpoint': 'avg:5'}, {}, 'the average of the last 5 checkpoints'),
        ({'checkpoint': ''}, {}, 'the best validation bleu of 8 evaluations'),
        ({'checkpoint': ''}, {'evaluate.best_metric': 'exact_match'}, 'the last checkpoint'),
    ],
)
def test_the_rule_of_the_checkpoint_in_words(tmp_path, metric, changes, expected):
    results = make_recorded()
    results['experiment']['metrics'][0] |= metric
    for entry in results['experiment']['variants'].values():
        entry['config'] |= changes
    for run in results['runs']:
        run['selected']['test bleu'] = metric['checkpoint']
    root = write_records(write_root(tmp_path / 'root', results), results)
    assert said(root)['checkpoint of test bleu'] == expected


CONFIG = {
    'train.init_from': '',
    'model.dropout': 0.0,
    'decode.method': 'sample',
    'decode.temperature': 1.0,
}
ALWAYS = ('initialization', 'order of the training data')


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'decode.method': 'beam'}, ALWAYS),
        ({'model.dropout': 0.1, 'decode.method': 'greedy'}, (*ALWAYS, 'dropout')),
        ({}, (*ALWAYS, 'sampling of translations')),
        ({'decode.temperature': 0}, ALWAYS),
        (
            {'train.init_from': 'runs/a', 'decode.method': 'beam'},
            ('initialization of what train.init_from lacks', 'order of the training data'),
        ),
    ],
)
def test_what_varies_with_the_seed_follows_from_the_configuration(changes, expected):
    assert seed_sources(CONFIG | changes, METRICS) == expected


def test_what_varies_is_said_of_each_variant(tmp_path):
    results = make_recorded()
    results['experiment']['variants']['linear']['config']['model.dropout'] = 0.0
    found = dict(answers(analyzed(tmp_path, results)))['varies with the seed']
    assert 'initialization, order of the training data (linear)' in found
    assert seed_sources(CONFIG, [{'name': 'loss'}]) == ALWAYS
    assert seed_sources({}, METRICS) is None

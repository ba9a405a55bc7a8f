"""Tuning: what is tried, what is chosen, what is refused, and that a choice stays."""

import dataclasses
import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
from helpers.support import quiet
from helpers.tiny_ablation import VARIANTS, names, table, write_result

from transformer_jax.ablation import Metric, Tune
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.choices import at_edges
from transformer_jax.ablation.durations import duration
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.results import load_results
from transformer_jax.ablation.runner import Unfinished, ablate, dry_run
from transformer_jax.ablation.tuning import lacking_tries, tuning_summary
from transformer_jax.errors import Busy, ConfigError, Diverged, Stopped, WorkdirError
from transformer_jax.profiling import measure
from transformer_jax.training.training_run import REMEDY

RATE = 'optim.learning_rate'
RATES = {RATE: (0.1, 0.2, 0.4)}
TWO = {'base': {}, 'one head': VARIANTS['one head']}
# The best rate of each variant, by what `tuned` pretends.
BEST = {'base': 0.2, 'one head': 0.4}


def try_name(rate, seed=1_000_000) -> str:
    return f'{RATE}={rate},seed={seed}'


def plan(root, tune=RATES, variants=TWO, seeds=0, only=(), part='0/1', **changes) -> Plan:
    experiment = dataclasses.replace(table(variants, **changes), tune=tune)
    made = Plan(experiment, 'table.py', root, seeds)
    made.narrow(only, part)
    return made


@pytest.fixture
def tuned(pretend, monkeypatch):
    """Pretend as `pretend` does; the loss of a try is its distance from the best rate.

    'metrics' lists the metrics that each run was scored by.
    """
    scored = pretend['metrics'] = {}

    def score(trial, metrics, log):
        scored[trial.name] = [str(metric) for metric in metrics]
        heads = trial.setting.config.model.num_heads
        best = BEST['one head' if heads == 1 else 'base']
        loss = 1 + abs(trial.setting.config.optim.learning_rate - best)
        write_result(trial, scores={'test exact_match': 0.5, 'validation loss': loss})

    monkeypatch.setattr(score_lib, 'score', score)
    return pretend


def choice(root, folder='base') -> dict:
    return json.loads((root / folder / 'tuning.json').read_text())


# --- What is chosen -------------------------------------------------------------------------------


def test_each_variant_has_the_same_tries_and_takes_its_best(tuned, tmp_path):
    made, lines = plan(tmp_path), []
    ablate(made, lines.append)
    tries = [
        f'{row}/tries/{try_name(rate)}' for row in ('base', 'one-head') for rate in RATES[RATE]
    ]
    assert tuned['trained'] == [*tries, 'base/0', 'base/1', 'one-head/0', 'one-head/1']
    assert [tuned['metrics'][name] for name in tries] == [['validation loss']] * 6
    for folder, best in (('base', 0.2), ('one-head', 0.4)):
        found = choice(tmp_path, folder)
        assert found['chosen'] == {RATE: best}
        assert [each['values'] for each in found['tries']] == [{RATE: r} for r in RATES[RATE]]
        assert [each['score'] for each in found['tries']] == [
            pytest.approx(1 + abs(rate - best)) for rate in RATES[RATE]
        ]
        config = json.loads((tmp_path / folder / '1' / 'config.json').read_text())
        assert config['optim']['learning_rate'] == best
    assert 'base: optim.learning_rate=0.2 chosen of 3 tries, validation loss 1' in lines
    assert [line for line in lines if '⚠' in line] == [
        'one head: optim.learning_rate=0.4 chosen of 3 tries, validation loss 1; '
        '⚠ optim.learning_rate=0.4 is the largest of the values tried'
    ]
    ablate(plan(tmp_path), quiet)
    assert len(tuned['trained']) == 10
    loaded = load_results(tmp_path)
    assert not loaded['missing']
    variants = loaded['experiment']['variants']
    assert [entry['config'][RATE] for entry in variants.values()] == [0.2, 0.4]
    assert variants['base']['tuning'] == choice(tmp_path)
    assert load_results(tmp_path / 'results.json') == loaded
    on_disk = json.loads((tmp_path / 'experiment.json').read_text())
    assert on_disk['variants']['base']['config'][RATE] not in RATES[RATE]


def test_whole_numbers_are_those_of_the_configuration(tuned, tmp_path):
    tune = {RATE: (2, 1), 'model.d_ff': (8, 16)}
    ablate(plan(tmp_path, tune, {'base': {}}), quiet)
    assert choice(tmp_path)['chosen'] == {RATE: 1.0, 'model.d_ff': 8}
    assert not load_results(tmp_path)['missing']
    assert not plan(tmp_path, {RATE: (2.0, 1.0), 'model.d_ff': (8, 16)}, {'base': {}}).lacks(
        plan(tmp_path, tune, {'base': {}}).trials[0]
    )
    plan(tmp_path, tune, {'base': {}}, **{RATE: 0.7})  # The value of the base is not used.


def test_more_seeds_later_have_the_values_that_were_chosen(tuned, tmp_path):
    ablate(plan(tmp_path, seeds=1), quiet)
    ablate(plan(tmp_path, seeds=3), quiet)
    assert tuned['trained'][6:] == [
        *('base/0', 'one-head/0'),
        *('base/1', 'base/2', 'one-head/1', 'one-head/2'),
    ]
    rates = [run.config.optim.learning_rate for run in plan(tmp_path, seeds=3).trials]
    assert rates == [0.2] * 3 + [0.4] * 3


def test_tries_that_differ_in_arrays_share_a_program(shared, tuned, tmp_path):
    tune = {RATE: (0.1, 0.2), 'model.d_ff': (16, 32), 'model.dropout': (0.0, 0.1)}
    ablate(plan(tmp_path, tune, {'base': {}}), quiet)
    first, second, seeds = tuned['trained']
    assert first.startswith('base/tries/4-together-')
    assert second.startswith('base/tries/4-together-')
    assert (first != second, seeds) == (True, 'base/0-1')
    assert choice(tmp_path)['chosen'] == {RATE: 0.2, 'model.d_ff': 16, 'model.dropout': 0.0}


def test_the_mean_over_seeds_decides_and_more_may_be_better(tuned, tmp_path, monkeypatch):
    values = dict(zip([(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)], [0.1, 0.9, 0.6, 0.6], strict=True))
    score = score_lib.score

    def matches(trial, metrics, log):
        if trial.seed < 1_000_000:
            return score(trial, metrics, log)
        key = trial.config.optim.learning_rate, trial.seed - 1_000_000
        return write_result(trial, scores={'validation exact_match': values[key]})

    monkeypatch.setattr(score_lib, 'score', matches)
    tune = Tune({RATE: (0.1, 0.2)}, Metric('exact_match', 'validation'), seeds=2)
    ablate(plan(tmp_path, tune, {'base': {}}), quiet)
    found = choice(tmp_path)
    assert found['chosen'] == {RATE: 0.2}
    assert [each['score'] for each in found['tries']] == [pytest.approx(0.5), pytest.approx(0.6)]
    assert [run['seed'] for run in found['tries'][0]['runs']] == [1_000_000, 1_000_001]


# --- Tries that fail ------------------------------------------------------------------------------


def test_what_diverges_is_the_worst_and_is_named(tuned, tmp_path):
    tuned[f'base/tries/{try_name(0.2)}'] = Diverged(f'step 3: loss nan; {REMEDY}')
    ablate(plan(tmp_path), quiet)
    found = choice(tmp_path)
    assert found['chosen'] == {RATE: 0.1}
    assert [each['score'] is None for each in found['tries']] == [False, True, False]
    assert found['tries'][1]['runs'][0]['failed'] == 'step 3: loss nan'
    assert choice(tmp_path, 'one-head')['chosen'] == {RATE: 0.4}


def test_one_of_several_in_a_program_diverges_alone(shared, tuned, tmp_path):
    tuned[f'base/tries/{try_name(0.2)}'] = Diverged('step 3: loss nan')
    tuned[f'base/tries/{try_name(0.4)}'] = Diverged('step 4: loss inf')
    ablate(plan(tmp_path), quiet)
    assert [name.partition('-together-')[0] for name in tuned['trained']] == [
        *('base/tries/3', 'one-head/tries/3'),
        *('base/0-1', 'one-head/0-1'),
    ]
    found = choice(tmp_path)
    assert found['chosen'] == {RATE: 0.1}
    assert [run['failed'] for each in found['tries'] for run in each['runs']] == [
        '',
        'step 3: loss nan',
        'step 4: loss inf',
    ]


def test_a_variant_whose_tries_all_diverge_fails_in_one_line(tuned, tmp_path):
    for rate in RATES[RATE]:
        tuned[f'base/tries/{try_name(rate)}'] = Diverged('step 3: loss nan')
    with pytest.raises(Unfinished) as unfinished:
        ablate(plan(tmp_path), quiet)
    why = f'every try failed, none can be chosen: {try_name(0.1)}: step 3: loss nan'
    assert str(unfinished.value).split('\n  ') == [
        '2 of 4 runs are not done:',
        f'base/0, base/1: {why}',
    ]
    assert unfinished.value.exit_code == 4
    assert not (tmp_path / 'base/tuning.json').exists()
    assert [gap['why'] for gap in load_results(tmp_path)['missing']] == [f'failed: {why}'] * 2
    assert tuned['trained'][-2:] == ['one-head/0', 'one-head/1']


def test_a_score_that_is_no_number_is_the_worst(tuned, tmp_path, monkeypatch):
    score = score_lib.score

    def nan(trial, metrics, log):
        score(trial, metrics, log)
        if f'{RATE}=0.2' in trial.name:
            write_result(trial, scores={'validation loss': 'nan'})

    monkeypatch.setattr(score_lib, 'score', nan)
    ablate(plan(tmp_path), quiet)
    assert choice(tmp_path)['chosen'] == {RATE: 0.1}
    assert choice(tmp_path)['tries'][1]['runs'][0]['failed'] == 'its score is not finite'


def test_what_fails_otherwise_leaves_the_choice_open_until_it_fails_again(tuned, tmp_path):
    tuned[f'base/tries/{try_name(0.2)}'] = MemoryError('of the device')
    with pytest.raises(
        Unfinished,
        match='base/0, base/1: 1 of 3 runs of tuning are not done, so nothing is chosen yet: '
        f'{re.escape(try_name(0.2))}: of the device.*; if it fails again, it counts as the worst',
    ):
        ablate(plan(tmp_path), quiet)
    assert not (tmp_path / 'base/tuning.json').exists()
    ablate(plan(tmp_path), quiet)
    assert choice(tmp_path)['chosen'] == {RATE: 0.1}
    assert 'of the device' in choice(tmp_path)['tries'][1]['runs'][0]['failed']


def test_what_another_process_tries_is_left_to_it(tuned, tmp_path):
    tuned[f'base/tries/{try_name(0.2)}'] = Busy('in use by process 7')
    for _ in range(2):  # However often: it is no fault of the try.
        with pytest.raises(Unfinished, match=r'base/0, base/1: 1 of 3 .*: in use by process 7'):
            ablate(plan(tmp_path), quiet)
    assert not (tmp_path / 'base/0').exists()
    del tuned[f'base/tries/{try_name(0.2)}']
    ablate(plan(tmp_path), quiet)
    assert choice(tmp_path)['chosen'] == {RATE: 0.2}


def test_a_stop_while_tuning_and_the_same_command_goes_on(tuned, tmp_path):
    tuned[f'base/tries/{try_name(0.2)}'] = Stopped(signal.SIGTERM, 'stopped')
    with pytest.raises(Stopped, match=r'stopped \(1 of 6 runs of tuning are done\)'):
        ablate(plan(tmp_path), quiet)
    del tuned[f'base/tries/{try_name(0.2)}']
    ablate(plan(tmp_path), quiet)
    assert tuned['trained'].count(f'base/tries/{try_name(0.1)}') == 1
    assert len(tuned['trained']) == 10


def test_a_signal_while_a_try_is_scored(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(score_lib, 'score', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match='stopped by SIGTERM; the same command continues'):
        ablate(plan(tmp_path), quiet)


# --- Parts ----------------------------------------------------------------------------------------


def test_parts_have_whole_variants_and_meet_in_the_root(tuned, tmp_path):
    parts = [names(plan(tmp_path, part=f'{i}/4').trials) for i in range(4)]
    assert parts == [[], ['base/0', 'base/1'], [], ['one-head/0', 'one-head/1']]
    ablate(plan(tmp_path, part='1/4'), quiet)
    assert tuned['trained'][3:] == ['base/0', 'base/1']
    ablate(plan(tmp_path, only=('one head',)), quiet)
    assert not load_results(tmp_path)['missing']
    assert choice(tmp_path, 'one-head')['chosen'] == {RATE: 0.4}


def test_the_tries_that_are_to_do_are_counted(tuned, tmp_path):
    made = plan(tmp_path, Tune(RATES, seeds=2))
    said = 'tuning: 3 tries × 2 seeds of each of 2 configs (optim.learning_rate: 0.1, 0.2, 0.4), '
    assert tuning_summary(made) == [f'{said}chosen by validation loss; 12 of 12 runs to do']
    assert {folder: len(tries) for folder, tries in lacking_tries(made).items()} == {
        'base': 6,
        'one-head': 6,
    }
    ablate(plan(tmp_path, Tune(RATES, seeds=2), only=('base',)), quiet)
    assert tuning_summary(plan(tmp_path, Tune(RATES, seeds=2)))[0].endswith('6 of 12 runs to do')


def test_a_dry_run_counts_the_tries(tuned, tmp_path, monkeypatch):
    size, step = SimpleNamespace(params=1), SimpleNamespace(step_flops=2.0, step_seconds=60.0)
    monkeypatch.setattr(measure, 'model_size', lambda components: size)
    monkeypatch.setattr(measure, 'measure_step', lambda components: step)
    lines = []
    shown = dry_run(plan(tmp_path), lines.append)
    columns = {str(column.header): [*map(str, column.cells)] for column in shown.columns}
    assert columns['to do'] == ['2 + 3 of tuning'] * 2
    assert str(shown.title).startswith('4 of 4 runs to do, 6 of tuning, ')
    steps = 4 * (2 + 3)
    assert columns['time'] == [duration(steps * step.step_seconds)] * 2
    assert lines[0].startswith('tuning: 3 tries of each of 2 configs')
    assert not list(tmp_path.iterdir())


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('tune', 'message'),
    [
        ({}, 'tune names no key: write tune='),
        ({RATE: ()}, "tune['optim.learning_rate'] has no value: name two values or more"),
        ({RATE: (0.1,)}, "tune['optim.learning_rate'] has only the value 0.1: name two"),
        ({RATE: (0.1, 0.2, 0.1)}, "tune['optim.learning_rate'] has 0.1 twice: leave one"),
        ({RATE: (1, 1.0)}, "tune['optim.learning_rate'] has 1.0 twice"),
        ({RATE: 0.1}, "values['optim.learning_rate']=0.1: it takes a tuple"),
        ({'optim.learning_rte': (1, 2)}, "unknown configuration key; did you mean 'optim.learning"),
        ({'train.seed': (1, 2)}, "tune['train.seed']: no seed is chosen; Tune(seeds=N) gives"),
        ({'checkpoint.every': (1, 2)}, "tune['checkpoint.every']: no score depends on it: leave"),
        ({'data.task': ('a', 'b')}, "tune['data.task']: scores of tries that differ in it cannot"),
        ({'model.num_heads': (1, 2)}, "tune['model.num_heads']: one head sets it: leave it out"),
        ({RATE: (0.1, -1.0)}, 'tune: optim.learning_rate=-1.0 is outside 0 ≤ value'),
        ({RATE: (0.1, 'x')}, "tune: optim.learning_rate='x' is of type str, it takes"),
        (
            {'optim.schedule': ('noam(warmup=2)', 'nom(warmup=2)')},
            'tune: optim.schedule',
        ),
        (3, 'tune=3: it takes Tune or a mapping'),
    ],
)
def test_values_that_cannot_be_tried_are_refused_in_one_line(tmp_path, tune, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as refusal:
        plan(tmp_path / 'root', tune)
    assert '\n' not in str(refusal.value)
    assert not (tmp_path / 'root').exists()


def test_all_variants_that_cannot_be_tried_are_listed(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        plan(tmp_path, {'model.d_model': (16, 17)})
    lines = [line.partition('=')[0] for line in str(refusal.value).split('\n  ')]
    assert lines == [
        'tune: values that cannot be tried:',
        'base: model.d_model',
        'one head: model.d_model',
    ]


@pytest.mark.parametrize(
    ('metric', 'message'),
    [
        (Metric('loss'), "metric='test loss' is of the test split, which no choice may see: take"),
        (Metric('step_seconds', 'validation'), "metric='step_seconds' is a time"),
        (Metric('blue', 'validation'), 'tune: validation blue: data.task=.* is scored by loss'),
        (Metric('loss', 'validation', 'best'), 'evaluate.every=0 finds no best checkpoint'),
    ],
)
def test_metrics_that_choose_nothing_are_refused(tmp_path, metric, message):
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, Tune(RATES, metric))


def test_sizes_that_are_solved_for_are_not_tuned():
    with pytest.raises(ConfigError, match=r"tune\['model.d_ff'\]: it may change the size"):
        dataclasses.replace(table(TWO), match='params', tune={'model.d_ff': (8, 16)})
    dataclasses.replace(table(TWO), match='params', tune={'model.dropout': (0.0, 0.1)})


def test_the_command_line_and_seeds_of_tuning(tmp_path):
    experiment = dataclasses.replace(table(TWO), tune=RATES)
    with pytest.raises(ConfigError, match=r'--config.optim.learning_rate: tune chooses it'):
        Plan(experiment, 'table.py', tmp_path, overrides={RATE: 0.3})
    with pytest.raises(ConfigError, match='seeds from 1000000 to 1000000 are those of tuning'):
        Plan(experiment, 'table.py', tmp_path, overrides={'train.seed': 999_999})


def test_other_tries_are_refused_once_there_are_some(tuned, tmp_path):
    plan(tmp_path).write()
    plan(tmp_path, {RATE: (0.1, 0.2)})  # Nothing has run: it may be another.
    ablate(plan(tmp_path, only=('base',)), quiet)
    for tune, changed in (
        ({RATE: (0.1, 0.2)}, "tune['optim.learning_rate']: [0.1, 0.2, 0.4] -> [0.1, 0.2]"),
        (Tune(RATES, seeds=2), 'tune: seeds: 1 -> 2'),
        (
            Tune(RATES, Metric('accuracy', 'validation')),
            'tune: metric: "validation loss" -> "validation accuracy"',
        ),
    ):
        with pytest.raises(ConfigError, match='was begun with another tune; take') as refusal:
            plan(tmp_path, tune)
        assert str(refusal.value).endswith(f'or the old one: {changed}')
    with pytest.raises(ConfigError, match=r"tune\['optim.learning_rate'\]: .* -> \(absent\)"):
        plan(tmp_path, None)


def test_a_choice_of_another_version_is_not_used(tuned, tmp_path):
    ablate(plan(tmp_path), quiet)
    content = choice(tmp_path)
    for change in ({'config': content['config'] | {'model.d_ff': 8}}, {'chosen': 3}):
        (tmp_path / 'base/tuning.json').write_text(json.dumps(content | change))
        with pytest.raises(WorkdirError, match=r'tuning.json is .*(model.d_ff: 8 ->|damaged)'):
            plan(tmp_path)


def test_a_root_that_was_not_tuned_stays_so(pretend, tmp_path):
    ablate(plan(tmp_path, None), quiet)
    with pytest.raises(ConfigError, match=r"tune\['optim.learning_rate'\]: \(absent\) -> "):
        plan(tmp_path)


def test_edges_are_where_a_better_value_may_lie_beyond():
    values = {RATE: (0.1, 0.2), 'model.dropout': (0.0, 0.1, 0.2), 'optim.schedule': ('a', 'b')}
    chosen = {RATE: 0.1, 'model.dropout': 0.0, 'optim.schedule': 'a'}
    assert at_edges(values, chosen) == [
        'optim.learning_rate=0.1 is the smallest of the values tried'
    ]
    assert at_edges(values, chosen | {RATE: 0.2, 'model.dropout': 0.2}) == [
        'optim.learning_rate=0.2 is the largest of the values tried',
        'model.dropout=0.2 is the largest of the values tried',
    ]
    assert at_edges({'model.d_ff': (1, 2, 4)}, {'model.d_ff': 2}) == []
    assert at_edges({'model.d_ff': (1, 2, 4)}, {'model.d_ff': 1}) == []

"""Seeds that are added: looks at a lower level, and pilots that say how many are needed."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.support import quiet
from helpers.tiny_ablation import METRICS, table, write_result

from transformer_jax.ablation import Claim
from transformer_jax.ablation import score as score_lib
from transformer_jax.ablation.claims import Outcome, judge
from transformer_jax.ablation.durations import parse_duration
from transformer_jax.ablation.looks import level, no_looks, remark, take_look
from transformer_jax.ablation.many_to_one import balanced, equal_tables
from transformer_jax.ablation.pilot import foreseen, waits
from transformer_jax.ablation.pilot_table import pilot_table
from transformer_jax.ablation.plan import Plan
from transformer_jax.ablation.runner import ablate
from transformer_jax.ablation.statistics import compare_pairs
from transformer_jax.errors import ConfigError
from transformer_jax.report.analysis import analyze
from transformer_jax.report.html_page import html_report
from transformer_jax.report.markdown import markdown_report

LOSS = str(METRICS[1])
VARIANTS = {'base': {}, 'one head': {'model.num_heads': 1}, 'no dropout': {'model.dropout': 0.0}}
BETTER = Claim('one head is better', metric=LOSS, variant='one head', margin=0.05)
EQUAL = Claim('dropout is no matter', LOSS, 'no dropout', direction='equal', margin=0.1)
SPREAD = 0.02


@pytest.fixture
def scored(pretend, monkeypatch):
    """Training costs nothing; losses vary by SPREAD, those of one head are lower by 0.2."""

    def score(run, metrics, log):
        place = list(VARIANTS).index(run.setting.variants[0])
        noise = np.random.default_rng([place, run.seed]).normal(0, SPREAD)
        loss = 1 - 0.2 * (run.setting.variants[0] == 'one head') + noise
        write_result(run, scores={'test exact_match': 0.5, LOSS: loss}, wall_seconds=60.0)

    monkeypatch.setattr(score_lib, 'score', score)
    return pretend


def make(root, seeds=0, pilot=False, claims=(BETTER, EQUAL), looks=1) -> Plan:
    experiment = dataclasses.replace(
        table(VARIANTS, METRICS[1:]), claims=claims, looks=looks, seeds=3
    )
    return Plan(experiment, 'table.py', root, seeds, {}, pilot)


def run(*args, **kwargs) -> Plan:
    plan = make(*args, **kwargs)
    ablate(plan, quiet)
    return plan


def taken(root) -> list[int]:
    record = json.loads((root / 'experiment.json').read_text())
    return [look['seeds'] for look in record['looks']['taken']]


def test_looks_share_the_chance_of_a_false_verdict():
    looks = no_looks(2)
    assert level({}) == 0.05
    assert level({'pilot': {}, 'looks': looks}) == 0.025
    assert level({'pilot': {'seeds': 3}, 'looks': looks}) == 0.02
    for seeds in (3, 3, 10, 20):
        looks = take_look(looks, {'seeds': seeds})
    assert [look['seeds'] for look in looks['taken']] == [3, 10, 20]
    assert level({'looks': looks}) == pytest.approx(0.05 / 3)
    assert 'up to 6.7%' in remark({'looks': looks})  # 2.5% + 2.5% + 1.67%
    assert remark({'looks': no_looks()}) == ''


def test_a_look_is_taken_when_all_runs_are_there(scored, tmp_path):
    run(tmp_path)
    run(tmp_path)
    assert taken(tmp_path) == [3]
    plan = make(tmp_path, 6)
    plan.narrow(['base'], '0/1')
    ablate(plan, quiet)
    assert taken(tmp_path) == [3]
    run(tmp_path, 6)
    assert taken(tmp_path) == [3, 6]
    assert len(scored['trained']) == 3 * 6  # none was trained again
    report = analyze(tmp_path)
    assert 'after a verdict that was to be the last' in markdown_report(report)
    assert 'after a verdict that was to be the last' in html_report(report)


def test_a_process_that_ends_late_takes_nothing_back(scored, tmp_path):
    """One that began with 3 seeds ends after another has taken verdicts with 6."""
    late = make(tmp_path)
    late.write()
    run(tmp_path, 6)
    late.finish()
    assert taken(tmp_path) == [6]
    assert json.loads((tmp_path / 'experiment.json').read_text())['seeds'] == [0, 1, 2, 3, 4, 5]


def test_a_report_says_at_which_level_its_verdicts_are(scored, tmp_path):
    run(tmp_path, 3, looks=2)
    report = markdown_report(analyze(tmp_path))
    assert 'difference \\[97.5%\\]' in report
    assert 'Verdicts hold at 2.5%' in report
    assert '95% interval for all' not in report + html_report(analyze(tmp_path))


def test_seeds_that_are_added_need_a_clearer_difference(scored, tmp_path):
    """The intervals are those of the level that is left, and the same as if it had been planned."""
    run(tmp_path / 'at once', 6)
    run(tmp_path / 'added', 3)
    run(tmp_path / 'added', 6)
    for seeds in (3, 6):
        run(tmp_path / 'planned', seeds, looks=2)
    at_once, added, planned = (
        {row.variant: row.difference for row in analyze(tmp_path / name).tables[0].rows}
        for name in ('at once', 'added', 'planned')
    )
    assert added == planned
    for name in ('one head', 'no dropout'):
        assert added[name].low < at_once[name].low < at_once[name].high < added[name].high


def test_old_results_were_looked_at(scored, tmp_path):
    run(tmp_path)
    path = tmp_path / 'experiment.json'
    record = json.loads(path.read_text())
    del record['looks'], record['pilot']
    path.write_text(json.dumps(record))
    assert analyze(tmp_path).looks == ''
    run(tmp_path, 6)
    assert taken(tmp_path) == [3, 6]


def test_a_pilot_plans_seeds_and_shows_no_verdict(scored, tmp_path):
    plan = run(tmp_path, pilot=True)
    pilot = plan.plan_seeds(None)
    better, equal = pilot['claims']
    assert (better['from'], better['difference']) == ('its margin', pytest.approx(0.05))
    assert better['seeds'] > equal['seeds'] >= 2
    assert pilot['seconds_per_seed'] == 3 * 60
    assert taken(tmp_path) == []
    report = analyze(tmp_path)
    assert {claim.outcome for claim in report.claims} == {Outcome.UNDECIDED}
    assert 'a pilot of 3 seeds: ablate with --budget or --seeds goes on' in report.claims[0].verdict
    assert [str(cell) for cell in pilot_table(pilot).columns[0].cells] == [
        BETTER.text,
        EQUAL.text,
    ]


def test_a_budget_chooses_the_seeds_and_the_report_has_both(scored, tmp_path):
    pilot = run(tmp_path, pilot=True).plan_seeds(3600.0)
    planned = pilot['planned']
    assert planned == max(claim['seeds'] for claim in pilot['claims'])
    assert f'the {planned} seeds that a pilot planned' in waits(make(tmp_path).record)
    again = run(tmp_path, pilot=True)  # as after a kill: the same command
    assert again.plan_seeds(3600.0) == pilot
    run(tmp_path)
    assert taken(tmp_path) == [planned]
    report = analyze(tmp_path)
    assert [claim.outcome for claim in report.claims] == ['supported', 'supported']
    assert f'foresaw a chance of {foreseen(pilot["claims"][0]["power"], planned):.0%}' in (
        markdown_report(report)
    )
    with pytest.raises(ConfigError, match='--budget no longer changes the plan'):
        make(tmp_path, pilot=True).plan_seeds(7200.0)


def test_a_small_budget_pays_for_fewer_seeds(scored, tmp_path):
    plan = run(tmp_path, pilot=True)
    assert plan.plan_seeds(4.5 * 180)['planned'] == 4
    with pytest.raises(ConfigError, match='the 3 seeds of the pilot alone took 540 s'):
        plan.plan_seeds(100.0)


def test_seeds_after_a_pilot_are_its_plan(scored, tmp_path):
    run(tmp_path, pilot=True).plan_seeds(None)
    assert make(tmp_path, 5).record['pilot']['planned'] == 5
    run(tmp_path, 5)
    assert taken(tmp_path) == [5]
    more = make(tmp_path, 8)
    assert more.record['pilot']['planned'] == 5  # what was planned stays
    assert len({trial.seed for trial in more.trials}) == 8


def test_what_no_pilot_can_be_of_is_refused(scored, tmp_path, pretend):
    with pytest.raises(ConfigError, match='has no claims='):
        make(tmp_path, pilot=True, claims=())
    with pytest.raises(ConfigError, match='--seeds=1 of a pilot'):
        make(tmp_path, 1, pilot=True)
    run(tmp_path, 2, pilot=True)
    with pytest.raises(ConfigError, match='that under --root had 2'):
        make(tmp_path, 4, pilot=True)
    run(tmp_path / 'late')
    with pytest.raises(ConfigError, match='verdicts were taken with 3 seeds'):
        make(tmp_path / 'late', pilot=True)
    with pytest.raises(ConfigError, match='looks=0, it takes 1 to 20'):
        make(tmp_path, looks=0)


def test_a_pilot_without_spread_is_refused(pretend, tmp_path):
    plan = run(tmp_path, pilot=True)
    with pytest.raises(
        ConfigError, match='no run of the pilot differs from the others of its variant by v'
    ):
        plan.plan_seeds(None)


@pytest.mark.parametrize('text', ['2', 'h', '-1h', '0min', '2d', '1h30', 'nan s', '9' * 400 + 'h'])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ConfigError, match='it takes a time such as 2h'):
        parse_duration(text, '--budget')


def test_durations_are_read():
    assert [parse_duration(text, '') for text in ('1.5h', '45min', ' 90 s')] == [5400, 2700, 90]


def test_the_command_runs_a_pilot_then_what_it_planned(scored, call, tmp_path, monkeypatch):
    """`--budget` alone does it all, and prints how many seeds decide each claim."""
    experiment = dataclasses.replace(table(VARIANTS, METRICS[1:]), claims=(BETTER, EQUAL))
    monkeypatch.setattr('transformer_jax.ablation.load_experiment', lambda path: experiment)
    code, output, _ = call('ablate', 'table.py', f'--root={tmp_path}', '--budget=1h')
    assert code == 0
    assert 'one head is better' in output
    assert 'planned:' in output
    assert taken(tmp_path) == [
        json.loads((tmp_path / 'experiment.json').read_text())['pilot']['planned']
    ]


@pytest.mark.parametrize(('direction', 'step'), [('better', 1.5), ('equal', 0.0)])
def test_the_chance_that_is_foreseen_is_that_of_tables(direction, step):
    """Of 300 tables with known spread, those that decide a claim, against what a plan says."""
    seeds, margin, rng = 6, 1.5, np.random.default_rng(5)
    claim = Claim('a claim', LOSS, 'v1', direction=direction, margin=None if step else margin)
    decided = 0
    for _ in range(300):
        runs = rng.normal(size=(4, seeds))
        runs[1] += step
        values = {f'v{v}': dict(enumerate(row)) for v, row in enumerate(runs.tolist())}
        pairs = [(f'v{v}', 'v0') for v in (1, 2, 3)]
        found = compare_pairs(values, pairs, False)['v1', 'v0']
        decided += judge(claim, [found])[0] == Outcome.SUPPORTED
    equal = equal_tables(balanced(seeds, ((1, 0), (2, 0), (3, 0))))
    expected = equal.power_within(0, margin) if not step else equal.power(0, step)
    assert decided / 300 == pytest.approx(expected, abs=0.08)


def test_what_is_to_be_found_at_a_ceiling_is_below_it(pretend, monkeypatch, tmp_path):
    def score(run, metrics, log):
        noise = np.random.default_rng(run.seed).uniform(0, 0.01)
        share = 1.0 if run.setting.variants[0] == 'base' else 0.3 + noise
        write_result(run, scores={'test exact_match': share}, wall_seconds=1.0)

    monkeypatch.setattr(score_lib, 'score', score)
    claims = (
        Claim('one head is worse', str(METRICS[0]), 'one head', direction='worse'),
        Claim('it matters', str(METRICS[0]), 'no dropout', direction='worse', margin=0.2),
    )
    experiment = dataclasses.replace(table(VARIANTS, METRICS[:1]), claims=claims, seeds=3)
    plan = Plan(experiment, 'table.py', tmp_path, 0, {}, True)
    ablate(plan, quiet)
    found = [claim['difference'] for claim in plan.plan_seeds(None)['claims']]
    assert found == pytest.approx([0.695, 0.2], abs=0.01)

"""Goodput of made-up runs, by hand."""

import pytest
from etils import epath

from transformer_jax.efficiency.time_spent import Stretch, TimeSpent, read_stretches


def spent(*stretches):
    return TimeSpent(Stretch(*stretch) for stretch in stretches)


def test_one_start():
    run = spent((0, 0, 100.0, 110.0, {'setup': 10.0}), (0, 50, 110.0, 150.0, {'wait': 10.0}))
    assert run.seconds == {'setup': 10.0, 'wait': 10.0, 'steps': 30.0}
    assert (run.total, run.goodput, run.starts, run.between) == (50.0, 0.6, 1, 0.0)


def test_a_kill_makes_what_is_done_again_useless():
    run = spent(
        (0, 0, 0.0, 5.0, {'setup': 5.0}),
        (0, 50, 5.0, 55.0, {}),  # a second a step
        (50, 100, 55.0, 155.0, {}),  # two seconds a step; saved after step 60
        (60, 60, 255.0, 265.0, {'setup': 8.0, 'restore': 2.0}),
        (60, 100, 265.0, 345.0, {}),
    )
    # 50 s and 20 s of the first start count; its 80 s of steps 61 to 100 were done again.
    expected = {'setup': 13.0, 'restore': 2.0, 'steps': 50.0 + 20 + 80, 'redone': 80.0}
    assert run.seconds == pytest.approx(expected)
    assert (run.starts, run.between) == (2, 100.0)
    assert run.goodput == pytest.approx(150 / 245)


def test_kills_of_the_same_steps_add_up():
    start = [(0, 0, 0.0, 1.0, {'setup': 1.0}), (0, 10, 1.0, 11.0, {})]
    run = spent(*start, *start, *start)
    assert run.seconds == {'setup': 3.0, 'steps': 10.0, 'redone': 20.0}


def test_a_run_that_was_saved_when_it_stopped_loses_nothing():
    run = spent((0, 10, 0.0, 10.0, {}), (10, 10, 20.0, 21.0, {'setup': 1.0}), (10, 20, 21, 31, {}))
    assert run.seconds == {'setup': 1.0, 'steps': 20.0}


def test_a_clock_that_was_set_back_makes_no_negative_time():
    run = spent((0, 10, 100.0, 90.0, {'wait': 1.0}))
    assert run.seconds == {'wait': 1.0, 'steps': 0.0}


def test_no_time_has_no_goodput():
    assert TimeSpent().goodput == 0.0


def test_the_lines_name_each_cause_with_its_share():
    run = spent((0, 0, 0.0, 25.0, {'setup': 25.0}), (0, 50, 25.0, 100.0, {}))
    assert list(run.lines()) == [
        'time    100 s in 1 start, goodput 75.0%',
        '  steps         75.0 s   75.0%  steps that count',
        '  setup         25.0 s   25.0%  reading data, building the model',
    ]


def test_damaged_lines_do_not_count(tmp_path):
    path = epath.Path(tmp_path / 'times.jsonl')
    assert read_stretches(path) == []
    good = '{"first": 0, "last": 5, "began": 1, "ended": 2.5, "seconds": {"wait": 0.5}}'
    path.write_text(f'{good}\n{{"first": 0}}\n[\n{good.replace("0.5", "null")}\n{good[:30]}')
    assert read_stretches(path) == [Stretch(0, 5, 1, 2.5, {'wait': 0.5})]

"""The largest operations of made-up traces."""

import pytest

from transformer_jax.efficiency.profile import Window, operation_lines
from transformer_jax.efficiency.trace import Operation, largest_operations
from transformer_jax.errors import ConfigError


def op(name, start, duration, tid=1, **more):
    arguments = {'hlo_op': name, 'hlo_module': 'jit_train_step', **more}
    return {'ph': 'X', 'pid': 7, 'tid': tid, 'name': name, 'ts': start, 'dur': duration} | {
        'args': arguments
    }


def test_operations_are_summed_over_calls_and_threads():
    trace = {
        'traceEvents': [
            op('dot.1', 0, 3000, tf_op='decoder/layer_0/ffn'),
            op('dot.1', 0, 1000, tid=2),
            op('add.2', 4000, 1000),
            {'ph': 'X', 'pid': 7, 'tid': 3, 'name': 'python', 'ts': 0, 'dur': 99_000},
            {'ph': 'M', 'pid': 7, 'name': 'process_name', 'args': {'name': '/host:CPU'}},
        ]
    }
    assert largest_operations(trace) == [
        Operation('dot.1', 'decoder/layer_0/ffn', 4e-3, 2, 0.8),
        Operation('add.2', '', 1e-3, 1, pytest.approx(0.2)),
    ]
    assert [each.name for each in largest_operations(trace, 1)] == ['dot.1']


def test_a_loop_does_not_count_what_is_inside():
    inner = [op('dot', start, 300) for start in (100, 400, 1300)]  # The last is after the loop.
    deep = op('exp', 150, 100)
    found = largest_operations({'traceEvents': [op('while', 0, 1000), *inner, deep]})
    seconds = {each.name: round(1e6 * each.seconds) for each in found}
    assert seconds == {'while': 400, 'dot': 800, 'exp': 100}


def test_a_tpu_names_a_thread_of_operations():
    def event(name, tid):
        return {'ph': 'X', 'pid': 3, 'tid': tid, 'name': name, 'ts': 0, 'dur': 5}

    threads = [
        {'ph': 'M', 'name': 'thread_name', 'pid': 3, 'tid': tid, 'args': {'name': name}}
        for tid, name in ((1, 'XLA Modules'), (2, 'XLA Ops'))
    ]
    trace = {'traceEvents': [*threads, event('jit_train_step', 1), event('fusion.3', 2)]}
    assert [each.name for each in largest_operations(trace)] == ['fusion.3']


def test_a_trace_without_operations():
    assert largest_operations({}) == []
    assert operation_lines([]) == ['the profile has no operations of a compiled program']


def test_lines_are_a_table():
    _, line = operation_lines([Operation('dot.1', 'ffn', 0.0125, 3, 0.5)])
    assert line.split() == ['dot.1', '12.50', '50.0%', '3', 'ffn']


@pytest.mark.parametrize('text', ['', '5', '5:', ':5', 'a:b', '-1:5', '1:2:3', '1.5:2', '٣:٤'])
def test_what_is_no_window_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r'--profile=.*: write START:STOP, as in --profile=100'):
        Window.parse(text)


@pytest.mark.parametrize('text', ['5:5', '6:5', '5:13', '12:13'])
def test_a_window_outside_the_run_is_refused(text):
    with pytest.raises(ConfigError, match=f'{text} is no part of a run of train.steps=12 steps'):
        Window.parse(text).require_within(12)
    Window.parse('0:12').require_within(12)

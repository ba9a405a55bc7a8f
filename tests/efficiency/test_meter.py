"""The meter of a loop, by a clock that the test moves."""

import json
import types
from collections import Counter

import jax
import pytest
from etils import epath

from transformer_jax.efficiency import meter as meter_lib
from transformer_jax.efficiency import timing
from transformer_jax.efficiency.meter import Meter, device_memory_peak
from transformer_jax.efficiency.time_spent import TimeSpent, read_stretches


class Clock:
    """What `meter` imports as `time`."""

    now = 1000.0

    def time(self):
        return self.now

    perf_counter = time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter_lib, 'time', clock)
    monkeypatch.setattr(meter_lib, 'model_flops', lambda architecture, length: 10 * length)
    monkeypatch.setattr(meter_lib, 'peak_flops', lambda dtype: 400.0)
    return clock


def make_meter(path):
    return Meter(types.SimpleNamespace(dtype='float32'), epath.Path(path))


def take_step(meter, clock, seconds, compiling=0.0, length=8):
    with meter.dispatch(4, length):
        clock.now += compiling
    clock.now += seconds
    meter.step_done()


def test_a_line_of_the_log_by_hand(clock, tmp_path):
    meter = make_meter(tmp_path / 'times.jsonl')
    clock.now += 5
    meter.begin_steps(0)
    take_step(meter, clock, 2.0, compiling=7.0)
    with meter.measure('evaluate'):
        clock.now += 100
    take_step(meter, clock, 4.0)
    values = meter.log_values(2, 80.0)
    assert values['tokens_per_second_per_device'] == 80 / jax.device_count()
    assert values['model_flops_per_second'] == pytest.approx(2 * 4 * 80 / 6)  # of 6 s of steps
    assert values['mfu'] == pytest.approx(2 * 4 * 80 / 6 / 400)
    assert values['step_seconds_p50'] == pytest.approx(3.0)
    assert values['step_seconds_p99'] == pytest.approx(3.98)
    assert values['compile_seconds'] == 7.0
    assert values['memory_peak_bytes'] > 10_000_000
    assert values['goodput'] == pytest.approx(6 / (5 + 7 + 100 + 6))
    take_step(meter, clock, 1.0)
    assert meter.log_values(3, 80.0)['step_seconds_p50'] == 1.0  # Nothing of before.


def test_steps_that_are_compiled_while_others_run_keep_their_own_time(clock, tmp_path):
    meter = make_meter(tmp_path / 'times.jsonl')
    meter.begin_steps(0)
    with meter.dispatch(4, 8):
        pass
    with meter.dispatch(4, 16):  # The loop dispatches step 2 before it hears of step 1.
        clock.now += 50
    clock.now += 1
    meter.step_done()
    clock.now += 3
    meter.step_done()
    values = meter.log_values(2, 1.0)
    assert values['model_flops_per_second'] == 4 * (80 + 160) / 4
    assert values['compile_seconds'] == 50.0


def test_waiting_is_a_part_of_a_step(clock, tmp_path):
    meter = make_meter(tmp_path / 'times.jsonl')
    meter.begin_steps(0)
    clock.now += 2
    meter.count('wait', 2.0)
    take_step(meter, clock, 1.0)
    assert meter.log_values(1, 1.0)['step_seconds_p50'] == 3.0
    assert Counter(meter.spent.seconds) == Counter(wait=2.0, steps=1.0)


def test_a_kill_is_found_in_what_is_recorded(clock, tmp_path):
    path = tmp_path / 'times.jsonl'
    first = make_meter(path)
    clock.now += 1
    first.begin_steps(0)
    for step in (1, 2, 3):
        take_step(first, clock, 10.0)
        first.log_values(step, 1.0)
    clock.now += 60  # Killed; the checkpoint is that of step 1.
    second = make_meter(path)
    with second.measure('restore'):
        clock.now += 4
    second.begin_steps(1)
    take_step(second, clock, 10.0)
    second.mark(2)
    expected = Counter(setup=1.0, restore=4.0, steps=20.0, redone=20.0)
    found = TimeSpent(read_stretches(epath.Path(path)))
    assert Counter(found.seconds) == Counter(second.spent.seconds) == expected
    assert (found.starts, found.between) == (2, 60.0)


def test_no_peak_is_no_mfu(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(meter_lib, 'peak_flops', lambda dtype: None)
    meter = make_meter(tmp_path / 'times.jsonl')
    meter.begin_steps(0)
    take_step(meter, clock, 1.0)
    assert 'mfu' not in meter.log_values(1, 1.0)


def test_a_record_that_cannot_be_written_stops_nothing(clock, tmp_path, caplog):
    (tmp_path / 'file').touch()
    meter = make_meter(tmp_path / 'file' / 'times.jsonl')
    meter.begin_steps(0)
    for step in (1, 2):
        take_step(meter, clock, 1.0)
        assert meter.log_values(step, 1.0)['goodput'] == 1.0
    assert caplog.text.count('the run goes on without it') == 1


def test_the_lines_are_json(clock, tmp_path):
    meter = make_meter(tmp_path / 'times.jsonl')
    meter.begin_steps(3)
    (line,) = (tmp_path / 'times.jsonl').read_text().splitlines()
    ended = {'first': 3, 'last': 3, 'began': 1000.0, 'ended': 1000.0}
    ended |= {'seconds': {'setup': 0.0}, 'flops': 0.0}
    assert json.loads(line) == ended


def test_the_memory_of_devices_is_the_largest_and_of_a_cpu_that_of_the_process(monkeypatch):
    assert device_memory_peak() > 10_000_000
    devices = [
        types.SimpleNamespace(memory_stats=lambda peak=peak: {'peak_bytes_in_use': peak})
        for peak in (5, 7, 6)
    ]
    monkeypatch.setattr(jax, 'local_devices', lambda: devices)
    assert device_memory_peak() == 7


@pytest.mark.parametrize(
    ('kind', 'dtype', 'expected'),
    [
        ('NVIDIA H200', 'bfloat16', 8 * 989.4e12),
        ('TPU v2', 'float32', 8 * 23e12),  # Two devices in a chip.
        ('NVIDIA H200', 'float16', None),
        ('some chip', 'bfloat16', None),
    ],
)
def test_the_peak_of_a_run_is_that_of_all_its_devices(monkeypatch, kind, dtype, expected):
    device = types.SimpleNamespace(platform='other', device_kind=kind)
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    assert timing.peak_flops.__wrapped__(dtype) == expected


def test_a_cpu_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(timing, 'matmul_peak', lambda dtype, size: measured.append(size) or 7.0)
    timing.peak_flops.cache_clear()
    assert [timing.peak_flops('float32') for _ in range(2)] == [7.0, 7.0]
    timing.peak_flops.cache_clear()
    assert measured == [round(1024 / jax.device_count() ** (1 / 3))]


def test_each_stretch_has_the_flops_of_its_steps(clock, tmp_path):
    path = epath.Path(tmp_path / 'times.jsonl')
    meter = make_meter(path)
    meter.begin_steps(0)
    take_step(meter, clock, 1.0)
    meter.log_values(1, 1.0)
    take_step(meter, clock, 1.0, length=16)
    take_step(meter, clock, 1.0)
    meter.mark(3)
    assert [stretch.flops for stretch in read_stretches(path)] == [0, 4 * 80, 4 * 160 + 4 * 80]
    old = {'first': 0, 'last': 1, 'began': 0.0, 'ended': 1.0, 'seconds': {}}
    path.write_text(json.dumps(old) + '\n')
    assert [stretch.flops for stretch in read_stretches(path)] == [None]

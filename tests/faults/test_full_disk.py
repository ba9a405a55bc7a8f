"""A disk that is full, or that may not be written.

The kind: an operating-system error of a write that reaches the user as a traceback, as another
error, as a wrong remedy, or not at all while the run stands still. What is the result of a run ends
it with exit code 3 and one line that has the whole path; what is only a record of it is left out
after one warning; what was computed is shown before it is written.
"""

import contextlib
import json
import logging
import signal
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX.event_file_writer
from etils import epath
from helpers.small_disk import fill, needs_root, small_disk
from helpers.support import experiment, flags, quiet
from matplotlib.figure import Figure

from transformer_jax.ablation import results, score, train_seeds
from transformer_jax.ablation.train_seeds import Failure
from transformer_jax.cli import evaluate as evaluate_command
from transformer_jax.data import encoding
from transformer_jax.data.files import Texts
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.display.figures import save_figure
from transformer_jax.errors import WorkdirError
from transformer_jax.evaluation.evaluator import Evaluation
from transformer_jax.inference import attention_maps, probes
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.report import write as report_write
from transformer_jax.storage import files, manifest, orbax_errors
from transformer_jax.storage.checkpoints import Checkpoints
from transformer_jax.storage.locks import lock
from transformer_jax.storage.metrics_writer import MetricsWriter, truncate_after
from transformer_jax.storage.seed_group import SeedGroup
from transformer_jax.storage.seed_group_file import edit_groups
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import train as train_lib
from transformer_jax.training.programs import make_program
from transformer_jax.training.training_run import TrainingRun

FULL = OSError(28, 'No space left on device')
STATE = {'params': {f'layer {n}': jnp.ones((10, 7)) for n in range(4)}}


def fails(*_, **__):
    raise FULL


# --- What is the result: exit code 3, one line, the whole path ------------------------------------


def hold_lock(folder):
    with lock(folder / 'lock'):
        pass


def enter_group(folder):
    with edit_groups(folder) as groups:
        groups['0-1'] = SeedGroup(folder, '0-1', ('0', '1'))


def start_run(folder):
    with Workdir(folder).open_for_training(json.loads(json.dumps({'train': {'seed': 0}}))):
        pass


def store_encoding(folder):
    encoded = encoding.Encoded(None, encoding.Ragged(np.arange(9), np.arange(2)), None, None)
    encoding.store(folder / 'encoded', encoded, Texts(None, ['a'], 'a', 'a'))


def save_checkpoint(folder):
    checkpoints = Checkpoints(folder / 'checkpoints', keep=1)
    checkpoints.save(1, STATE, {'best': None})
    checkpoints.wait()


def write_tables(folder):
    with pytest.MonkeyPatch.context() as patch:
        empty = types.SimpleNamespace(experiment={'variants': {}})
        patch.setattr(report_write, 'analyze', lambda path: empty)
        patch.setattr(report_write.figures, 'write_figures', lambda report, out: {})
        for name in ('markdown_report', 'html_report', 'latex_report', 'runs_csv', 'summary_csv'):
            patch.setattr(report_write, name, lambda *_: 'text')
        report_write.write_report(folder, folder / 'report')


WRITES = {
    'a text': lambda folder: files.write_text(folder / 'a.txt', 'text'),
    'bytes in a new folder': lambda folder: files.write_bytes(folder / 'a' / 'b', b'bytes'),
    'a line': lambda folder: files.append_line(folder / 'a.jsonl', 'x' * 9000),
    'a folder with a file': store_encoding,
    'a tokenizer': lambda folder: Bytes(b'').save(folder / 'tokenizer'),
    'a figure': lambda folder: save_figure(Figure(), folder / 'figures' / 'a.png'),
    'probes': lambda folder: probes.write_probes({'split': 'test', 'checkpoints': []}, folder),
    'an evaluation': lambda folder: Workdir(folder).append_evaluation({'loss': 1.0}),
    'translations': lambda folder: Evaluation({}, {}, ['a']).write_samples(folder / 's' / 't.txt'),
    'metrics': lambda folder: MetricsWriter(folder / 'metrics.jsonl', folder / 'events', -1).write(
        1, 'train', {'loss': 1.0}
    ),
    'a manifest': manifest.write,
    'a lock': hold_lock,
    'seed groups': enter_group,
    'config.json and run.json': start_run,
    'a checkpoint': save_checkpoint,
    'a report': write_tables,
}


@needs_root
@pytest.mark.parametrize('name', WRITES)
def test_a_full_disk_is_one_line_with_the_path(name, tmp_path):
    with small_disk(tmp_path / 'disk', 64) as disk:
        fill(disk)
        folder = epath.Path(disk)
        with pytest.raises(WorkdirError) as raised:
            WRITES[name](folder)
        message = str(raised.value)
        assert '\n' not in message
        assert str(disk) + '/' in message
        assert 'No space left on device; make room' in message
        assert '--workdir' not in message  # which another command does not have
        left = {path.name for path in disk.rglob('*') if path.is_file() and path.stat().st_size}
        assert left == {'filler'}  # nothing that is written in part


@pytest.mark.parametrize('name', sorted(WRITES.keys() - {'a manifest'}))
def test_a_file_where_a_folder_should_be_is_one_line(name, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WorkdirError) as raised:
        WRITES[name](epath.Path(tmp_path / 'file' / 'folder'))
    assert '\n' not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@needs_root
def test_a_full_disk_keeps_the_lines_that_are_there(tmp_path):
    with small_disk(tmp_path / 'disk', 64) as disk:
        path = epath.Path(disk / 'metrics.jsonl')
        fill(disk, left=8192)
        for number in range(3):
            files.append_line(path, json.dumps({'step': number}))
        before = path.read_text()
        with pytest.raises(WorkdirError, match=r'disk/metrics\.jsonl: No space left'):
            files.append_line(path, json.dumps({'step': 3, 'text': 'x' * 20_000}))
        assert path.read_text() == before
        truncate_after(path, 3)
        assert path.read_text() == before


def test_the_remedy_names_where_the_file_goes(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WorkdirError, match=r'another --out$'):
        save_figure(Figure(), epath.Path(tmp_path / 'file' / 'a.png'))
    with pytest.raises(WorkdirError, match=r'another data\.cache_dir$'):
        store_encoding(epath.Path(tmp_path / 'file'))


@pytest.mark.parametrize(
    ('failure', 'reason'),
    [
        (OSError(28, 'No space left on device'), 'No space left on device'),
        (OSError(30, 'Read-only file system'), 'Read-only file system'),
        (
            ValueError(
                f'Error writing "{"x" * 500}": Failed: [os_error_code=\'28\']\n' + 9 * 'at\n'
            ),
            'No space left on device',
        ),
        (ValueError('first line\nsecond line'), 'first line'),
    ],
)
def test_a_failure_of_orbax_is_told_in_some_words(tmp_path, monkeypatch, failure, reason):
    def raises():
        raise failure

    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=1)
    fake = types.SimpleNamespace(save=lambda *_, **__: None, wait_until_finished=raises)
    monkeypatch.setattr(checkpoints, '_orbax', fake)
    checkpoints.save(1, {'a': jnp.ones(3)}, {'best': None})
    with pytest.raises(WorkdirError) as raised:
        checkpoints.wait()
    expected = f'checkpoint 1 was not saved in {tmp_path}/checkpoints: {reason}; make room'
    assert str(raised.value).startswith(expected)


@needs_root
@pytest.mark.parametrize('left', [4, 16, 32, 48, 64])
def test_nothing_else_is_said_of_a_checkpoint_on_a_full_disk(tmp_path, capfd, left):
    with small_disk(tmp_path / 'disk', 256) as disk:
        fill(disk, left << 10)
        with contextlib.suppress(WorkdirError):
            save_checkpoint(epath.Path(disk))
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize(
    ('logger', 'error', 'told'),
    [
        ('absl', OSError(28, 'orbax-checkpoint-tmp/a: No space left'), False),
        ('asyncio', ValueError('state.orbax-checkpoint-tmp: os_error_code=28'), False),
        ('asyncio', ValueError('of a notebook'), True),
        ('absl', ValueError('of another'), True),
        ('absl', None, True),
    ],
)
def test_tracebacks_of_orbax_are_not_logged(caplog, logger, error, told):
    orbax_errors.silence_orbax()
    logging.getLogger(logger).error('it failed', exc_info=error)
    assert ('it failed' in caplog.text) == told


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (RuntimeError('Event loop is closed'), False),
        (RuntimeError('another'), True),
        (ValueError('Event loop is closed'), True),
    ],
)
def test_threads_of_orbax_print_nothing(monkeypatch, error, told):
    seen = []
    monkeypatch.setattr(sys, 'unraisablehook', seen.append)
    orbax_errors.silence_orbax.__wrapped__()
    sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert bool(seen) == told


# --- What is only a record of a run: one warning, and the run goes on -----------------------------


@pytest.fixture
def warnings(caplog):
    """Return the warnings so far, each in one line."""

    def lines():
        found = [record.getMessage() for record in caplog.records]
        assert not any('\n' in line for line in found)
        return found

    with caplog.at_level(logging.WARNING):
        yield lines


@pytest.mark.parametrize('method', ['__init__', 'write_event', 'flush', 'close'])
@pytest.mark.parametrize(
    'error', [FULL, PermissionError(13, 'Permission denied'), ImportError('x')]
)
def test_events_never_stop_a_run(tmp_path, monkeypatch, warnings, method, error):
    def raises(*_, **__):
        raise error

    monkeypatch.setattr(tensorboardX.event_file_writer.EventsWriter, method, raises)
    writer = MetricsWriter(epath.Path(tmp_path / 'm.jsonl'), epath.Path(tmp_path / 'events'), -1)
    for step in range(50):  # tensorboardX's own queue holds ten
        writer.write(step, 'train', {'loss': 1.0, 'accuracy': 0.5})
    writer.close()
    assert len((tmp_path / 'm.jsonl').read_text().splitlines()) == 50
    [line] = warnings()
    assert str(tmp_path / 'events') in line


def test_events_hold_what_was_logged(tmp_path):
    writer = MetricsWriter(epath.Path(tmp_path / 'm.jsonl'), epath.Path(tmp_path / 'events'), 4)
    writer.write(5, 'train', {'loss': 1.5})
    writer.close()
    [path] = (tmp_path / 'events').iterdir()
    raw, events = path.read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], 'little')
        events.append(
            tensorboardX.event_file_writer.event_pb2.Event.FromString(raw[12 : 12 + size])
        )
        raw = raw[16 + size :]
    assert events[0].file_version == 'brain.Event:2'
    assert [event.step for event in events if event.session_log.status == 1] == [5]
    [event] = [event for event in events if event.summary.value]
    assert (event.step, event.summary.value[0].tag) == (5, 'train/loss')
    assert event.summary.value[0].simple_value == 1.5


@pytest.fixture
def training_run(tmp_path):
    run = TrainingRun(experiment(), None, Workdir(tmp_path / 'run'), quiet)
    run.workdir.path.mkdir()
    run.start(None)
    return run


def test_samples_never_stop_a_run(training_run, warnings):
    training_run.workdir.samples_path.write_text('a file in the way')
    for step in (1, 2, 3):
        training_run.write_samples(step, Evaluation({}, {}, ['a translation']))
    [line] = warnings()
    assert str(training_run.workdir.samples_path) in line


@pytest.mark.parametrize(
    'content', [None, '', '[1]\n', '{"step": 1, "split": "train", "loss": 2}\n']
)
def test_curves_never_stop_a_run(training_run, warnings, content):
    training_run.workdir.curves_path.mkdir()
    if content is not None:
        training_run.workdir.metrics_path.write_text(content)
    training_run.draw_curves()
    assert len(warnings()) == (content is not None)


def test_how_a_run_ended_is_not_hidden(tmp_path, warnings):
    """A file that cannot be closed or written at the end does not replace the error."""
    workdir = Workdir(tmp_path / 'run')

    def spoil(error):
        with workdir.open_for_training({'a': 1}):
            workdir.run_path.unlink()
            workdir.run_path.mkdir()
            if error:
                raise error

    with pytest.raises(ZeroDivisionError):
        spoil(ZeroDivisionError())
    [line] = warnings()
    assert str(workdir.run_path) in line
    workdir.run_path.rmdir()
    with pytest.raises(WorkdirError, match=r'run\.json'):
        spoil(None)


# --- What was computed is shown before it is written ----------------------------------------------


class UnwritableRun(TrainedRun):
    """A trained run whose workdir is read-only."""

    def __init__(self, log):
        self.log = log

    def measure(self, split):
        return Evaluation({'loss': 1.25, 'perplexity': float('inf')}, {})

    def write_evaluation(self, found):
        raise WorkdirError('cannot write /x/evaluations.json: Read-only file system')


def test_an_evaluation_is_printed_before_it_is_written(monkeypatch, capsys):
    monkeypatch.setattr(evaluate_command, 'open_trained', lambda *_, **__: UnwritableRun(quiet))
    monkeypatch.setattr(evaluate_command, 'given_decoding', lambda *_: {})
    values = types.SimpleNamespace(lengths=[], split='test', json=True)
    with pytest.raises(WorkdirError):
        evaluate_command.run_evaluate(values)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        'loss': 1.25,
        'perplexity': 'inf',
    }


def test_an_evaluation_that_cannot_be_written_is_logged():
    lines = []
    with pytest.raises(WorkdirError):
        UnwritableRun(lines.append).evaluate('test')
    assert '"loss": 1.25' in lines[0]


def test_an_evaluation_during_training_is_logged_before_it_is_written(training_run, monkeypatch):
    lines = []
    training_run.log = lines.append
    monkeypatch.setattr(training_run.metrics, 'write', fails)
    with pytest.raises(OSError, match='No space'):
        training_run.take_scores(5, {'loss': 1.25, 'bleu': 3.0}, 0.1)
    assert 'step 5: validation' in lines[0]


def test_scores_of_an_ablation_that_cannot_be_written_are_logged(monkeypatch, tmp_path):
    def raises(*_):
        raise WorkdirError('cannot write')

    for name, value in {
        '_costs': {},
        '_read_findings': score.Findings({'test loss': 1.25}, *6 * [{}]),
    }.items():
        monkeypatch.setattr(score, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(score, '_write', raises)
    lines = []
    with pytest.raises(WorkdirError):
        score.score(types.SimpleNamespace(measured=True), (), lines.append)
    assert '"test loss": 1.25' in lines[0]


def test_a_translation_is_shown_before_its_picture_is_drawn(monkeypatch, tmp_path):
    lines, tokens = [], ['a', 'b']
    weights = {'cross': np.ones((1, 1, 2, 2))}
    found = attention_maps.TextAttention(weights, tokens, tokens, 'a translation')
    monkeypatch.setattr(attention_maps, 'attend_to_text', lambda *_: found)
    monkeypatch.setattr(attention_maps, 'draw_attention', fails)
    with pytest.raises(OSError, match='No space'):
        attention_maps.draw_text(None, 'a b', tmp_path / 'a.png', lines.append)
    assert lines == ['a translation']


# --- Ablations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('error', 'advised'),
    [
        (files.cannot_write('/x/y', 'No space left on device'), False),
        (FULL, False),
        (ZeroDivisionError('oh'), False),
        (MemoryError('out of memory'), True),
        (RuntimeError('RESOURCE_EXHAUSTED: Out of memory'), True),
    ],
)
def test_fewer_seeds_are_advised_only_where_memory_is_short(error, advised):
    failure = Failure.of(
        error, train_seeds._remedy(SeedGroup(epath.Path('/none'), '0-1', ('0', '1')))
    )
    assert ('--seeds_per_program' in failure.message) == advised
    assert '--replicas' not in failure.message


@needs_root
def test_results_of_an_ablation_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'collect', lambda root: {'runs': []})
    with small_disk(tmp_path / 'disk', 64) as disk:
        fill(disk)
        with pytest.raises(WorkdirError, match=r'disk/results\.json: No space left'):
            results.write_results(epath.Path(disk))


# --- Twenty moments at which a disk is full -------------------------------------------------------

# How many kilobytes are free when a run starts.
FREE = [0, 1, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 200, 250, 320, 400]


@pytest.fixture(scope='module')
def same_program():
    """Compiles once: only the disk differs between the runs."""
    programs = []

    def make(components):
        programs[:] = programs or [make_program(components)]
        return programs[0]

    return make


@needs_root
@pytest.mark.fault('full disks')
@pytest.mark.parametrize(
    'kilobytes',
    [
        pytest.param(free, marks=pytest.mark.rare if number % 4 else pytest.mark.slow)
        for number, free in enumerate(FREE)
    ],
)
def test_a_disk_that_gets_full(kilobytes, same_program, call, tmp_path, monkeypatch):
    """The run ends with 0, or with 3 and one line; with room again the same command ends with 0."""
    monkeypatch.setattr(train_lib, 'make_program', same_program)
    config = flags(
        train__steps=2,
        train__log_every=1,
        checkpoint__every=1,
        checkpoint__keep=9,
        data__cache_dir=str(tmp_path / 'cache'),
        evaluate__every=0,
    )
    signal.alarm(100)  # A run that stands still would never end.
    try:
        with small_disk(tmp_path / 'disk', 4096) as disk:
            filler = fill(disk, kilobytes << 10)
            code, _, errors = call('train', *config, f'--workdir={disk}/run')
            assert 'Traceback' not in errors
            if code:
                assert code == 3, errors
                last = errors.splitlines()[-1]
                assert f'{disk}/' in last
                assert 'No space left' in last
            filler.unlink()
            code, _, errors = call('train', *config, f'--workdir={disk}/run')
            assert (code, 'Traceback' in errors) == (0, False), errors
    finally:
        signal.alarm(0)

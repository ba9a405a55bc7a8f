"""Signals, many of them, at any moment: what is to be saved is saved, and the process ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers.processes import ended, heeding_signals, send, start_script
from helpers.support import events, experiment, fingerprint, flags, quiet, start, wait_until

from transformer_jax.errors import Stopped
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.process_end import STOP_SIGNALS
from transformer_jax.training.programs import TrainProgram
from transformer_jax.training.signals import StopSignals
from transformer_jax.training.train import train

INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1

# A program as the command line is one: `GRACE_S` is short, so that nothing is waited for.
PROGRAM = """
import contextlib, os, signal, sys, time
from transformer_jax import process_end
process_end.GRACE_S = 0.3
guard = process_end.install_guard()

def ready():
    print('ready', flush=True)

def import_modules():
    ready()
    try:
        time.sleep(60)
    except BaseException:
        pass
    time.sleep(60)

def run_command(work):
    guard.at_once = False
    try:
        work()
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
        sys.exit(process_end.exit_code(error.signum))
    finally:
        guard.finish()
        time.sleep(0.5)

def work():
    ready()
    time.sleep(60)

def swallow():
    ready()
    with contextlib.suppress(BaseException):
        time.sleep(60)
    time.sleep(60)

def compile_code():
    ready()
    compile_for_ever()

def clean_up():
    try:
        work()
    finally:
        time.sleep(0.2)
        print('clean', flush=True)

def complete():
    guard.finish()
    ready()
    time.sleep(0.5)
    print('done', flush=True)

def note_signals():
    received = []
    for signum in process_end.STOP_SIGNALS:
        signal.signal(signum, lambda signum, frame: received.append(signum))
    return received

def save(seconds):
    received = note_signals()
    with guard.patience():
        ready()
        while not received:
            time.sleep(0.01)
        time.sleep(seconds)
        print('saved', flush=True)
    raise process_end.Interrupted(received[0])

def evaluate():
    def save(signum):
        print('saved', flush=True)
        return f'{signal.Signals(signum).name} after step 7'
    note_signals()
    with guard.patience(), guard.saved_by(save):
        compile_code()

def evaluate_on_a_full_disk():
    def save(signum):
        raise OSError('No space left on device')
    note_signals()
    with guard.patience(), guard.saved_by(save):
        compile_code()
"""

# what the program does, the signals, exit code, standard output after 'ready', its only line
PATTERNS = [
    ('import_modules()', [INT], 130, '', 'stopped by SIGINT'),
    ('import_modules()', [TERM, TERM, TERM], 143, '', 'stopped by SIGTERM'),
    ('run_command(work)', [INT], 130, '', 'stopped by SIGINT'),
    ('run_command(work)', [TERM], 143, '', 'stopped by SIGTERM'),
    ('run_command(work)', [HUP], 143, '', 'stopped by SIGHUP'),
    ('run_command(work)', [USR1], 143, '', 'stopped by SIGUSR1'),
    ('run_command(work)', [signal.SIGUSR2], 143, '', 'stopped by SIGUSR2'),
    ('run_command(work)', [signal.SIGXCPU], 143, '', 'stopped by SIGXCPU'),
    ('run_command(work)', [TERM] * 5, 143, '', 'stopped by SIGTERM'),
    ('run_command(swallow)', [INT], 130, '', 'stopped by SIGINT'),
    ('run_command(swallow)', [TERM, TERM], 143, '', 'stopped by SIGTERM'),
    ('run_command(compile_code)', [INT], 130, '', 'stopped by SIGINT'),
    ('run_command(compile_code)', [HUP, TERM], 143, '', 'stopped by SIGHUP'),
    ('run_command(clean_up)', [TERM, TERM], 143, 'clean\n', 'stopped by SIGTERM'),
    ('run_command(complete)', [TERM, TERM, TERM], 0, 'done\n', ''),
    ('run_command(lambda: save(1))', [TERM], 143, 'saved\n', 'stopped by SIGTERM'),
    ('run_command(lambda: save(1))', [TERM] * 5, 143, 'saved\n', 'stopped by SIGTERM'),
    ('run_command(lambda: save(1))', [INT, INT], 130, 'saved\n', 'stopped by SIGINT'),
    ('run_command(lambda: save(1))', [USR1, TERM], 143, 'saved\n', 'stopped by SIGUSR1'),
    ('run_command(lambda: save(60))', [INT, INT, INT], 130, '', 'stopped by SIGINT'),
    ('run_command(evaluate)', [TERM, TERM], 143, 'saved\n', 'SIGTERM after step 7'),
    ('run_command(evaluate_on_a_full_disk)', [TERM], 1, '', 'No space left on device'),
]


@pytest.mark.fault('signals')
@pytest.mark.parametrize(('program', 'signums', 'code', 'output', 'line'), PATTERNS)
def test_a_process_ends_in_one_line(program, signums, code, output, line):
    process = start_script(PROGRAM + program)
    assert process.stdout.readline() == 'ready\n'
    send(process, signums, 0.05)
    found, rest, errors = ended(process)
    assert (found, rest) == (code, output), errors
    assert errors.replace('transformer-jax: ', '') == (line and line + '\n')


def test_nohup_ignores_a_hangup():
    code = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
    process = start_script(code + PROGRAM + 'run_command(work)')
    assert process.stdout.readline() == 'ready\n'
    send(process, [HUP, TERM], 0.2)
    assert ended(process) == (143, '', 'stopped by SIGTERM\n')


@pytest.mark.fault('signals')
@pytest.mark.parametrize('signum', [INT, TERM])
def test_a_signal_during_imports_is_not_swallowed(signum):
    """The program of the command line, while a module of another project catches everything."""
    code = """
import sys, time, types
class Slow:
    def find_spec(self, name, *_):
        if name == 'jax':
            print('ready', flush=True)
            try:
                time.sleep(60)
            except BaseException:
                pass
sys.meta_path.insert(0, Slow())
from transformer_jax.cli import main
sys.exit(main())
"""
    process = start_script(code, 'train')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signum)
    assert ended(process) == (128 + signum, '', f'transformer-jax: stopped by {signum.name}\n')


def test_the_program_imports_nothing_before_it_takes_over_signals():
    code = "import sys, transformer_jax.cli; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


@pytest.mark.fault('signals')
@pytest.mark.parametrize('signum', [INT, TERM])
def test_a_program_in_the_background_of_a_script_hears(signum):
    """A shell without job control ignores SIGINT for what it starts with `&`."""
    code = f'import signal; signal.signal({signum:d}, signal.SIG_IGN)\n'
    process = start_script(code + PROGRAM + 'run_command(work)')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signum)
    assert ended(process)[0] == 128 + signum


@pytest.fixture(scope='module', autouse=True)
def _heed_signals():
    with heeding_signals():
        yield


# --- In a program of one's own --------------------------------------------------------------------

RUN = {'train__steps': 8, 'checkpoint__every': 0, 'evaluate__every': 4}


def at(patch, target, name: str, count: int, act) -> None:
    """Calls `act` before the call number `count` of a method."""
    method, calls = getattr(target, name), []

    def then_call(*arguments, **options):
        calls.append(name)
        if len(calls) == count:
            act()
        return method(*arguments, **options)

    patch.setattr(target, name, then_call)


def steps_saved(workdir) -> list[int]:
    folder = workdir / 'checkpoints'
    return sorted(int(path.name) for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.fault('signals')
@pytest.mark.parametrize('signum', STOP_SIGNALS)
def test_a_signal_before_the_first_step_ends_at_once(tmp_path, monkeypatch, signum):
    def never(self, batch):
        raise AssertionError('a step was made')

    at(monkeypatch, TrainProgram, 'init_state', 1, lambda: os.kill(os.getpid(), signum))
    monkeypatch.setattr(TrainProgram, 'place', never)
    handler = signal.getsignal(signum)
    with pytest.raises(Stopped, match=f'stopped by {signum.name} before the first step') as stop:
        train(experiment(**RUN), tmp_path, quiet)
    assert stop.value.exit_code == (130 if signum == INT else 143)
    assert signal.getsignal(signum) is handler
    assert steps_saved(tmp_path) == []


# A method of an evaluation, and its call before which signals come.
MOMENTS = [
    ('translate', 1, [TERM, TERM]),
    pytest.param('score_batches', 1, [TERM], marks=pytest.mark.slow),
    pytest.param('translate', 1, [INT, TERM], marks=pytest.mark.slow),
]


@pytest.mark.fault('signals')
@pytest.mark.parametrize(('method', 'count', 'signums'), MOMENTS)
def test_an_evaluation_is_left_between_batches(whole, tmp_path, method, count, signums):
    def kill():
        for signum in signums:
            os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patch:
        at(patch, Evaluator, method, count, kill)
        with pytest.raises(Stopped, match=f'{signums[0].name} after step 4, which is saved'):
            train(experiment(**RUN), tmp_path, quiet)
    assert steps_saved(tmp_path) == [4]
    assert not events(tmp_path, 'validation')
    train(experiment(**RUN), tmp_path, quiet)
    assert fingerprint(tmp_path) == fingerprint(whole)
    scores = [
        [(event['step'], event['loss']) for event in events(workdir, 'validation')]
        for workdir in (tmp_path, whole)
    ]
    assert scores[0] == scores[1]


def test_signals_end_no_save():
    with StopSignals() as signals:
        signals.hold()
        for signum in (TERM, TERM, HUP, INT, USR1, INT):
            os.kill(os.getpid(), signum)
        assert signals.received(1) == TERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), INT)  # the third


def test_a_handler_of_the_callers_own_keeps_what_only_some_systems_send(monkeypatch):
    received = []
    old = signal.signal(USR1, lambda *_: received.append(USR1))
    try:
        with StopSignals() as signals:
            signals.hold()
            os.kill(os.getpid(), USR1)
            assert (signals.received(1), received) == (0, [USR1])
    finally:
        signal.signal(USR1, old)


def test_training_in_a_thread(tmp_path):
    best = []
    thread = threading.Thread(target=lambda: best.append(train(experiment(**RUN), tmp_path, quiet)))
    thread.start()
    thread.join()
    assert best
    assert best[0]['step'] in (4, 8)


# --- The command line -----------------------------------------------------------------------------

LONG = {'train__steps': 100_000, 'checkpoint__every': 0, 'train__log_every': 1}

# A train command whose evaluation compiles for ever.
COMPILING = """
import sys
from transformer_jax import process_end
process_end.GRACE_S = 1
from transformer_jax.evaluation.evaluator import Evaluator
from transformer_jax.training.programs import TrainProgram
from transformer_jax.cli import main
what = sys.argv.pop(1)
def compile_code(*_):
    print('ready', flush=True)
    compile_for_ever()
if what == 'evaluation':
    Evaluator.teacher_forced = compile_code
else:
    TrainProgram.init_state = compile_code
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.fault('signals')
@pytest.mark.parametrize(
    ('what', 'signums', 'line', 'saved'),
    [
        ('start', [TERM], 'stopped by SIGTERM', []),
        ('start', [HUP, TERM, TERM], 'stopped by SIGHUP', []),
        ('evaluation', [TERM, TERM], 'stopped by SIGTERM after step 3, which is saved', [3]),
    ],
)
def test_a_compilation_is_not_waited_for(tmp_path, what, signums, line, saved):
    process = start_script(
        COMPILING, what, 'train', f'--workdir={tmp_path}', *flags(**LONG, evaluate__every=3)
    )
    assert process.stdout.readline() == 'ready\n'
    send(process, signums, 0.05)
    code, _, errors = ended(process)
    assert (code, steps_saved(tmp_path)) == (143, saved), errors
    assert errors.splitlines()[-1].startswith(f'transformer-jax: {line}')
    assert 'Traceback' not in errors


@pytest.mark.fault('signals')
@pytest.mark.parametrize(
    'signums',
    [
        pytest.param([TERM] * 5, marks=pytest.mark.slow),
        *(
            pytest.param(signums, marks=pytest.mark.rare)
            for signums in ([INT, TERM], [USR1, TERM], [HUP], [INT, INT])
        ),
    ],
)
def test_any_signals_save_once(tmp_path, signums):
    process = start('train', f'--workdir={tmp_path}', *flags(**LONG))
    wait_until(lambda: len(events(tmp_path, 'train')) > 5, process)
    send(process, signums, 0.05)
    code, _, errors = ended(process)
    assert code == (130 if signums[0] == INT else 143), errors
    assert f'stopped by {signums[0].name} after step' in errors.splitlines()[-1]
    assert 'Traceback' not in errors
    assert steps_saved(tmp_path) == [events(tmp_path, 'train')[-1]['step']]

"""The command line: exit codes, and one clear line for each mistake, which loses nothing."""

import hashlib
import inspect
import io
import json
import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import jax
import pytest
from helpers.support import CONFIG, experiment, fingerprint, flags, quiet

import transformer_jax
from transformer_jax.cli import flags as cli_flags
from transformer_jax.cli import processes, program
from transformer_jax.cli.commands import COMMANDS
from transformer_jax.cli.flags import Flags
from transformer_jax.errors import ConfigError
from transformer_jax.storage import locks
from transformer_jax.storage.paths import absolute_path
from transformer_jax.training.train import train


@pytest.fixture
def refused(call, monkeypatch):
    """Run a command with a mistake that is found before anything is compiled: its message."""

    def compiled(*_, **__):
        raise AssertionError('compiled before the mistake was found')

    def run(*arguments: str, code: int = 2) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(jax, 'jit', compiled)
            found, output, errors = call(*arguments)
        *remarks, message = errors.removesuffix('\n').split('transformer-jax: ')
        assert (found, output) == (code, ''), errors
        assert len(remarks) == 1, 'one message, after remarks at most'
        assert 'Traceback' not in errors
        lines = message.split('\n')
        assert len(lines) == 1 or (len(lines) == 3 and re.fullmatch(' *\\^', lines[2])), message
        return message

    return run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Train once; returns the workdir. A test that changes it makes a copy."""
    workdir = tmp_path_factory.mktemp('trained')
    train(experiment(), workdir, quiet)
    return workdir


def contents(workdir) -> dict[str, str]:
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workdir.rglob('*'))
        if path.is_file()
    }


# --- Commands and flags ---------------------------------------------------------------------------


def test_help_names_every_command_and_flag(call):
    code, overview, _ = call('--help')
    assert code == 0
    assert call()[:2] == (2, overview)
    for name, command in COMMANDS.items():
        assert f'transformer-jax {name}' in overview
        code, output, errors = call(*name.split(), '--help')
        assert (code, errors) == (0, '')
        assert command.help in output
        assert '--debug' in output
        assert f'Example: transformer-jax {name} ' in output
        assert call('help', *name.split())[:2] == (0, output)
        for flag in re.split(r'\n  --', output)[1:]:
            text = ' '.join(flag.split()[1:]).rpartition('>: ')[-1]
            assert text[0].isupper(), flag
            assert text.endswith('.'), flag
    assert '--checkpoint' in call('translate', '--help')[1]
    assert '--coordinator' in call('train', '--help')[1]


def test_the_help_tells_defaults_and_fits_the_terminal(call, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    _, output, _ = call('ablate', '--help')
    assert 'Default: 0/1.' in output
    assert max(map(len, output.splitlines()[3:])) <= 80


def test_the_version_is_that_of_the_package(call):
    code, output, _ = call('--version')
    assert code == 0
    assert output.startswith(f'transformer_jax {transformer_jax.__version__}, jax ')


@pytest.mark.parametrize('name', COMMANDS)
def test_the_example_of_a_command_parses(name):
    words = shlex.split(COMMANDS[name].example.partition(' <')[0])
    assert words[:1] + words[1 : 1 + len(name.split())] == ['transformer-jax', *name.split()]
    values = Flags()
    COMMANDS[name].define(values)
    for word in words[1 + len(name.split()) :]:
        if word.startswith('--'):
            assert word[2:].partition('=')[0] in values, word


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_reads_every_flag_that_it_defines(name):
    values = Flags()
    COMMANDS[name].define(values)
    read = source_of(COMMANDS[name].run)
    for flag in values:
        if values[flag].name == flag and '.' not in flag:
            assert re.search(rf"values\.{flag}\b|'{flag}'", read), f'{name} --{flag}'


def source_of(run):
    """The source of a command and of the functions of its module and of cli.flags that it calls."""
    functions = {
        key: item
        for module in (inspect.getmodule(run), cli_flags)
        for key, item in vars(module).items()
        if inspect.isfunction(item) and not key.startswith('define')
    }
    found, text = set(), inspect.getsource(run)
    # The program itself reads what says how a process starts, and joins the others.
    text += inspect.getsource(program) + inspect.getsource(processes)
    while new := {key for key in functions if re.search(rf'\b{key}\b', text)} - found:
        found |= new
        text += ''.join(inspect.getsource(functions[key]) for key in sorted(new))
    return text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['trian'], "unknown command 'trian': did you mean 'train'?"),
        (['train', CONFIG], '--workdir is missing'),
        (['train', '--workdir=w'], '--config is missing: give a file of configs/'),
        (['evaluate'], '--workdir is missing'),
        (['inspect'], '--config is missing'),
        (['train', CONFIG, '--wrokdir=w'], "unknown flag --wrokdir: did you mean 'workdir'?"),
        (
            ['ablate', 'x.py', '--root=r', '--replicas=2'],
            'unknown flag --replicas: it is now --seeds_per_program',
        ),
        (['train', CONFIG, 'w'], "unexpected argument 'w'"),
        (['train', CONFIG, '--workdir'], 'Missing value for flag --workdir'),
        (['train', CONFIG, '--process_id=x'], '--process_id=x: not a whole number'),
        (
            ['evaluate', '--workdir=w', '--split=tset'],
            '--split=tset: value should be one of <validation|test>',
        ),
        (['translate', '--workdir=w', '--beam=0'], '--beam=0'),
        (['attention', '--workdir=w'], '--text is missing'),
        (['train', '--config=nope.py:en-de'], "No such file or directory: 'nope.py'"),
    ],
)
def test_wrong_flags(refused, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir())


# --- Configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        (
            'train.stesp=3',
            "--config.train.stesp: unknown configuration key; did you mean 'train.steps'?",
        ),
        ('steps=3', '--config.steps: unknown configuration key; '),
        ('train=5', '--config.train: unknown configuration key'),
        ('train.steps=abc', '--config.train.steps=abc: not a whole number'),
        ('train.steps=1.5', '--config.train.steps=1.5: not a whole number'),
        ('optim.learning_rate=abc', '--config.optim.learning_rate=abc: not a number'),
        ('model.d_model=-4', 'model.d_model=-4 is outside 1 ≤ value ≤ 1,000,000'),
        ('train.steps=-1', 'train.steps=-1 is outside 0 ≤ value ≤ 1,000,000,000'),
        ('model.dropout=nan', 'model.dropout=nan is outside 0 ≤ value < 1'),
        (
            'model.num_heads=3',
            'model.d_model=128 is not divisible by model.num_heads=3; set model.head_dim, or',
        ),
        ('model.kind=lsmt', "model.kind='lsmt': valid: classifier, decoder_only, encoder_decoder"),
        (
            'model.attention=softmx',
            "model.attention='softmx' names the unknown 'softmx': did you mean 'softmax'?\n"
            '  softmx\n  ^',
        ),
        ('model.attention=softmax(', "'(' was never closed"),
        ('data.batching=buckets(lengths=(8,x))', '                  ^'),
        (
            'model.position=learned(max_len=20)',
            "model.position='learned(max_len=20)' ends before the text",
        ),
        ('data.task=number_words(limit=10)', 'limit=10'),
    ],
)
def test_wrong_configuration_keys(refused, tmp_path, override, message):
    assert message in refused(
        'train', f'--workdir={tmp_path / "run"}', CONFIG, f'--config.{override}'
    )
    assert not list(tmp_path.iterdir())


HEAD = """\
from transformer_jax.config import default_config
def get_config(arg="x"):
    config = default_config()
"""


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            HEAD + '    config.train.stesp = 3\n',
            r'config\.py:4: KeyError: Did you mean "steps" instead of "stesp"',
        ),
        (HEAD + '    config.train.steps = "3"\n', r'config\.py:4: TypeError'),
        (
            HEAD + '    a, b = arg.split("-")\n',
            r'config\.py:4: ValueError: not enough values to unpack',
        ),
        (HEAD + '    return 1 / 0\n', r'config\.py:4: ZeroDivisionError: division by zero'),
        (HEAD + '    open("nope")\n', r"config\.py:4: FileNotFoundError: .*'nope'"),
        ('import nope\n', r'config\.py:1: ModuleNotFoundError'),
        ('def get_config(:\n', r'SyntaxError: .*config\.py, line 1'),
        ('x = 1\n', 'get_config'),
        ('def get_config():\n    pass\n', 'get_config returned NoneType, not a ConfigDict'),
        (
            HEAD + '    config.unlock()\n    del config.train.steps\n    return config\n',
            r'missing configuration key train\.steps',
        ),
        (
            HEAD + '    config.unlock()\n    config.train.stesp = 3\n    return config\n',
            r"train\.stesp: unknown configuration key; did you mean 'steps'",
        ),
    ],
)
def test_wrong_configuration_files(refused, tmp_path, text, message):
    path = tmp_path / 'config.py'
    path.write_text(text)
    assert re.search(message, refused('train', f'--workdir={tmp_path / "run"}', f'--config={path}'))
    assert not (tmp_path / 'run').exists()


def test_the_argument_of_a_configuration_file_may_be_wrong(refused, tmp_path):
    message = refused('train', f'--workdir={tmp_path / "run"}', CONFIG.replace('en-de', 'en'))
    assert "--config: languages 'en' are no pair: write source-target, as in en-de" in message
    message = refused('train', f'--workdir={tmp_path / "run"}', CONFIG.replace('en-de', 'en-xx'))
    assert "data.target='xx' is no language of num2words" in message


def test_debug_shows_the_traceback(call):
    with pytest.raises(ConfigError):
        call('train', '--workdir=w', CONFIG, '--config.train.steps=x', '--debug')


# --- Data -----------------------------------------------------------------------------------------

GOOD = {
    'train.en': b'one\ntwo\nthree\n',
    'train.de': b'eins\nzwei\ndrei\n',
    'val.en': b'four\n',
    'val.de': b'vier\n',
}


@pytest.fixture
def text(tmp_path):
    """Write GOOD with some files replaced (None: missing); returns the arguments of a run on it."""

    def write(files: dict) -> list[str]:
        for name, content in (GOOD | files).items():
            if content is not None:
                (tmp_path / name).write_bytes(content)
        # The mesh does not fit, which is the first error after all data is read.
        return [
            'train',
            f'--workdir={tmp_path / "run"}',
            *flags(
                data__task='parallel_text',
                data__source_dir=tmp_path,
                data__vocab_size=24,
                evaluate__every=1,
                data__batching='buckets(lengths=(12,))',
                parallel__mesh__data=3,
            ),
        ]

    return write


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'train.de': None}, r'train\.de: no such file, plain or \.gz; check data\.source_dir='),
        ({'train.de': b'eins\nzwei\n'}, r'train\.en has 3 lines but .*train\.de has 2'),
        ({'train.en': b'one\ntw\xff\nthree\n'}, r'train\.en:2: invalid UTF-8'),
        ({'val.en': b'', 'val.de': b''}, r'val\.en: the validation set is empty'),
        ({'train.en': b'\n\n\n', 'train.de': b'\n\n\n'}, 'the training set is empty'),
        (
            {'train.en': b'a\n', 'train.de': b'b\n'},
            r'data\.vocab_size=24 is more than the training text allows',
        ),
    ],
)
def test_wrong_data(refused, text, tmp_path, files, message):
    assert re.search(message, refused(*text(files)))
    # The corrected keys are not refused as another configuration.
    assert 'needs 3 devices' in refused(*text(GOOD))


def test_bad_lines_are_counted_and_named(call, text):
    _, _, remarks = call(
        *text(
            {
                'train.en': b'one\n\n' + b'w o r d s ' * 9 + b'\n',
                'val.en': b'\n',
                'val.de': b'v i e l e ' * 9 + b'\n',
            }
        )
    )
    for expected in (
        r'training examples with an empty line dropped: 1 \(first: .*train\.en:2\)',
        r'training examples longer than 12 tokens dropped: 1 \(first: .*train\.en:3\)',
        r'validation examples with an empty line kept as they are: 1 \(first: .*val\.en:1\)',
        r'validation examples longer than 12 tokens cut: 1 \(first: .*val\.de:1\)',
    ):
        assert re.search(expected, remarks)


# --- Workdirs -------------------------------------------------------------------------------------


def test_unusable_workdirs(refused, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    assert 'is a file: choose a directory' in refused(
        'train', f'--workdir={tmp_path / "file"}', *flags(), code=3
    )
    assert (tmp_path / 'file').read_text() == 'mine'
    assert 'has no config.json' in refused('evaluate', f'--workdir={tmp_path / "none"}')

    def read_only(path):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(locks, '_flock', read_only)
    assert 'Read-only file system; ' in refused(
        'train', f'--workdir={tmp_path / "run"}', *flags(), code=3
    )


def test_a_second_run_is_refused(refused, trained):
    with locks.lock(absolute_path(trained) / 'lock'):
        before = contents(trained)
        message = refused('train', f'--workdir={trained}', *flags(), code=3)
        assert contents(trained) == before
    assert re.search(
        r'is in use by process \d+ on .*: wait for it, stop it, or choose another --workdir',
        message,
    )


def test_another_configuration_is_refused_and_loses_nothing(refused, trained):
    before = contents(trained)
    message = refused('train', f'--workdir={trained}', *flags(train__seed=5))
    assert 'train.seed: 0 -> 5' in message
    assert contents(trained) == before


def test_checkpoints_that_are_not_there(refused, trained, tmp_path):
    assert 'checkpoint=7: there is no step 7; steps in' in refused(
        'evaluate', f'--workdir={trained}', '--checkpoint=7'
    )
    assert 'checkpoint=newest: expected best, last, avg:N' in refused(
        'translate', f'--workdir={trained}', '--checkpoint=newest'
    )
    for name in ('config.json', 'tokenizer'):
        (tmp_path / name).symlink_to(trained / name)
    assert 'there is no checkpoint yet' in refused('evaluate', f'--workdir={tmp_path}')


def test_a_damaged_checkpoint_is_named(call, trained, tmp_path):
    shutil.copytree(trained, tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '12' / 'meta.json').write_text('{}')
    code, output, errors = call('evaluate', f'--workdir={tmp_path / "run"}', '--checkpoint=12')
    assert (code, output) == (3, '')
    assert re.search(r'^transformer-jax: .*meta\.json differs', errors, re.MULTILINE)


# --- What works -----------------------------------------------------------------------------------


def test_training_goes_on_and_inspect_prints_its_hash(call, trained, tmp_path):
    code, output, remarks = call('train', f'--workdir={tmp_path}', *flags())
    assert (code, output) == (0, '')
    assert f'done: {tmp_path}' in remarks
    (record,) = json.loads((tmp_path / 'run.json').read_text())
    # The command can be pasted into a shell.
    assert record['command'].startswith(f'transformer-jax train --workdir={tmp_path} ')
    assert 'resumed after step 12' in call('train', f'--workdir={tmp_path}', *flags())[2]
    code, output, _ = call('inspect', f'--workdir={tmp_path}')
    assert (code, output.splitlines()[-1]) == (0, fingerprint(trained))


def test_translations_keep_their_lines(call, trained, monkeypatch):
    def translate(raw: bytes):
        monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(raw)))
        return call('translate', f'--workdir={trained}')

    code, output, _ = translate('twelve\n\n  \nseven\u2028eight\n\n'.encode())
    assert code == 0
    lines = output.removesuffix('\n').split('\n')
    assert len(lines) == 5
    assert [lines[1], lines[2], lines[4]] == [''] * 3
    assert translate(b'')[:2] == (0, '')
    code, output, errors = translate(b'one\n\xff\n')
    assert (code, output.count('\n')) == (2, 1)  # the line before it is translated
    assert 'transformer-jax: standard input:2: invalid UTF-8' in errors
    assert (
        'input lines longer than 24 tokens cut: 1 (first: line 2)'
        in translate(b'one\n' + b'q ' * 99 + b'\n')[2]
    )


def test_evaluation_as_json(call, trained):
    code, output, _ = call(
        'evaluate', f'--workdir={trained}', '--split=validation', '--beam=1', '--json'
    )
    result = json.loads(output)
    assert code == 0
    assert result['split'] == 'validation'
    assert result['decode']['beam'] == 1
    assert {
        'bleu',
        'bleu_signature',
        'chrf',
        'exact_match',
        'perplexity',
        'reference_sha256',
    } <= result.keys()

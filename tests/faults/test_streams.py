"""Texts that come in by pipes and arguments, and results that cannot be written."""

import io
import itertools
import os
import sys
from types import SimpleNamespace

import pytest
from helpers.support import experiment, quiet

import transformer_jax
from transformer_jax.ablation import Experiment, Metric
from transformer_jax.batch import EOS, PAD
from transformer_jax.cli import streams
from transformer_jax.config import default_config
from transformer_jax.data.tokenizers import BytePairs, Bytes, Characters, Symbols
from transformer_jax.errors import ConfigError, DataError, WorkdirError
from transformer_jax.inference.generate import Generator
from transformer_jax.training.train import train

BYTES = {'data__tokenizer': 'bytes', 'data__vocab_size': 260, 'data__batching': 'buckets((96,))'}
CLASSES = {
    'model__kind': 'classifier',
    'data__task': 'listops(min_length=5, max_length=20, max_depth=3, max_args=4, examples=50)',
    'data__vocab_size': 19,
    'data__batching': 'buckets((24,))',
    'evaluate__best_metric': 'accuracy',
}
LANGUAGE = {'model__kind': 'decoder_only', 'data__batching': 'buckets(lengths=(48,))'}


def trained_once(name, **changes):
    @pytest.fixture(scope='module', name=name)
    def workdir(tmp_path_factory):
        path = tmp_path_factory.mktemp(name)
        train(experiment(train__steps=2, **changes), path, quiet)
        return path

    return workdir


# It samples bytes almost at random, so that about one output in ten has a line feed.
sampler = trained_once(
    'sampler',
    **BYTES,
    decode__method='sample',
    decode__max_extra_tokens=40,
    decode__temperature=5.0,
)
classifier = trained_once('classifier', **CLASSES)
language = trained_once('language', **LANGUAGE)


@pytest.fixture
def feed(monkeypatch):
    """Let standard input be a pipe; returns its write end."""
    ends = os.pipe()
    with open(ends[0], encoding='utf-8') as reader:
        monkeypatch.setattr(sys, 'stdin', reader)
        writer = open(ends[1], 'wb', buffering=0)  # noqa: SIM115
        yield writer
        writer.close()


# --- Input ----------------------------------------------------------------------------------------


def test_the_first_chunk_comes_before_the_last_line(feed):
    arriving = streams.arriving_lines()
    feed.write(b'one\ntw')
    assert next(arriving) == ['one']
    feed.write(b'o\n\xef\xbb\xbf\r\n')
    assert next(arriving) == ['two', '\ufeff']
    feed.write(b'\n\nthr')
    assert next(arriving) == ['', '']
    feed.write(b'ee')
    feed.close()
    assert next(arriving) == ['three']
    assert list(arriving) == []


def test_chunks_grow_and_lose_nothing(tmp_path, monkeypatch):
    lines = [f'{number} ä\u2028' * (number % 3) for number in range(6000)]
    (tmp_path / 'in').write_text('\n'.join(lines), encoding='utf-8')
    with (tmp_path / 'in').open() as file:
        monkeypatch.setattr(sys, 'stdin', file)
        chunks = list(streams.arriving_lines())
    assert [line for chunk in chunks for line in chunk] == lines
    sizes = [len(chunk) for chunk in chunks]
    assert sizes[0] == streams.CHUNKS[0]
    assert len(sizes) < 20
    assert max(sizes) > streams.CHUNKS[1]


@pytest.mark.parametrize('raw', [b'', b'\n', b'a', b'a\n', b'\xef\xbb\xbfa\n\nb\r\n', b'\xc3\xa4'])
def test_arriving_lines_are_those_of_a_file(raw, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(raw)))
    expected = raw.decode('utf-8-sig').replace('\r\n', '\n').split('\n')
    found = [line for chunk in streams.arriving_lines() for line in chunk]
    assert found == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize(
    ('raw', 'before', 'message'),
    [
        (b'a\nb\n\xff\nc', ['a', 'b'], r'standard input:3: invalid UTF-8 \(byte 0xff\)'),
        (b'\xff', [], r'standard input:1: invalid UTF-8'),
        (b'a\n\xc3', ['a'], r'standard input:2: invalid UTF-8'),
        (b'a\n' + b'\0' * 1_200_000, ['a'], 'standard input:2: a line of more than'),
        (b'a\n' + b'x' * 1_200_000 + b'\nb\n', ['a'], 'standard input:2: a line of more than'),
    ],
)
def test_a_bad_line_is_named_after_the_good_ones(monkeypatch, raw, before, message):
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(raw)))
    found = []
    with pytest.raises(DataError, match=message):
        found.extend(itertools.chain.from_iterable(streams.arriving_lines()))
    assert found == before


@pytest.mark.parametrize(
    'read', [lambda: list(streams.arriving_lines()), streams.read_standard_input]
)
def test_input_that_cannot_be_read(monkeypatch, read, tmp_path):
    monkeypatch.setattr(sys, 'stdin', None)  # `<&-`
    with pytest.raises(DataError, match='standard input is closed'):
        read()
    for path, flags, message in (
        ('/dev/zero', os.O_RDONLY, 'more than 1048576 bytes'),
        (tmp_path, os.O_RDONLY, 'cannot be read'),
        (tmp_path / 'written', os.O_WRONLY | os.O_CREAT, 'cannot be read'),
    ):
        descriptor = os.open(path, flags)
        buffer = SimpleNamespace(fileno=lambda number=descriptor: number)
        monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=buffer))
        with pytest.raises(DataError, match=message):
            read()
        os.close(descriptor)


@pytest.mark.parametrize(
    ('raw', 'text'),
    [(b'ab\n', 'ab\n'), (b'\xef\xbb\xbfa\r\nb', 'a\nb'), (b'', ''), (b' a  ', ' a  ')],
)
def test_a_prompt_from_standard_input(monkeypatch, raw, text):
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(raw)))
    assert streams.read_standard_input() == text


def give(monkeypatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(raw)))


# --- One line of output for each of the input -----------------------------------------------------


def test_sampled_bytes_keep_their_lines(sampler, call, monkeypatch):
    give(monkeypatch, b''.join(b'%d\n' % number for number in range(40)))
    code, output, _ = call('translate', f'--workdir={sampler}')
    assert (code, output.count('\n')) == (0, 40)
    # The same lines in other chunks are the same draws.
    monkeypatch.setattr(streams, 'CHUNKS', (7, 64))
    give(monkeypatch, b''.join(b'%d\n' % number for number in range(40)))
    assert call('translate', f'--workdir={sampler}')[1] == output
    run = transformer_jax.open_run(sampler, log=quiet)
    whole = run.translate([str(number) for number in range(40)])
    assert whole == output.removesuffix('\n').split('\n')


def test_samples_keep_their_lines(sampler):
    run = transformer_jax.open_run(sampler, log=quiet)
    run.evaluate('test')
    [file] = (sampler / 'samples').glob('test-*')
    assert file.read_text().count('\n') == 20


def test_translations_come_while_lines_still_arrive(sampler, feed):
    run = transformer_jax.open_run(sampler, log=quiet)
    generate = transformer_jax.inference.generate
    translations = generate.translate(run._trained, streams.arriving_lines())
    for line in (b'one\n', b'two\nthree\n'):
        feed.write(line)
        assert len(next(translations)) == line.count(b'\n')


def test_classes_come_while_lines_still_arrive(classifier, feed):
    run = transformer_jax.open_run(classifier, log=quiet)
    lines = (line for chunk in streams.arriving_lines() for line in chunk)
    classes = transformer_jax.inference.generate.classify(run._trained, lines)
    for _ in range(2):
        feed.write(b'[MAX 1 2 ]\n')
        assert next(classes)[0] in run._trained.data.task.classes()


# --- Unknown symbols, and lists -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        (b'hello\n', "standard input:1: 'hello' is no symbol of the vocabulary; valid: "),
        (b'[MAX 1 ]\n[MAX 77 ]\n', "standard input:2: '77' is no symbol"),
        (b'[MAX 1 ]\n\n', 'standard input:2: an empty text has no class'),
        (b'<pad>\n', "standard input:1: '<pad>' is no symbol"),
        (b'[MAXX 1 ]\n', "did you mean '[MAX'?"),
    ],
)
def test_a_symbol_that_is_none_of_the_task(classifier, call, monkeypatch, raw, message):
    give(monkeypatch, raw)
    code, output, errors = call('classify', f'--workdir={classifier}')
    assert (code, output.count('\n')) == (2, raw.count(b'\n') - 1)
    assert message in errors


def test_an_unknown_character_is_named(language, call):
    """A small vocabulary reads it as unknown, as in training."""
    arguments = f'--workdir={language}', '--max_tokens=2', '--method=greedy'
    code, output, errors = call('generate', *arguments, '--prompt=seven 😀')
    assert code == 0
    assert output.startswith('seven 😀')
    assert "the prompt: '😀' not in the vocabulary, read as unknown" in errors


@pytest.mark.parametrize(
    ('act', 'message'),
    [
        (lambda run: run.translate('seven'), "texts='seven' is one string"),
        (lambda run: run.translate(['seven', 7]), r'texts\[1\]=7 is a int, no text'),
        (
            lambda run: run.translate(['a', 'seven\udcff']),
            r'texts\[1\]: invalid UTF-8 \(byte 0xf',
        ),
        (lambda run: run.translate('seven', beam=2), 'is one string'),
        (lambda run: run.attention_weights('\udcff'), 'the text: invalid UTF-8'),
        (lambda run: run.tokenizer.encode('seven'), 'is one string'),
        (lambda run: run.translate(text for text in ['a']), 'texts is a generator: give a list'),
        (lambda run: run.translate(None), 'texts is a NoneType: give a list'),
        (lambda run: transformer_jax.load_data(run.config, 'w', 'train'), "splits='train' is one"),
    ],
)
def test_a_bare_string_is_no_list(sampler, act, message):
    with pytest.raises(DataError, match=message):
        act(transformer_jax.open_run(sampler, log=quiet))


def test_classes_and_stops_are_lists(classifier, language):
    with pytest.raises(DataError, match='is one string'):
        transformer_jax.open_run(classifier, log=quiet).classify('[MAX 1 ]')
    run = transformer_jax.open_run(language, log=quiet)
    with pytest.raises(DataError, match="stop='end' is one string"):
        run.generate('six', stop='end')
    with pytest.raises(ConfigError, match="stop='' is empty"):
        run.generate('six', stop=('', 'end'))


@pytest.mark.parametrize(
    'changes',
    [
        {'metrics': 'bleu'},
        {'metrics': Metric('bleu')},
        {'metrics': ('bleu',)},
        {'published': 'Vaswani et al. (2017)'},
    ],
)
def test_parts_of_an_experiment_are_tuples(changes):
    given = {'claim': '', 'base': default_config(), 'variants': {'a': {}}}
    with pytest.raises(ConfigError, match=rf'{next(iter(changes))}.*=.*: it takes '):
        Experiment(**given, **({'metrics': (Metric('bleu'),)} | changes))


def test_a_split_is_one_of_three(sampler):
    config = transformer_jax.open_run(sampler, log=quiet).config
    with pytest.raises(ConfigError, match="split='tran': did you mean 'train'"):
        transformer_jax.load_data(config, sampler, ['tran'])


# --- Prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--prompt=\udcff',), 'the prompt: invalid UTF-8 (byte 0xff)'),
        (('--prompt=six', '--stop='), "stop='' is empty: give a text, or leave it out"),
        (('--prompt=six', '--stop=x', '--stop='), "stop='' is empty"),
        (('--prompt=six', '--stop=\udc80'), 'stop: invalid UTF-8 (byte 0x80)'),
    ],
)
def test_prompts_that_are_no_text(language, call, arguments, message):
    code, output, errors = call('generate', f'--workdir={language}', *arguments)
    assert (code, output) == (2, '')
    assert message in errors


@pytest.mark.parametrize(
    'arguments',
    [('--prompt', '--a-b'), ('--prompt=--a-b',), ('--max-tokens=1', '--prompt', '--a-b')],
)
def test_a_value_stays_as_it_is(language, call, arguments):
    code, output, _ = call('generate', f'--workdir={language}', '--max_tokens=1', *arguments)
    assert code == 0
    assert output.startswith('--a-b')


TEXT = 'the dog  sees\nthe dög '
TOKENIZERS = {
    'bytes': Bytes.train([], 260),
    'characters': Characters.train([TEXT], 4 + len(set(TEXT))),
    'pairs': BytePairs.train([TEXT] * 3, 24),
    'symbols': Symbols.of(TEXT.split()),
}


@pytest.mark.parametrize('name', TOKENIZERS)
def test_prompt_and_continuation_are_the_text(name):
    """`--prompt=the` with the tokens of ' dog' gives 'the dog'."""
    tokenizer = TOKENIZERS[name]
    trained = SimpleNamespace(data=SimpleNamespace(tokenizer=tokenizer))
    generator = Generator(trained, 5)
    [ids] = tokenizer.encode([TEXT])
    whole = ' '.join(TEXT.split()) if name == 'symbols' else TEXT
    for at in range(len(ids) + 1):
        [prompt] = tokenizer.decode([ids[:at]])
        if '\ufffd' not in prompt:  # half a character is no prompt
            added = generator._continuation(prompt, ids[:at], [*ids[at:], EOS, PAD])
            assert prompt + added == whole


def test_an_older_vocabulary_adds_no_second_space():
    old = BytePairs(TOKENIZERS['pairs']._model, keeps_spaces=False)
    generator = Generator(SimpleNamespace(data=SimpleNamespace(tokenizer=old)), 5)
    ids, tokens = old.encode(['the ', 'dog'])
    assert 'the ' + generator._continuation('the ', ids, tokens) == 'the dog'
    assert 'the' + generator._continuation('the', ids, tokens) == 'the dog'


# --- Output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arguments',
    [
        ('--help',),
        ('translate', '--help'),
        ('generate', '--prompt=six', '--max_tokens=2'),
        ('evaluate', '--json'),
        ('inspect',),
    ],
)
@pytest.mark.parametrize('device', ['/dev/full', 'closed'])
def test_output_that_cannot_be_written(language, call, monkeypatch, arguments, device):
    """It ends with one line and exit code 3, however late the error comes."""
    with open('/dev/full', 'w') as full:
        monkeypatch.setattr(sys, 'stdout', None if device == 'closed' else full)
        workdir = () if '--help' in arguments else (f'--workdir={language}',)
        code, _, errors = call(*arguments, *workdir)
        assert code == 3
        assert 'Traceback' not in errors
        assert errors.splitlines()[-1].startswith('transformer-jax: cannot write standard output: ')


def test_remarks_that_cannot_be_written_stop_nothing(sampler, call, monkeypatch):
    give(monkeypatch, b'six\n')
    for remarks in (open('/dev/full', 'w'), None):  # noqa: SIM115
        monkeypatch.setattr(sys, 'stderr', remarks)
        give(monkeypatch, b'six\n')
        code, output, _ = call('translate', f'--workdir={sampler}')
        assert (code, output.count('\n')) == (0, 1)


def test_output_in_another_encoding(monkeypatch):
    for encoding, use, expected in (
        ('ascii', False, b'\\xe4'),
        ('ascii', True, 'ä'.encode()),
        ('latin-1', True, 'ä'.encode()),
    ):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding=encoding))
        with streams.guarded_streams():
            if use:
                streams.use_utf8_output()
            print('ä', end='', flush=True)
        assert raw.getvalue() == expected


def test_a_reader_that_ends_is_no_error(language, call, monkeypatch):
    ends = os.pipe()
    os.close(ends[0])
    with open(ends[1], 'w') as closed:
        monkeypatch.setattr(sys, 'stdout', closed)
        assert call('inspect', f'--workdir={language}')[0] == 0


@pytest.mark.parametrize('out', ['/proc/x.png', '/dev/full/x.png', 'folder.png', '/proc/a/b.png'])
def test_pictures_that_cannot_be_written(sampler, refuse_figure, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.png').mkdir()
    assert f'cannot write {out}: ' in refuse_figure(
        'attention', f'--workdir={sampler}', '--text=six', f'--out={out}'
    )


@pytest.fixture
def refuse_figure(call):
    """Run a command whose picture cannot be written: the message, one line, before any work."""

    def run(*arguments):
        code, output, errors = call(*arguments)
        assert (code, output) == (3, '')
        assert 'Traceback' not in errors
        return errors.splitlines()[-1]

    return run


def test_lengths_and_probes_check_their_picture_first(language, refuse_figure):
    for arguments in (('evaluate', '--lengths=24'), ('probe',)):
        message = refuse_figure(*arguments, f'--workdir={language}', '--out=/proc/x.png')
        assert 'cannot write /proc/x.png: ' in message


@pytest.mark.parametrize('folder', ['/proc/c', '/dev/null/c', 'file'])
def test_prepared_data_that_cannot_be_written(folder, tmp_path, monkeypatch):
    from etils import epath

    from transformer_jax.data.files import CACHE
    from transformer_jax.storage.files import new_directory, write_bytes

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('mine')
    path = epath.Path(folder) / 'x' / 'y'
    with pytest.raises(WorkdirError, match=rf'cannot write {path}: .* another data\.cache_dir'):
        write_bytes(path, b'1', CACHE)
    with pytest.raises(WorkdirError, match=rf'cannot write {path}: .*'), new_directory(path):
        pass
    assert (tmp_path / 'file').read_text() == 'mine'

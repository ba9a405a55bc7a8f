"""Data files that are no files, cut, damaged or missing: one line names them and the remedy."""

import gzip
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from helpers.prepared_sets import prepare

from transformer_jax.data import files
from transformer_jax.data.tasks import multi30k
from transformer_jax.data.tasks.parallel_text import ParallelText
from transformer_jax.data.tasks.text_file import TextFile
from transformer_jax.errors import DataError, WorkdirError
from transformer_jax.schema import DataConfig

# --- What is no file ------------------------------------------------------------------------------


@pytest.fixture
def odd_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'nowhere').symlink_to(tmp_path / 'missing')
    (tmp_path / 'file').write_text('a\n')
    return tmp_path


@pytest.mark.fault('bad data files')
@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('pipe', 'a pipe or a device, which cannot be read twice, not a file'),
        ('/dev/zero', 'a pipe or a device'),
        ('/dev/null', 'a pipe or a device'),
        ('/dev/tty', 'a pipe or a device'),
        ('folder', 'a folder, not a file'),
        ('loop', 'no such file|Too many levels of symbolic links|cannot be read'),
        ('nowhere', 'no such file'),
        ('missing', 'no such file'),
        ('file/below', 'no such file'),
        ('x' * 300, 'no such file|File name too long'),
        ('a\0b', 'no such file|embedded null'),
    ],
)
@pytest.mark.parametrize('task', ['text_file', 'parallel_text'])
def test_what_is_no_file_is_not_waited_for(odd_files, name, message, task):
    data = DataConfig(source_dir=str(odd_files), source='', target='')
    made = TextFile(train=name) if task == 'text_file' else ParallelText(train=name + '{lang}')
    for act in (made.load, made.fingerprint):
        with pytest.raises(DataError, match=message) as error:
            act(data, 'train')
        assert '\n' not in str(error.value)
        assert 'check data.source_dir' in str(error.value)


# --- Prepared sets --------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A set of 50 texts, with classes, and one image."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp('prepared')
    label = tfds.features.ClassLabel(names=['no', 'yes'])
    features = {'text': tfds.features.Text(), 'label': label}
    records = [{'text': f'gut {number} ' * 20, 'label': number % 2} for number in range(50)]
    prepare(folder, 'fake', features, {'train': records})
    pair = tfds.features.Translation(('de', 'en'))
    prepare(
        folder, 'pairs', {'de': pair['de'], 'en': pair['en']}, {'train': [{'de': 'a', 'en': 'b'}]}
    )
    return folder


def read_documents(folder):
    from transformer_jax.data import tfds_builders

    return tfds_builders.documents('fake', str(folder), 'train', 'text')


def read_classes(folder):
    from transformer_jax.data import tfds_builders

    names = 'text', 'label'
    return tfds_builders.classification('fake', str(folder), 'train', names, ('no', 'yes'))


def read_pairs(folder):
    from transformer_jax.data import tfds_builders

    return tfds_builders.translation('pairs', str(folder), 'train', ('de', 'en'))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[200] ^= 255
    path.write_bytes(raw)


DAMAGES = {
    'halved': halve,
    'emptied': lambda path: path.write_bytes(b''),
    'missing': lambda path: path.unlink(),
    'a bit': flip,
    'other bytes': lambda path: path.write_bytes(b'x' * path.stat().st_size),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.fault('bad data files')
@pytest.mark.parametrize('read', [read_documents, read_classes, read_pairs])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_shard_is_named(prepared, tmp_path, read, damage):
    shutil.copytree(prepared, tmp_path / 'copy')
    assert len(read(tmp_path / 'copy')) in (1, 50)
    for shard in (tmp_path / 'copy').rglob('*.array_record-*'):
        DAMAGES[damage](shard)
    with pytest.raises(DataError, match='the prepared set is damaged') as error:
        read(tmp_path / 'copy')
    message = str(error.value)
    assert '\n' not in message
    assert str(tmp_path / 'copy') in message
    assert 'tfds build' in message


@pytest.mark.fault('bad data files')
@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'\xff', b'{"a": [', None])
def test_a_damaged_description_is_named(prepared, tmp_path, name, content):
    shutil.copytree(prepared / 'fake', tmp_path / 'fake')
    [path] = tmp_path.rglob(name)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match='fake cannot be read as ArrayRecord') as error:
        read_documents(tmp_path)
    assert '\n' not in str(error.value)
    assert 'tfds build fake' in str(error.value)


@pytest.mark.fault('bad data files')
@pytest.mark.parametrize('damage', ['halved', 'missing'])
def test_a_damaged_cache_of_multi30k_is_named(tmp_path, damage):
    for split in ('train', 'val', 'test_2016_flickr'):
        for language in ('en', 'de'):
            (tmp_path / f'{split}.{language}').write_text('ein Hund\n' * 50)
    data = DataConfig(
        source='en', target='de', source_dir=str(tmp_path), cache_dir=str(tmp_path / 'cache')
    )
    task = multi30k.Multi30k()
    assert len(task.load(data, 'train')) == 50
    [shard] = (tmp_path / 'cache').rglob('*train.array_record-*')
    DAMAGES[damage](shard)
    with pytest.raises(DataError, match=r'set is damaged .* delete .*: it is made anew'):
        task.load(data, 'train')
    [folder] = (tmp_path / 'cache' / 'tfds').iterdir()
    shutil.rmtree(folder)
    assert len(task.load(data, 'train')) == 50


def test_a_cache_that_cannot_be_written(tmp_path):
    for split in ('train', 'val', 'test_2016_flickr'):
        for language in ('en', 'de'):
            (tmp_path / f'{split}.{language}').write_text('ein Hund\n')
    data = DataConfig(source='en', target='de', source_dir=str(tmp_path), cache_dir='/proc/c')
    with pytest.raises(WorkdirError, match=r'cannot write /proc/c/tfds/.*another data\.cache_dir'):
        multi30k.Multi30k().load(data, 'train')


# --- Downloads ------------------------------------------------------------------------------------

GOOD = gzip.compress(b'ein Hund\n' * 10)


@pytest.fixture
def server(monkeypatch):
    """Serve one answer for every path: (bytes promised, bytes sent, status)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answer = (len(GOOD), GOOD, 200)

        def do_GET(self):
            length, content, status = self.answer
            self.send_response(status)
            if length is not None:
                self.send_header('Content-Length', str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    served = http.server.HTTPServer(('localhost', 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    monkeypatch.setattr(multi30k, 'URL', f'http://localhost:{served.server_port}')
    yield Handler
    served.shutdown()
    thread.join()
    served.server_close()


def test_a_whole_download_is_kept(server, tmp_path):
    data = DataConfig(source='en', target='de', cache_dir=str(tmp_path))
    path = multi30k.Multi30k()._file(data, 'train', 'source')
    assert files.read_lines(path) == ['ein Hund'] * 10


@pytest.mark.fault('bad data files')
@pytest.mark.parametrize(
    ('version', 'answer'),
    [
        ('raw', (100_000, b'x' * 10, 200)),
        ('lc.norm.tok', (100_000, b'x' * 10, 200)),
        ('raw', (None, GOOD[: len(GOOD) // 2], 200)),  # no length was promised
        ('raw', (None, b'<html>log in first</html>', 200)),
        ('raw', (0, b'', 200)),
        ('lc.norm.tok', (0, b'', 200)),
        ('raw', (None, b'', 200)),
        ('raw', (9, b'not found', 404)),
        ('raw', (4, b'busy', 503)),
    ],
)
def test_a_cut_download_is_not_kept(server, tmp_path, version, answer):
    server.answer = answer
    data = DataConfig(source='en', target='de', cache_dir=str(tmp_path))
    task = multi30k.Multi30k(version=version)
    with pytest.raises(DataError, match=r'cannot download http://localhost:\d+/') as error:
        task._file(data, 'train', 'source')
    assert 'set data.source_dir' in str(error.value)
    assert '\n' not in str(error.value)
    assert not [path for path in Path(tmp_path).rglob('*') if path.is_file()]


def test_a_download_without_a_server(tmp_path, monkeypatch):
    data = DataConfig(source='en', target='de', cache_dir=str(tmp_path))
    for url in ('http://localhost:1', 'http://localhost:x', 'http://no-such-host.invalid'):
        monkeypatch.setattr(multi30k, 'URL', url)
        with pytest.raises(DataError, match='cannot download'):
            multi30k.Multi30k()._file(data, 'train', 'source')

"""Reading text: every damage is one line that names the file; the cache is never half full."""

import gzip

import pytest
from etils import epath

from transformer_jax.data.files import content_hash, find, read_lines, read_pairs
from transformer_jax.errors import DataError
from transformer_jax.storage.files import new_directory


def path_of(directory, name: str, content: bytes) -> epath.Path:
    path = epath.Path(directory) / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('name', ['a.en', 'a.en.gz'])
def test_only_line_feeds_end_lines(tmp_path, name):
    text = 'one\u2028still one\r\n\n three \x85\u00a0\nlast without feed'.encode()
    path = path_of(tmp_path, name, gzip.compress(text) if name.endswith('gz') else text)
    assert read_lines(path) == ['one\u2028still one', '', ' three \x85\u00a0', 'last without feed']


def test_an_empty_file_has_no_lines_and_an_empty_line_is_one(tmp_path):
    assert read_lines(path_of(tmp_path, 'a', b'')) == []
    assert read_lines(path_of(tmp_path, 'a', b'\n')) == ['']
    assert read_lines(path_of(tmp_path, 'a', b'\xef\xbb\xbfmark\n')) == ['mark']


def test_find_prefers_the_plain_file_and_names_the_key(tmp_path):
    directory = epath.Path(tmp_path)
    with pytest.raises(
        DataError, match=r'train\.en: no such file, plain or \.gz; check data\.source_dir'
    ):
        find(directory / 'train.en', 'data.source_dir')
    zipped = path_of(tmp_path, 'train.en.gz', b'')
    assert find(directory / 'train.en', 'data.source_dir') == zipped
    plain = path_of(tmp_path, 'train.en', b'')
    assert find(directory / 'train.en', 'data.source_dir') == plain


# mtime=0: the time would give the test another name in every worker.
ZIPPED = gzip.compress(b'text\n' * 100, mtime=0)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'good\nbad \xff\nmore\n', r'a\.en:2: invalid UTF-8 \(byte 0xff\)'),
        (b'good\ncut \xc3', r'a\.en:2: invalid UTF-8'),
        (ZIPPED[:-9], r'a\.en: damaged gzip data'),
        (ZIPPED[:12] + b'\0\0\0\0', r'a\.en: damaged gzip data'),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_lines(path_of(tmp_path, 'a.en', content))
    assert '\n' not in str(error.value)


def test_files_of_unequal_length_give_both_counts(tmp_path):
    source, target = path_of(tmp_path, 'a.en', b'1\n2\n3\n'), path_of(tmp_path, 'a.de', b'1\n2\n')
    with pytest.raises(DataError, match=r'a\.en has 3 lines but .*a\.de has 2'):
        read_pairs(source, target)


def test_origin_counts_lines_from_one(tmp_path):
    pairs = read_pairs(path_of(tmp_path, 'a.en', b'1\n2\n'), path_of(tmp_path, 'a.de', b'3\n4\n'))
    assert (pairs.source, pairs.target, len(pairs)) == (['1', '2'], ['3', '4'], 2)
    assert pairs.origin(1, 'target') == f'{tmp_path}/a.de:2'
    assert pairs.head(1).source == ['1']


def test_content_hash_sees_bytes_names_and_order(tmp_path):
    a, b, other = (
        path_of(tmp_path, 'a', b'x'),
        path_of(tmp_path, 'b', b'x'),
        path_of(tmp_path, 'c', b'y'),
    )
    assert len({content_hash(*paths) for paths in ((a,), (b,), (other,), (a, b), (b, a))}) == 5


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path) / 'deep' / 'set'

    def fail_halfway():
        with new_directory(path) as partial:
            (partial / 'file').write_text('half')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(path.parent.iterdir()) == []
    with new_directory(path) as slow:
        (slow / 'file').write_text('second')
        with new_directory(path) as fast:
            (fast / 'file').write_text('first')
        assert (path / 'file').read_text() == 'first'
    assert (path / 'file').read_text() == 'first'
    assert list(path.parent.iterdir()) == [path]

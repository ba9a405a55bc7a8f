"""The checksum manifest of a directory.

MANIFEST.json holds the size and the SHA-256 of every other file in the directory and below it. The
files that file managers and network file systems add (.DS_Store, .nfs…) are neither recorded nor
missed: they are left alone.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import exists, wrap_read_errors, write_text
from transformer_jax.storage.json_files import parse_json
from transformer_jax.storage.json_text import to_json

NAME = 'MANIFEST.json'
# Beside names that begin with a dot; Orbax writes none of either sort.
OTHERS = ('Thumbs.db', 'desktop.ini', '@eaDir', '__MACOSX')


# A run deletes its old checkpoints while others read them.
JUST_DELETED = 'has just been deleted, as a run deletes its old checkpoints: give the command again'


class Damaged(WorkdirError):
    """A directory that differs from its manifest, or whose manifest is damaged."""


def write(directory: epath.Path) -> None:
    """Write the manifest of all files below `directory`.

    The write is atomic, so a directory with a manifest is complete.
    """
    write_text(directory / NAME, to_json(_digests(directory, _covered(directory)), indent=1))


def find_damage(directory: epath.Path) -> str | None:
    """Return the first difference between `directory` and its manifest, or None if there is none.

    Reads every file. A file that is missing, added, truncated or altered is a difference, the
    manifest itself included; the text that is returned names the file.

    Raises:
        WorkdirError: a file cannot be read: that says nothing about what is in it.
    """
    try:
        with wrap_read_errors(directory):
            recorded = _recorded(directory)
            found = _digests(directory, _covered(directory))
    except FileNotFoundError as error:
        return f'{error.filename} is missing' if exists(directory / NAME) else JUST_DELETED
    if recorded is None:
        return f'{NAME} is not a manifest'
    return next(_differences(recorded, found), None)


def describe_damage(damage: str) -> str:
    """Return the words for what `find_damage` found: 'is damaged: …'."""
    return damage if damage == JUST_DELETED else f'is damaged: {damage}'


def read_text(directory: epath.Path, name: str) -> str:
    """Verify one file against the manifest and return its text.

    Raises:
        Damaged: the file is damaged or missing; the message names it.
        WorkdirError: it cannot be read.
    """
    try:
        with wrap_read_errors(directory):
            recorded = _recorded(directory)
            found = _digests(directory, [directory / name])
            text = (directory / name).read_text()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        damage = f'{name}: {error}' if exists(directory / NAME) else JUST_DELETED
        raise Damaged(f'{directory} {describe_damage(damage)}') from error
    if recorded is None or name not in recorded or recorded[name] != found[name]:
        raise Damaged(f'{directory} is damaged: {name} differs from {NAME}')
    return text


def _recorded(directory: epath.Path) -> dict | None:
    content = (directory / NAME).read_bytes()
    try:
        return parse_json(content, NAME, {str: str}, '')
    except WorkdirError:
        return None


def _differences(recorded: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            yield f'{name} is missing'
        elif name not in recorded:
            yield f'{name} is not in {NAME}'
        elif found[name] != recorded[name]:
            yield f'{name} differs from {NAME} (file: {found[name]}; manifest: {recorded[name]})'


def _digests(directory: epath.Path, files: list[epath.Path]) -> dict[str, str]:
    """Hash files in parallel: {'state/d/…': '1234 bytes, sha256 ab…'}."""

    def digest(path: epath.Path) -> str:
        sha256, size = hashlib.sha256(), 0
        # Not hashlib.file_digest: the file objects of some stores have no `readinto`.
        with path.open('rb') as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                size += len(block)
        return f'{size} bytes, sha256 {sha256.hexdigest()}'

    with ThreadPoolExecutor() as pool:  # Threads are enough: hashlib releases the GIL.
        names = (path.relative_to(directory).as_posix() for path in files)
        return dict(zip(names, pool.map(digest, files), strict=True))


def _covered(directory: epath.Path) -> list[epath.Path]:
    """List every file below `directory` but its manifest."""
    return [path for path in _files(directory) if path != directory / NAME]


def _is_foreign(name: str) -> bool:
    """Whether something else than this program makes files of this name."""
    return name.startswith('.') or name in OTHERS


def _files(directory: epath.Path) -> list[epath.Path]:
    children = sorted(path for path in directory.iterdir() if not _is_foreign(path.name))
    return [file for child in children for file in (_files(child) if child.is_dir() else [child])]

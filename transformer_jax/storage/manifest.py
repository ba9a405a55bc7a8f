"""A directory's checksum manifest: MANIFEST.json holds size and SHA-256 of every other file
below it.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from transformer_jax.errors import WorkdirError
from transformer_jax.storage.files import write_text

NAME = 'MANIFEST.json'


def write(directory: epath.Path) -> None:
    """Records the files below `directory`; atomic, so that the manifest's presence is a commit."""
    write_text(directory / NAME, json.dumps(_digests(directory, _covered(directory)), indent=1))


def damage(directory: epath.Path) -> str | None:
    """The first way in which `directory` differs from its manifest, naming the file; None if it
    is intact.

    Reads every file. Anything missing, added, truncated or altered counts, the manifest
    itself included.
    """
    try:
        recorded = _recorded(directory)
        found = _digests(directory, _covered(directory))
    except (
        FileNotFoundError
    ) as error:  # A reader beside a running training meets steps being deleted.
        return f'{error.filename} has just been deleted'
    if recorded is None:
        return f'{NAME} is not a manifest'
    return next(_differences(recorded, found), None)


def read_text(directory: epath.Path, name: str) -> str:
    """The text of one file, verified; raises WorkdirError naming the file if it is damaged."""
    try:
        recorded = _recorded(directory)
        found = _digests(directory, [directory / name])
        text = (directory / name).read_text()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise WorkdirError(f'{directory} is damaged: {name}: {error}') from error
    if recorded is None or name not in recorded or recorded[name] != found[name]:
        raise WorkdirError(f'{directory} is damaged: {name} differs from {NAME}')
    return text


def _recorded(directory: epath.Path) -> dict | None:
    try:
        recorded = json.loads((directory / NAME).read_text())
    except ValueError:  # Not JSON, or not UTF-8.
        return None
    return recorded if isinstance(recorded, dict) else None


def _differences(recorded: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            yield f'{name} is missing'
        elif name not in recorded:
            yield f'{name} is not in {NAME}'
        elif found[name] != recorded[name]:
            yield f'{name} differs from {NAME} (file: {found[name]}; manifest: {recorded[name]})'


def _digests(directory: epath.Path, files: list[epath.Path]) -> dict[str, str]:
    """{'state/d/…': '1234 bytes, sha256 ab…'}"""

    def digest(path: epath.Path) -> str:
        sha256 = hashlib.sha256()
        with path.open(
            'rb'
        ) as file:  # Not hashlib.file_digest: not every store's files can do `readinto`.
            while block := file.read(1 << 20):
                sha256.update(block)
        return f'{path.stat().length} bytes, sha256 {sha256.hexdigest()}'

    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter's lock.
        names = (path.relative_to(directory).as_posix() for path in files)
        return dict(zip(names, pool.map(digest, files), strict=True))


def _covered(directory: epath.Path) -> list[epath.Path]:
    """Every file below `directory` but its manifest."""
    return [path for path in _files(directory) if path != directory / NAME]


def _files(directory: epath.Path) -> list[epath.Path]:
    children = sorted(directory.iterdir())
    return [file for child in children for file in (_files(child) if child.is_dir() else [child])]

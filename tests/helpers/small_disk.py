"""A file system of some kilobytes, to fill."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root mounts a small disk'
)


@contextlib.contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a disk of some kilobytes at `path` while the block runs."""
    path.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', str(path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f'no disk can be mounted: {mounted.stderr.strip()}')
    try:
        yield path
    finally:
        subprocess.run(['umount', '--lazy', str(path)], check=True)


def fill(path: Path, left: int = 0) -> Path:
    """Fill the disk at `path` until `left` bytes are free; return the file that fills it."""
    filler = path / 'filler'
    filler.unlink(missing_ok=True)
    disk = os.statvfs(path)
    filler.write_bytes(bytes(max(disk.f_bavail * disk.f_frsize - left, 0)))
    return filler

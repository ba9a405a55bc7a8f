"""Figures written to files, with Matplotlib but without pyplot and its global state."""

import errno
import io
import os
import uuid

from etils import epath
from matplotlib.figure import Figure

from transformer_jax.errors import ConfigError
from transformer_jax.storage.files import wrap_os_errors

FORMATS = ('.png', '.svg', '.pdf')
DPI = 110
ELSEWHERE = 'write to another place'  # what to do where a figure cannot be written


class InlineFigure(Figure):
    """A figure that a notebook shows as a picture when it is the last value of a cell.

    Pyplot is not needed: figures of other libraries are left alone.
    """

    def _repr_png_(self) -> bytes:
        """Return the picture as notebooks ask for it."""
        content = io.BytesIO()
        self.savefig(content, format='png')
        return content.getvalue()


def check_format(path: epath.Path) -> None:
    """Raise ConfigError unless the suffix of a path is one of FORMATS."""
    if path.suffix not in FORMATS:
        raise ConfigError(f'{path}: the suffix of a figure must be one of {", ".join(FORMATS)}')


def check_figure(path: epath.Path) -> None:
    """Check that a figure can be written, before the work that it shows.

    Raises:
        ConfigError: the suffix is none of FORMATS.
        WorkdirError: the place cannot be written.
    """
    check_format(path)
    probe = path.parent / f'{path.name}.{uuid.uuid4().hex[:8]}.tmp'
    with wrap_os_errors(path, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe.touch()
        probe.unlink()


def save_figure(figure: Figure, path: epath.Path) -> epath.Path:
    """Write a figure in the format that the suffix of its path names.

    Args:
        figure: what to write.
        path: of the file; its directory is made if it does not exist.

    Returns:
        the path.

    Raises:
        ConfigError: the suffix is none of FORMATS.
        WorkdirError: the place cannot be written.
    """
    check_format(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    with wrap_os_errors(path, ELSEWHERE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())
    return path

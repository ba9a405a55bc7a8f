"""Figures written to files, with Matplotlib but without pyplot and its global state."""

import io

from etils import epath
from matplotlib.figure import Figure

from transformer_jax.errors import ConfigError

FORMATS = ('.png', '.svg', '.pdf')
DPI = 110


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


def save_figure(figure: Figure, path: epath.Path) -> epath.Path:
    """Write a figure in the format that the suffix of its path names.

    Args:
        figure: what to write.
        path: of the file; its directory is made if it does not exist.

    Returns:
        the path.

    Raises:
        ConfigError: the suffix is none of FORMATS.
    """
    check_format(path)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())
    return path

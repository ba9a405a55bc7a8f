"""Figures written to files, with Matplotlib but without pyplot and its global state.

Every figure of the package is a `PlainFigure`; a test looks for others.
"""

import contextlib
import errno
import io
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from absl import logging
from etils import epath
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from transformer_jax.errors import ConfigError
from transformer_jax.storage.files import wrap_os_errors, write_bytes

FORMATS = ('.png', '.svg', '.pdf')
DPI = 110
OUT = '--out'  # the flag that says where a figure goes, for messages
# Of the files: fonts that journals accept in a PDF, and the same bytes each time.
FILE_SETTINGS: dict[Any, Any] = {'pdf.fonttype': 42, 'svg.hashsalt': 'transformer_jax'}
UNDATED = {'.png': {}, '.svg': {'Date': None}, '.pdf': {'CreationDate': None}}


class PlainFigure(Figure):
    r"""A figure whose text is drawn as it is: a dollar sign begins no formula.

    Names of variants, tokens and labels of experiments are the user's, and Matplotlib fails on
    what is no formula, such as `$\frac$`.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure, with every text as it is."""
        # Some texts, such as labels of ticks, are made only while a figure is drawn.
        with matplotlib.rc_context({'text.parse_math': False}):
            for text in self.findobj(Text):
                text.set_parse_math(False)
            super().draw(renderer)


class InlineFigure(PlainFigure):
    """A figure that a notebook shows as a picture when it is the last value of a cell.

    Pyplot is not needed: figures of other libraries are left alone.
    """

    def _repr_png_(self) -> bytes:
        """Return the picture as notebooks ask for it."""
        return figure_bytes(self)


def draw_legend(
    place: Axes | Figure, handles: Sequence[Artist], names: Sequence[str], **style
) -> Legend:
    """Draw a legend of names of any letters; Matplotlib leaves out those that begin with `_`."""
    numbers = [str(number) for number in range(len(names))]
    legend = place.legend(handles, numbers, **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    return legend


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
    with wrap_os_errors(path, OUT):
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
    write_bytes(path, figure_bytes(figure, path.suffix), OUT)
    return path


def figure_bytes(figure: Figure, suffix: str = '.png') -> bytes:
    """Draw a figure in the format of one of FORMATS."""
    content = io.BytesIO()
    with matplotlib.rc_context(FILE_SETTINGS), _said_once():
        figure.savefig(content, format=suffix[1:], metadata=UNDATED[suffix])
    return content.getvalue()


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Say once that a font lacks characters: Matplotlib warns of each, several times a figure."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    lacking = [warning for warning in caught if 'missing from font' in str(warning.message)]
    if lacking:
        logging.log_first_n(
            logging.WARNING,
            'The font of the figures lacks characters of some names, which are drawn as boxes: set '
            'font.family in a matplotlibrc to an installed font that has them',
            1,
        )
    for warning in caught:
        if warning not in lacking:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )

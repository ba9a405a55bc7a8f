"""Standard input, line by line as it arrives, and output whose failure is one clear line."""

import contextlib
import io
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from transformer_jax.data.files import decode_text
from transformer_jax.errors import DataError, WorkdirError
from transformer_jax.partitioning.processes import from_primary

STANDARD_INPUT = 'standard input'
LONGEST_LINE = 1 << 20  # bytes: more is no line of text, or an endless device
PIECE = 1 << 16  # bytes a read, the size of a pipe's buffer
# Lines a chunk: few at first, so that the first answer comes early, then more, so that the batches
# made of them are full. Chunks of powers of two make few different shapes.
CHUNKS = (16, 256, 4096, 65_536)


class ReaderEndedError(Exception):
    """The reader of standard output has ended, as `head` does: no fault, and nothing more to do."""


class _Result:
    """A text stream whose errors, as of a full disk, are raised as WorkdirError."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')

    def write(self, text: str) -> int:
        """Write text, as `io.TextIOBase.write`."""
        if self._stream is None:
            raise WorkdirError('cannot write standard output: it is closed')
        with self._clear_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is buffered, as `io.TextIOBase.flush`."""
        if self._stream is not None:
            with self._clear_errors():
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _discard_rest(self._stream)
            raise ReaderEndedError from None
        except OSError as error:
            _discard_rest(self._stream)
            raise WorkdirError(
                f'cannot write standard output: {error.strerror or error}; make room, or choose '
                'another place'
            ) from error


class _Remarks(_Result):
    """A text stream for remarks: where it fails, they are lost, and the work goes on."""

    def write(self, text: str) -> int:
        """See _Result."""
        return len(text) if self._stream is None else super().write(text)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            _discard_rest(self._stream)


def _discard_rest(stream: Any) -> None:
    """Let what a stream still holds go nowhere, or the end of Python would fail once more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make errors of standard output clear, and those of standard error harmless, in a block."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # Closed: otherwise the next file that is opened would take its place.
            os.open(os.devnull, os.O_RDWR)
    given: tuple[Any, Any] = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Result(given[0]), _Remarks(given[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = given


def keep_results_apart() -> None:
    """Send what libraries print to standard output to standard error: it is no result.

    Gloo, by which JAX connects processes on CPUs, prints a line for each connection.
    """
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    stream = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(results, 'w')),
        encoding=sys.stdout.encoding,
        line_buffering=os.isatty(results),
    )
    guarded: Any = _Result(stream)
    sys.stdout = guarded


def discard_results() -> None:
    """Let standard output go nowhere: another process of the job prints the results."""
    nowhere: Any = _Remarks(None)
    sys.stdout = nowhere


def use_utf8_output() -> None:
    """Write results in UTF-8 whatever the locale, as texts are read."""
    guarded: Any = sys.stdout
    if isinstance(getattr(guarded, '_stream', None), io.TextIOWrapper):
        guarded.reconfigure(encoding='utf-8')


def read_standard_input() -> str:
    """Read all of standard input as one text; of several processes, process 0 reads it for all.

    Raises:
        DataError: it is closed, too long for a prompt, or not UTF-8.
    """
    return from_primary(_read_text)


def _read_text() -> str:
    reader = _LineReader()
    while reader.read() and reader.size <= LONGEST_LINE:
        pass
    if reader.size > LONGEST_LINE:
        raise DataError(
            f'{STANDARD_INPUT} has more than {LONGEST_LINE} bytes: no prompt is so long'
        )
    raw = b'\n'.join([*reader.lines, reader.rest])
    return decode_text(raw, STANDARD_INPUT).replace('\r\n', '\n')


def arriving_lines() -> Iterator[list[str]]:
    """Yield the lines of standard input in chunks, each as soon as one line of it is there.

    Of several processes, process 0 reads them for all.

    Raises:
        DataError: standard input is closed, cannot be read, or has a line that is too long or not
            UTF-8. The lines before it were yielded.
    """
    chunks = _read_chunks()
    while lines := from_primary(lambda: next(chunks, None)):
        yield lines


def _read_chunks() -> Iterator[list[str]]:
    reader, number = _LineReader(), 1
    for chunk in range(sys.maxsize):
        raw = reader.take(CHUNKS[min(chunk, len(CHUNKS) - 1)])
        if not raw:
            return
        lines: list[str] = []
        try:
            for line in raw:
                lines.append(decode_text(line, STANDARD_INPUT, number).removesuffix('\r'))
                number += 1
        except DataError:
            if lines:
                yield lines
            raise
        yield lines


class _LineReader:
    """The complete lines of standard input that have arrived, without a thread."""

    def __init__(self):
        if sys.stdin is None:
            raise DataError(f'{STANDARD_INPUT} is closed: give a text, as in `echo … | COMMAND`')
        self.lines: deque[bytes] = deque()
        self.rest = b''  # the beginning of the next line
        self.size = 0  # bytes read
        self._taken = 0
        self._error: DataError | None = None  # raised when the lines before it are taken
        self._stream = sys.stdin.buffer
        try:
            self._descriptor = self._stream.fileno()
        except (OSError, AttributeError):  # no file, as in a test
            self._descriptor = None

    def take(self, most: int) -> list[bytes]:
        """Wait for one line, then take as many as have arrived; none at the end of the input."""
        while not self.lines and self.read():
            pass
        while 0 < len(self.lines) < most and self._more_is_there() and self.read():
            pass
        if not self.lines and self._error:
            raise self._error
        if not self.lines and self.rest:  # the last line has no line feed
            self.lines, self.rest = deque([self.rest]), b''
        taken = [self.lines.popleft() for _ in range(min(most, len(self.lines)))]
        self._taken += len(taken)
        return taken

    def read(self) -> bool:
        """Read a piece, and wait for it; False at the end of the input."""
        try:
            if self._descriptor is None:
                piece = self._stream.read(PIECE)
            else:
                piece = os.read(self._descriptor, PIECE)
        except OSError as error:
            raise DataError(f'{STANDARD_INPUT}: cannot be read ({error.strerror})') from None
        self.size += len(piece)
        *lines, self.rest = (self.rest + piece).split(b'\n')
        self.lines += lines
        if len(self.rest) > LONGEST_LINE:
            number = self._taken + len(self.lines) + 1
            self._error = DataError(
                f'{STANDARD_INPUT}:{number}: a line of more than {LONGEST_LINE} bytes: give a text '
                'with line breaks'
            )
        return bool(piece) and self._error is None

    def _more_is_there(self) -> bool:
        if self._descriptor is None:
            return True
        return bool(select.select([self._descriptor], [], [], 0)[0])

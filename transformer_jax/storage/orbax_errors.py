"""What Orbax says when it cannot write: told once, and in some words.

Its callers raise what it raises. Besides, Orbax, TensorStore and asyncio print tracebacks from
their threads, over a thousand lines for one full disk, in which that error is lost.
"""

import functools
import logging as standard_logging
import os
import re
import sys
import traceback

from absl import logging


def save_failure(failure: Exception) -> str:
    """Say in some words why Orbax failed.

    TensorStore tells at length, over several lines, where it failed. It names the error of the
    operating system by its number: "[os_error_code='28']".
    """
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    number = re.search(r"os_error_code='(\d+)'", str(failure))
    return os.strerror(int(number[1])) if number else str(failure).splitlines()[0][-160:]


@functools.cache
def silence_orbax() -> None:
    """Drop the tracebacks of failures that the callers of Orbax raise themselves."""
    for logger in (logging.get_absl_logger(), standard_logging.getLogger('asyncio')):
        logger.addFilter(lambda record: not (record.exc_info and _is_orbax(record.exc_info[1])))
    others = sys.unraisablehook

    def hook(unraisable: 'sys.UnraisableHookArgs') -> None:
        # TensorStore's threads report to the event loop of a save that has failed already.
        closed = isinstance(unraisable.exc_value, RuntimeError)
        if not (closed and str(unraisable.exc_value) == 'Event loop is closed'):
            others(unraisable)

    sys.unraisablehook = hook


def _is_orbax(error: BaseException | None) -> bool:
    """Whether an error came through the code of Orbax, or from TensorStore's writes for it."""
    if error is None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return 'orbax' in str(error) or any('/orbax/' in frame.filename for frame in frames)

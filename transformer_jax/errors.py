"""Errors that a user can mend: one clear message each, and the exit code of the command line."""


class UserError(Exception):
    """A mistake in usage, configuration or data: shown as one message without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot run; the message names the key, the value and the remedy."""


class DataError(UserError):
    """Input that cannot be used; the message names the file and line."""


class WorkdirError(UserError):
    """A workdir that is locked, full, read-only or damaged beyond repair."""

    exit_code = 3


class Busy(WorkdirError):
    """Another process works in that workdir."""


class Diverged(UserError):
    """A non-finite loss, gradient or update with `train.on_nonfinite='stop'`."""

    exit_code = 4


class Stopped(UserError):
    """The run ended on a signal, its state saved: exit code 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum

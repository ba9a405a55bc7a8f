"""Errors that a user can fix, each with one message and the exit code of the command line."""

from transformer_jax.process_end import exit_code


class UserError(Exception):
    """A mistake in usage, configuration or data; the command line prints it without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot run; the message names the key, the value and how to fix it."""


class DataError(UserError):
    """Input that cannot be used; the message names the file and the line."""


class WorkdirError(UserError):
    """A workdir that is locked, full, read-only or damaged beyond repair."""

    exit_code = 3


class Busy(WorkdirError):
    """A workdir that another process is using."""


class Diverged(UserError):
    """A non-finite loss, gradient or update with `train.on_nonfinite='stop'`."""

    exit_code = 4


class ProcessGone(UserError):
    """Another process of a run of several has ended or, on a cluster, not come: restart all."""

    exit_code = 5


class Stopped(UserError):
    """A run that a signal ended after its state was saved.

    The exit code is 130 for SIGINT (Ctrl-C), and 143 for SIGTERM and all others.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum, self.exit_code = signum, exit_code(signum)


# Errors that all processes of a job have alike, since they read and compute the same.
ALIKE = (ConfigError, DataError, Diverged, Stopped)

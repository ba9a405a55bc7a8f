"""Paths of a local directory or of an object store, `gs://…`, as users write them."""

import os
import tempfile

import fsspec
from etils import epath
from fsspec import config as fsspec_config

from transformer_jax.errors import ConfigError

# gcsfs keeps lists of what is in a bucket for ever: a lease that another process has renewed would
# be read with its old size, and the checkpoints that it writes would not be seen.
for _protocol in ('gs', 'gcs'):
    fsspec_config.conf.setdefault(_protocol, {}).setdefault('use_listings_cache', False)


def is_local(path: epath.Path) -> bool:
    """Whether the operating system's own calls work on `path`; False for `gs://` and the like."""
    return '://' not in os.fspath(path)


def require_store(path: epath.Path, flag: str) -> None:
    """Raise ConfigError where the package is missing that reads `gs://` and the like."""
    if is_local(path):
        return
    try:
        fsspec.get_filesystem_class(os.fspath(path).partition('://')[0])
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{flag}={path}: {error}; for gs:// use pip install -e '.[gcs]'"
        ) from error


def expand_home(path: epath.PathLike) -> epath.Path:
    """Replace ~ and ~NAME at the beginning of a path.

    Raises:
        ConfigError: there is no such home directory, as in a container with an unknown user, or
            no such kind of place, as nowhere://.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith('~'):
        raise ConfigError(
            f'{path}: this user has no home directory here: set HOME, or write the path in full'
        )
    try:
        return epath.Path(expanded)
    except KeyError as error:
        raise ConfigError(f'{path}: write a folder, or gs://BUCKET/FOLDER') from error


def user_cache() -> epath.Path:
    """Return the folder of what may be computed again: ~/.cache/transformer_jax.

    Without a home directory it is a folder of this user among the temporary files.
    """
    try:
        return expand_home('~/.cache/transformer_jax')
    except ConfigError:
        return epath.Path(tempfile.gettempdir()) / f'transformer_jax-{os.getuid()}'


def absolute_path(path: epath.PathLike) -> epath.Path:
    """Expand ~ and .., and start a relative path at the current directory.

    Not epath's `resolve`, which would turn `gs://bucket` into a local path.
    """
    path = expand_home(path)
    if is_local(path):
        return path.resolve()
    scheme, _, rest = os.fspath(path).partition('://')
    return epath.Path(f'{scheme}://{os.path.normpath(rest)}')


def real_path(path: epath.PathLike) -> epath.Path:
    """Return an absolute path, with links replaced by what they lead to."""
    path = absolute_path(path)
    return epath.Path(os.path.realpath(path)) if is_local(path) else path

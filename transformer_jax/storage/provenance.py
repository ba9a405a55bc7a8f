"""Where a number comes from: the commit, versions, devices, command and times of a run."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from transformer_jax import outside
from transformer_jax.storage.environment import describe_environment
from transformer_jax.storage.jax_settings import jax_settings

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def describe_run() -> dict[str, Any]:
    """Return the record of a run that starts now, JSON values for run.json.

    Keys: commit, versions, modules (SHA-256 of the files of modules from outside that specs name),
    devices, processes, settings (of JAX), environment (see `describe_environment`), host, command,
    start, end, exit. 'end' and 'exit' are None as long as the run is alive.
    """
    kinds = sorted({f'{device.platform} {device.device_kind}' for device in jax.devices()})
    return {
        'commit': git_commit(Path(__file__).parents[1]),
        'versions': package_versions(),
        'modules': outside.sources(),
        'devices': f'{jax.device_count()} x {", ".join(kinds)}',
        'processes': jax.process_count(),
        'settings': jax_settings(),
        'environment': describe_environment(),
        'host': platform.node(),
        'command': shlex.join(sys.argv),
        'start': timestamp(),
        'end': None,
        'exit': None,
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {'python': platform.python_version()} | versions


def describe_machine() -> dict[str, Any]:
    """Return what a timing must be read with: host, devices, versions, commit, CPUs and load.

    The load average is that of the last minute, so call this before anything is timed.
    """
    run = describe_run()
    return {key: run[key] for key in ('host', 'devices', 'versions', 'commit', 'start')} | {
        'cpus': os.cpu_count(),
        'load_average': os.getloadavg()[0],
    }


def git_commit(directory: Path) -> str | None:
    """Return the commit of the git checkout that contains `directory`.

    '+changes' is appended if tracked files were changed. None outside a checkout.
    """

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may be inside the checkout of another project: git must track it.
        git('ls-files', '--error-unmatch', '.')
        changes = '+changes' if git('status', '--porcelain', '--untracked-files=no') else ''
        return git('rev-parse', 'HEAD') + changes
    except (OSError, subprocess.CalledProcessError):
        return None


def timestamp() -> str:
    """Return the time now in ISO format, with the offset from UTC."""
    return time.strftime('%Y-%m-%dT%H:%M:%S%z')

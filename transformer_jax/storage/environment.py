"""The environment of a run: all installed packages, Python, the system, and flags of XLA and JAX.

The list of packages has a hash, so that two environments are compared by one line.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

# Environment variables that change what is compiled or how it rounds begin with one of these.
FLAGS = ('XLA_', 'JAX_', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')
# They say where this machine keeps and finds things, which changes no number.
PLACES = ('CACHE', 'COORDINATOR', 'PROCESS', 'DIR', 'PATH', 'DUMP', 'ADDRESS', 'KEY', 'TOKEN')


def describe_environment() -> dict[str, Any]:
    """Return the record of this environment, JSON values for run.json.

    Keys: python (version), os, packages (name -> version), packages_sha256 (see `packages_hash`),
    flags (the environment variables of FLAGS, but for those that name places).
    """
    packages = installed_packages()
    return {
        'python': platform.python_version(),
        'os': platform.platform(),
        'packages': packages,
        'packages_sha256': packages_hash(packages),
        'flags': {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(FLAGS) and not any(part in name for part in PLACES)
        },
    }


@functools.cache
def installed_packages() -> dict[str, str]:
    """Return name -> version of every installed package, sorted; names in lower case with dashes.

    Of a package that is found twice the first counts, as for imports.
    """
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        facts = distribution.metadata
        if name := facts['Name']:  # A folder that a broken installation left has none.
            found.setdefault(name.lower().replace('_', '-'), facts['Version'] or 'unknown')
    return dict(sorted(found.items()))


def packages_hash(packages: Mapping[str, str]) -> str:
    """Return the SHA-256 of the lines 'name==version', sorted, each with a line feed."""
    lines = sorted(f'{name}=={version}\n' for name, version in packages.items())
    return hashlib.sha256(''.join(lines).encode()).hexdigest()


def without_known_packages(
    start: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the record of a start; without its list of packages where an earlier start has it.

    The hash stays: it says which list is meant.
    """
    environment = start.get('environment')
    known = [
        before['environment']['packages_sha256']
        for before in earlier
        if isinstance(before.get('environment'), dict)
        and 'packages' in before['environment']
        and 'packages_sha256' in before['environment']
    ]
    if not environment or environment['packages_sha256'] not in known:
        return dict(start)
    rest = {key: value for key, value in environment.items() if key != 'packages'}
    return {**start, 'environment': rest}

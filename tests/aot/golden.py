"""Write the golden files of tests/aot anew; each line that changes wants its reason in the commit.

make golden-aot                                        # those of all cases, about 15 minutes
PYTHONPATH=tests .venv-aot/bin/python tests/aot/golden.py mesh-fsdp moe        # those of some
"""

import json
import sys
import time

import jax
from aot.cases import CASES, FOLDER, describe, path_of

from transformer_jax.partitioning.topologies import parse_topology
from transformer_jax.profiling.plan import attempt


def write(name: str) -> None:
    """Compile a case and write its golden file."""
    case, start = CASES[name], time.perf_counter()
    found = describe(attempt('', case.config(), case.command, parse_topology(case.topology)))
    path_of(name).write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + '\n')
    print(f'{name}: {time.perf_counter() - start:.0f} s', flush=True)


if __name__ == '__main__':
    jax.config.update('jax_enable_compilation_cache', False)
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        write(name)

"""Write the golden files of tests/aot anew; each line that changes wants its reason in the commit.

make golden-aot              # those for TPUs, about 15 minutes; golden-aot-gpu: for GPUs, about 10
PYTHONPATH=tests .venv-aot/bin/python tests/aot/golden.py mesh-fsdp moe        # those of some
PYTHONPATH=tests .venv-aot-gpu/bin/python tests/aot/golden.py gpu/mesh-fsdp
"""

import importlib.util
import json
import sys
import time

import jax
from aot.cases import CASES, describe, path_of
from aot.gpu_cases import GPU_CASES

from transformer_jax.partitioning.topologies import EXTRAS, compute_on_the_cpu, parse_topology
from transformer_jax.profiling.plan import attempt

ALL_CASES = CASES | GPU_CASES


def write(name: str) -> None:
    """Compile a case and write its golden file."""
    case, start = ALL_CASES[name], time.perf_counter()
    found = describe(attempt('', case.config(), case.command, parse_topology(case.topology)))
    path_of(name).parent.mkdir(parents=True, exist_ok=True)
    path_of(name).write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + '\n')
    print(f'{name}: {time.perf_counter() - start:.0f} s', flush=True)


def of_this_environment() -> list[str]:
    """List the cases whose compiler is here."""
    here = {platform for platform, row in EXTRAS.items() if importlib.util.find_spec(row[0])}
    return [
        name for name, case in ALL_CASES.items() if parse_topology(case.topology).platform in here
    ]


if __name__ == '__main__':
    compute_on_the_cpu()
    jax.config.update('jax_enable_compilation_cache', False)
    for name in sys.argv[1:] or of_this_environment():
        write(name)

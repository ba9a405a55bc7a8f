"""What the TPU's compiler says of this project's programs, as ratios and slopes; nothing runs.

    .venv-aot/bin/python benchmarks/compiled_for_tpus.py compile-time
    .venv-aot/bin/python benchmarks/compiled_for_tpus.py context-memory
    .venv-aot/bin/python benchmarks/compiled_for_tpus.py one-billion

It needs the compiler: see docs/how-to/plan-a-run.md.
"""

import argparse
import math
import runpy

import jax
import numpy as np

from transformer_jax import config as config_lib
from transformer_jax.partitioning.topologies import parse_topology
from transformer_jax.profiling.plan import Attempt, attempt
from transformer_jax.schema import ExperimentConfig

GIB = 2**30
LENGTHS, CONTEXTS = (8_192, 32_768, 131_072), (1, 4, 16)


def compiled(topology: str, file: str, argument: str, overrides: dict[str, object]) -> Attempt:
    """Compile the training step of a config file for a topology."""
    made = runpy.run_path(f'configs/{file}.py')['get_config'](argument)
    config: ExperimentConfig = config_lib.override(config_lib.from_config_dict(made), overrides)
    return attempt('', config, 'train', parse_topology(topology))


def compile_time() -> None:
    """Print the compile time of WMT's base model, scanned and not, and of one four times as deep.

    Each is compiled twice, in turn, and the faster counts.
    """
    taken: dict[tuple[int, bool], float] = {}
    for layers, scanned in [(6, False), (6, True), (24, True)] * 2:
        overrides = {
            'model.encoder_layers': layers,
            'model.decoder_layers': layers,
            'model.scan_layers': scanned,
        }
        seconds = compiled('v5e:2x2', 'wmt14', 'en-de,base', overrides).seconds
        taken[layers, scanned] = min(seconds, taken.get((layers, scanned), math.inf))
        print(f'{layers} + {layers} layers, scanned: {scanned}: {seconds:.1f} s', flush=True)
    print(f'scanned / unrolled: {taken[6, True] / taken[6, False]:.2f}')
    print(f'24 / 6 scanned: {taken[24, True] / taken[6, True]:.2f}')


def context_memory() -> None:
    """Print the peak memory of a device against the tokens that it holds, and the slope."""
    tokens, peaks, temporaries = [], [], []
    for length in LENGTHS:
        for context in CONTEXTS:
            overrides = {
                'model.decoder_layers': 2,
                'model.scan_layers': True,
                'model.remat': 'full',
                'model.num_heads': 4,
                'model.dropout': 0.0,
                'data.batching': f'packed(length={length})',
                'train.batch_tokens': length * 16 // context,
                'parallel.mesh.context': context,
            }
            found = compiled('v5e:4x4', 'lm1b', 'softmax', overrides)
            arguments = found.program.memory.arguments if found.program else 0
            fits = 'fits' if found.fits else 'does not fit'
            print(
                f'{length:,} tokens over {context} devices: {found.needed / GIB:.2f} GiB, '
                f'of which {arguments / GIB:.2f} GiB parameters and batch; {fits}',
                flush=True,
            )
            tokens.append(length / context)
            peaks.append(found.needed)
            temporaries.append(found.needed - arguments)
    for name, sizes in (('peak', peaks), ('temporaries', temporaries)):
        slope = np.polyfit(np.log(tokens), np.log(sizes), 1)[0]
        print(f'slope of log({name}) in log(tokens of a device): {slope:.2f}')


def one_billion() -> None:
    """Print what a decoder of a billion parameters is on 16 chips of v5e, its parameters cut."""
    mesh = {'parallel.mesh.data': 1, 'parallel.mesh.fsdp': 16}
    found = compiled('v5e:4x4', 'lm1b', '1b', mesh)
    program = found.program
    print(f'compiled in {found.seconds:.0f} s; {found.rows} rows of {found.length} tokens')
    print(f'{found.needed / GIB:.2f} of {found.capacity / GIB:.2f} GiB a device')
    if program is None:
        return
    devices = math.prod(found.mesh.values())
    flops = program.flops * devices + found.kernel_flops
    print(f'compiled FLOPs / model FLOPs: {flops / found.model_flops:.3f}')
    for c in program.collectives:
        print(f'{c.kind} over {"×".join(c.axes)}: {c.count} ×, {c.bytes / 2**20:.1f} MiB')
    print(program.kernels)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    measures = {
        'compile-time': compile_time,
        'context-memory': context_memory,
        'one-billion': one_billion,
    }
    parser.add_argument('measure', choices=list(measures))
    jax.config.update('jax_enable_compilation_cache', False)
    measures[parser.parse_args().measure]()

"""What is to be measured on a GPU: each part calls commands of the program and prints one table.

    python benchmarks/on_a_gpu.py attention
    python benchmarks/on_a_gpu.py mfu
    python benchmarks/on_a_gpu.py multi30k --source_dir=DIR
    python benchmarks/on_a_gpu.py tiny_shakespeare --source_dir=DIR
    python benchmarks/on_a_gpu.py seeds

It is run in the folder of the repository. `--small` takes sizes that a CPU does in a minute, to see
that a part works; its numbers mean nothing. See benchmarks/README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformer_jax.display.tables import output_console, result_table

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, '-m', 'transformer_jax']
TINY = ('model.d_model=32', 'model.d_ff=64', 'model.num_heads=2')
# nanoGPT's best validation loss of the GPU setting; BLEU of Wu et al. (2021), table 2.
NANOGPT, WU = 1.4697, 41.02


def call(words: Sequence[str]) -> dict[str, Any]:
    """Run a program that prints one JSON object, and return that.

    A process of its own gives the memory of the GPU back at its end.

    Raises:
        SystemExit: the program failed; it has said why.
    """
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH', ''))))
    }
    done = subprocess.run(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout) if done.stdout.strip() else {}


def overrides(*settings: str) -> list[str]:
    """Write settings as flags of the program."""
    return [f'--config.{setting}' for setting in settings]


def show(
    title: str, machine: dict[str, Any], columns: Sequence[str], rows: list[Sequence[str]]
) -> None:
    """Print a table below the machine, versions and date of its numbers."""
    versions = machine['versions']
    told = f'{machine["devices"]}, jax {versions["jax"]}, commit {machine["commit"]}'
    console = output_console()
    console.print(f'{told}, {machine["start"]}', highlight=False, markup=False, soft_wrap=True)
    console.print(result_table(title, columns, rows))


def attention(flags: argparse.Namespace) -> None:
    """Time engines in bfloat16, forward and with backward, from 1,024 to 16,384 tokens."""
    engines, lengths, heads, size = 'cudnn,dense,chunked', (1024, 2048, 4096, 8192, 16384), 16, 128
    if flags.small:
        engines, lengths, heads, size = 'dense,chunked', (64, 128), 2, 8
    found = call(
        [
            *PROGRAM, 'bench', 'attention', '--attention=softmax', f'--engines={engines}',
            f'--lengths={",".join(map(str, lengths))}', f'--heads={heads}', f'--head_dim={size}',
            f'--dtype={"float32" if flags.small else "bfloat16"}', '--json',
        ]
    )  # fmt: skip
    rows = [
        (
            p['engine'],
            p['direction'],
            f'{p["length"]:,}',
            f'{1e3 * p["seconds"]:.2f}' if p['seconds'] else 'too large',
            f'{1e-12 * p["flops"] / p["seconds"]:.1f}' if p['seconds'] else '',
            f'{p["temporary_bytes"] / 2**20:,.0f}',
        )
        for p in found['points']
    ]
    columns = ('engine', 'pass', 'length', 'ms', 'TFLOP/s', 'temporary MiB')
    show(f'causal softmax attention, {heads} heads of {size}', found['machine'], columns, rows)


def mfu(flags: argparse.Namespace) -> None:
    """Measure MFU of the decoder of 1.1 billion parameters with 2,048 and 8,192 tokens a row."""
    contexts, tokens, vocabulary, more = (2048, 8192), 16_384, 32_000, []
    if flags.small:
        contexts, tokens, vocabulary = (32, 64), 128, 64
        # bfloat16 takes ten times as long on a CPU.
        more = overrides(*TINY, 'model.decoder_layers=1', 'model.dtype=float32')
    rows, machine = [], {}
    for context in contexts:
        # A synthetic task has tokens of any vocabulary without a file; MFU is that of any tokens.
        task = f'mqar(vocab_size={vocabulary - 4}, length={context}, held_out=4)'
        settings = overrides(
            f'data.task={task}',
            f'data.vocab_size={vocabulary}',
            f'data.batching=buckets(lengths=({context},))',
            f'train.batch_tokens={tokens}',
        )
        steps = f'--steps={2 if flags.small else 20}'
        bench = [*PROGRAM, 'bench', 'train', '--config=configs/lm1b.py:1b', steps, '--json']
        found = call([*bench, *settings, *more])
        machine = found['machine']
        rows.append(
            (
                f'{context:,}',
                f'{found["shapes"][0]["rows"]}',
                f'{found["shapes"][0]["rows"] * context / found["bare_seconds"]:,.0f}',
                f'{1e3 * found["bare_seconds"]:.1f}',
                '' if found['mfu'] is None else f'{found["mfu"]:.1%}',
                f'{found["peak_share"]:.1%}',
                f'{found["temporary_bytes"] / 2**30:.2f}',
            )
        )
    columns = ('context', 'rows', 'tokens/s', 'ms', 'MFU', 'of measured peak', 'temporary GiB')
    show('training a decoder of 1.1 billion parameters', machine, columns, rows)


def trained(config: str, checkpoint: str, split: str, flags: argparse.Namespace) -> Callable:
    """Return a function that trains and scores one seed: (scores, minutes, record of the run)."""

    def run(seed: int, *settings: str) -> tuple[dict[str, Any], float, dict[str, Any]]:
        workdir = Path(flags.root) / f'{flags.part}-{seed}'
        start = time.perf_counter()
        given = overrides(f'train.seed={seed}', f'data.source_dir={flags.source_dir}', *settings)
        call([*PROGRAM, 'train', f'--config={config}', f'--workdir={workdir}', *given])
        minutes = (time.perf_counter() - start) / 60
        score = ['evaluate', f'--workdir={workdir}', f'--split={split}', '--json']
        scores = call([*PROGRAM, *score, f'--checkpoint={checkpoint}'])
        return scores, minutes, json.loads((workdir / 'run.json').read_text())

    return run


def compare(title: str, quantity: str, runs: list[tuple], published: float) -> None:
    """Print a number of each seed, their mean and spread, and the published number."""
    values = [scores[quantity] for scores, _, _ in runs]
    rows = [
        (f'seed {seed}', f'{scores[quantity]:.4f}', f'{minutes:.1f}')
        for seed, (scores, minutes, _) in enumerate(runs)
    ]
    if len(values) > 1:
        spread = statistics.stdev(values)
        rows.append(('mean ± deviation', f'{statistics.mean(values):.4f} ± {spread:.4f}', ''))
    rows.append(('published', f'{published}', ''))
    record = runs[0][2]
    record = record[-1] if isinstance(record, list) else record
    show(title, record, ('', quantity, 'minutes of training'), rows)


def multi30k(flags: argparse.Namespace) -> None:
    """Train Transformer-Tiny on Multi30k with 3 seeds and score test2016."""
    small = ()
    if flags.small:
        small = (
            *TINY, 'model.encoder_layers=1', 'model.decoder_layers=1', 'data.vocab_size=400',
            'train.steps=2', 'train.batch_tokens=1024', 'evaluate.every_epochs=0',
            'evaluate.patience=0', 'checkpoint.every=2', 'checkpoint.every_epochs=0',
            'decode.beam=1', 'decode.max_extra_tokens=4',
        )  # fmt: skip
    checkpoint = 'last' if flags.small else 'avg:10'
    run = trained('configs/multi30k.py:en-de', checkpoint, 'test', flags)
    runs = [run(seed, *small) for seed in range(flags.seeds)]
    compare('Transformer-Tiny, Multi30k en-de, test2016', 'bleu', runs, WU)


def tiny_shakespeare(flags: argparse.Namespace) -> None:
    """Train nanoGPT's GPU setting and give its best validation loss."""
    small = ()
    if flags.small:
        small = (*TINY, 'model.decoder_layers=1', 'train.steps=2', 'train.batch_tokens=512')
    run = trained('configs/tiny_shakespeare.py:gpu', 'best', 'validation', flags)
    runs = [run(seed, *small) for seed in range(flags.seeds)]
    compare('tiny Shakespeare, 6 layers of 384', 'loss', runs, NANOGPT)


def seeds(flags: argparse.Namespace) -> None:
    """Time a step of 5 seeds side by side against a step of one."""
    small = overrides(*TINY, 'data.vocab_size=200', 'train.batch_tokens=256') if flags.small else []
    script = str(ROOT / 'experiments' / 'seed_groups' / 'cost.py')
    found = call([sys.executable, script, '2' if flags.small else '5', *small])
    steps, count = found['step_seconds_of_all_seeds'], found['seeds']
    one = steps['alone'] / count
    rows = [
        ('one seed', f'{1e3 * one:.2f}', '1.00', f'{found["compile_seconds"]["alone"]:.1f}'),
        (
            f'{count} seeds side by side',
            f'{1e3 * steps["together"]:.2f}',
            f'{steps["together"] / one:.2f}',
            f'{found["compile_seconds"]["together"]:.1f}',
        ),
    ]
    columns = ('', 'ms per step', 'over one', 'compile s')
    show('number words, 2 layers of 128', found['machine'], columns, rows)


PARTS = {part.__name__: part for part in (attention, mfu, multi30k, tiny_shakespeare, seeds)}


def main(arguments: Sequence[str]) -> None:
    """Run the part that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('part', choices=PARTS, help='what to measure')
    parser.add_argument(
        '--small', action='store_true', help='sizes for a CPU; numbers mean nothing'
    )
    parser.add_argument('--source_dir', default='', help='folder of the data set')
    parser.add_argument('--root', default='runs/on_a_gpu', help='folder of the trained runs')
    parser.add_argument('--seeds', type=int, default=3, help='runs of a training')
    flags = parser.parse_args(arguments)
    if flags.part in ('multi30k', 'tiny_shakespeare') and not flags.source_dir:
        parser.error(f'{flags.part} needs --source_dir, the folder of its data set')
    if flags.seeds < 1:
        parser.error(f'--seeds={flags.seeds}: at least one')
    flags.source_dir, flags.root = (os.path.abspath(p) for p in (flags.source_dir, flags.root))
    PARTS[flags.part](flags)


if __name__ == '__main__':
    main(sys.argv[1:])

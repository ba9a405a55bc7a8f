"""What is compiled for TPUs that are not here: one small layer of everything.

A case holds the overrides of a small configuration. Its golden file holds what the compiler made of
it: kernels, FLOPs, collectives and peak memory of one device.
"""

import dataclasses
import functools
import json
from pathlib import Path

from transformer_jax import config as config_lib
from transformer_jax.profiling.plan import Attempt
from transformer_jax.schema import ExperimentConfig

FOLDER = Path(__file__).parent / 'golden'
PEAK_TOLERANCE = 0.05

SMALL = {
    'model.encoder_layers': 1,
    'model.decoder_layers': 1,
    'model.d_model': 128,
    'model.num_heads': 2,
    'model.d_ff': 256,
    'model.dtype': 'bfloat16',
    'data.vocab_size': 512,
    'data.batching': 'buckets(lengths=(128,))',
    'train.batch_tokens': 1024,
    'evaluate.batch_tokens': 1024,
    'decode.max_extra_tokens': 32,
}
# Where a kind of attention stands: the model around it, and the key of its spec.
SITES = {
    'encoder': (
        {'model.kind': 'classifier', 'data.task': 'tfds_classification', 'data.tokenizer': 'bytes'},
        'model.encoder_attention',
    ),
    'causal': ({'model.kind': 'decoder_only'}, 'model.decoder_attention'),
    'cross': ({'model.kind': 'encoder_decoder'}, 'model.cross_attention'),
}
ALL, SELF = ('encoder', 'causal', 'cross'), ('encoder', 'causal')
CAUSAL, ENCODER = ('causal',), ('encoder',)
KINDS = {
    'softmax': ('softmax', ALL),
    'window': ('softmax(mask=window(32))', SELF),
    'bigbird': ('softmax(mask=bigbird(16))', ENCODER),
    'softcap': ('softmax(qk_norm=True, softcap=50.0)', CAUSAL),
    'talking': ('softmax(talking=both)', CAUSAL),
    'sink': ('softmax(normalizer=sink)', CAUSAL),
    'entmax15': ('softmax(normalizer=entmax15)', CAUSAL),
    'forget': ('softmax(forget=True)', CAUSAL),
    'additive': ('additive', ALL),
    'differential': ('differential', ALL),
    'latent': ('latent', ALL),
    'linear': ('linear', ALL),
    'favor': ('linear(feature=favor(features=64))', SELF),
    'fixed_decay': ('linear(decay=fixed)', CAUSAL),
    'gated_decay': ('linear(decay=gated)', CAUSAL),
    'synthesizer': ('synthesizer', SELF),
    'linformer': ('linformer(length=128, rank=32)', ('encoder', 'cross')),
    'reformer': ('reformer', ENCODER),
    'sinkhorn': ('sinkhorn', ENCODER),
}
# The cases of `make test-aot` among the kinds, one for each algorithm; the others are slow.
FAST_KINDS = {
    'kind-linear-causal',
    'kind-gated_decay-causal',
    'kind-window-causal',
    'kind-linformer-encoder',
    'kind-reformer-encoder',
    'kind-softmax-cross',
}
POSITIONS = (
    'learned', 'rope', 'alibi', 't5', 'shaw', 'transformer_xl', 'kerple', 'fire', 'cope',
)  # fmt: skip
FAST_POSITIONS = ('rope', 'shaw')
MESHES = {
    'data': {},
    'fsdp': {'data': 1, 'fsdp': 4},
    'tensor': {'data': 1, 'tensor': 4},
    'fsdp-tensor': {'data': 1, 'fsdp': 2, 'tensor': 2},
    'context': {'data': 1, 'context': 4},
    'context-fsdp': {'data': 1, 'context': 2, 'fsdp': 2},
}
CACHES = {
    'growing': 'softmax',
    'ring': 'softmax(mask=window(32))',
    'latent': 'latent',
    'state': 'linear',
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
        overrides: of the default configuration, beyond SMALL.
        command: 'train', 'evaluate' or 'decode'.
        topology: that it is compiled for.
        slow: whether only `make test-aot-all` compiles it.
    """

    overrides: dict[str, object]
    command: str = 'train'
    topology: str = 'v5e:2x2'
    slow: bool = False

    def config(self) -> ExperimentConfig:
        """Return the configuration."""
        return config_lib.override(ExperimentConfig(), SMALL | self.overrides)


def _cases() -> dict[str, Case]:
    causal, cases = {'model.kind': 'decoder_only'}, {}
    for kind, (spec, sites) in KINDS.items():
        for site in sites:
            model, key = SITES[site]
            name = f'kind-{kind}-{site}'
            cases[name] = Case(model | {key: spec}, slow=name not in FAST_KINDS)
    for position in POSITIONS:
        overrides = causal | {'model.position': position, 'model.engine': 'dense'}
        cases[f'position-{position}'] = Case(overrides, slow=position not in FAST_POSITIONS)
    for engine in ('dense', 'chunked', 'splash'):
        cases[f'engine-{engine}'] = Case(causal | {'model.engine': engine})
    window = causal | {'model.attention': 'softmax(mask=window(32))', 'model.engine': 'blocked'}
    cases['engine-blocked'] = Case(window)
    experts = causal | {'model.ffn': 'moe(experts=4, k=2, expert=swiglu)'}
    cases['moe'] = Case(experts)
    cases['seeds'] = Case(causal | {'train.num_seeds': 4})
    cases['microbatches'] = Case(causal | {'train.accumulate': 2})
    cases['evaluate'] = Case(causal, 'evaluate')
    for cache, spec in CACHES.items():
        overrides = causal | {'model.decoder_attention': spec, 'decode.method': 'greedy'}
        cases[f'decode-{cache}'] = Case(overrides, 'decode', slow=cache == 'latent')
    cases['decode-beam'] = Case({'model.kind': 'encoder_decoder'}, 'decode', slow=True)
    for name, mesh in MESHES.items():
        sizes = {f'parallel.mesh.{axis}': size for axis, size in mesh.items()}
        overrides = causal | sizes | {'model.num_heads': 4}
        cases[f'mesh-{name}'] = Case(overrides, slow=name == 'context-fsdp')
        other = 'allgather' if 'context' in mesh else 'dense'
        cases[f'mesh-{name}-{other}'] = Case(overrides | {'model.engine': other}, slow=True)
    pieces = causal | {'parallel.mesh.data': 1, 'parallel.mesh.context': 4}
    for name, spec in (('window', 'softmax(mask=window(32))'), ('linear', 'linear')):
        cases[f'context-{name}'] = Case(pieces | {'model.attention': spec}, slow=True)
    for topology in ('v6e:2x2', 'v4:2x2x1', 'v5p:2x2x1', 'v7:2x2x1', '2*v5e:2x2'):
        name = topology.replace(':', '-').replace('*', '-times-')
        cases[f'chip-{name}'] = Case(causal, topology=topology, slow=topology != 'v6e:2x2')
    return cases


CASES = _cases()


@functools.cache
def golden(name: str) -> dict:
    """Read the golden file of a case."""
    return json.loads(path_of(name).read_text())


def path_of(name: str) -> Path:
    """Return where the golden file of a case lies."""
    return FOLDER / f'{name}.json'


def describe(attempt: Attempt) -> dict:
    """Return what a golden file holds of a compiled program."""
    program = attempt.program
    assert program is not None, 'a small case fits'
    return {
        'kernels': program.kernels,
        'flops': program.flops,
        'collectives': {
            f'{c.kind} over {"×".join(c.axes)}': [c.count, c.bytes] for c in program.collectives
        },
        'peak': program.memory.peak,
    }


def differences(expected: dict, found: dict) -> list[str]:
    """Say in one line each how a program differs from its golden file."""
    lines = []
    for part in ('kernels', 'collectives'):
        for name in sorted(expected[part].keys() | found[part].keys()):
            before, now = expected[part].get(name), found[part].get(name)
            if before != now:
                lines.append(f'{name}: {_told(now)}, was {_told(before)}')
    if expected['flops'] != found['flops']:
        lines.append(f'FLOPs: {found["flops"]:,}, was {expected["flops"]:,}')
    before, now = expected['peak'], found['peak']
    if abs(now - before) > PEAK_TOLERANCE * before:
        lines.append(f'peak memory: {now:,} bytes, was {before:,} ({now / before - 1:+.0%})')
    return lines


def _told(value: object) -> str:
    if value is None:
        return 'none'
    return f'{value[0]} with {value[1]:,} bytes' if isinstance(value, list) else f'{value} ×'

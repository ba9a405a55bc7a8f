"""Time and memory of kinds of attention and their engines as the sequence grows.

The command is `transformer-jax bench attention`. It times `attend` alone, from random projected
queries and keys to the mixed values, and its gradient with respect to all of them (forward pass
included). Memory is the peak of temporary arrays that XLA plans for the compiled program. Inputs
and outputs are not counted: they grow with the length for every kind.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import spec
from transformer_jax.attention import KINDS, Attention, AttentionInputs
from transformer_jax.attention.engines import ENGINES, require_platform
from transformer_jax.attention.engines.fused import HALF
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.efficiency.flops import matmul_flops
from transformer_jax.efficiency.timing import seconds, temporary_bytes
from transformer_jax.errors import ConfigError
from transformer_jax.host_memory import machine_memory
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.multi_head import PAST, Projection
from transformer_jax.positions import Position
from transformer_jax.profiling.bench_attention_result import (
    PASSES,
    AttentionBench,
    Point,
    Sizes,
    fit_slopes,
)
from transformer_jax.storage.provenance import describe_machine

Log = Callable[[str], None]
# {T} stands for the length: some kinds have parameters of its size.
DEFAULTS = (
    'softmax',
    'softmax(mask=window(128))',
    'additive',
    'differential',
    'latent',
    'linear',
    'linear(decay=gated)',
    'linformer(length={T}, rank=64)',
    'synthesizer(max_len={T})',
    'reformer',
    'sinkhorn',
)
REPEATS = 3  # runs of each program; the fastest counts
# A program that needs more than this share of the memory is compiled but not run.
MEMORY_SHARE = 0.6


def bench_attention(
    attentions: Sequence[str],
    engines: Sequence[str],
    lengths: Sequence[int],
    sizes: Sizes,
    log: Log,
    timed: bool = True,
) -> AttentionBench:
    """Compile every attention with each of its engines at every length, and time it.

    An attention that can be causal is causal; the others are bidirectional.

    Args:
        attentions: specs, where {T} stands for the length.
        engines: names, for the kinds that have a choice.
        lengths: of the sequence.
        sizes: what stays the same while the length grows.
        log: receives a line for each attention, engine and length.
        timed: False: only compile, to measure the memory.

    Raises:
        ConfigError: a wrong spec, an unknown engine, or no engine that can run any of them.
    """
    machine, points = describe_machine(), []
    for engine in engines:
        if engine not in ENGINES:
            raise ConfigError(f'--engines: {engine!r} is unknown; {spec.nearest(engine, ENGINES)}')
        require_platform(engine)
        if engine == 'cudnn' and sizes.dtype not in HALF:
            raise ConfigError(
                f'--engines=cudnn: the kernel takes {" and ".join(HALF)}: add --dtype=bfloat16'
            )
    pairs = [
        (attention, engine)
        for attention in attentions
        for engine in _engines(attention, engines, max(lengths))
    ]
    if not pairs:
        raise ConfigError(
            f'--engines={",".join(engines)}: none of them can do {"; ".join(attentions)}'
        )
    for attention, engine in pairs:
        for length in lengths:
            for direction in PASSES:
                points.append(_point(attention, engine, length, direction, sizes, timed))
            last = points[-1]
            log(
                f'{attention} {engine} {length}: '
                + (f'{last.seconds:.3f} s, ' if last.seconds else '')
                + f'{last.temporary_bytes / 2**20:,.0f} MiB forward and backward'
            )
    return AttentionBench(machine, sizes, tuple(points), tuple(fit_slopes(points)))


def program(
    kind: Attention, engine: str, length: int, sizes: Sizes
) -> tuple[Callable[..., jax.Array], tuple]:
    """Make a kind's `attend` and random inputs: its queries, its keys and values, its parameters.

    Returns:
        (attend, inputs): `attend(*inputs)` returns o_BTNH.
    """
    heads = HeadDims(sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.head_dim)
    positions_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (sizes.rows, length))
    tokens = Tokens(positions_BT, jnp.ones_like(positions_BT))
    width = sizes.heads * sizes.head_dim
    x_BTD = jax.ShapeDtypeStruct((sizes.rows, length, width), sizes.dtype)

    def shapes(project, *arguments):
        module = Projection(project, heads, 0, Position())
        output, _ = jax.eval_shape(
            functools.partial(module.init_with_output, jax.random.PRNGKey(0)), *arguments
        )
        return nn.meta.unbox(output)

    rng = np.random.default_rng(0)
    inputs = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        (
            shapes(kind.project_queries, x_BTD, tokens),
            shapes(kind.project_keys_values, x_BTD, tokens),
            shapes(kind.attention_params),
        ),
    )
    mask = kind.mask.within(PAST if 'causal' in kind.supports() else Segments())

    def attend(queries, keys, parameters):
        return kind.attend(
            queries,
            keys,
            AttentionInputs(mask, tokens, tokens, params=parameters, engine=engine),
        )

    return attend, inputs


def _engines(attention: str, engines: Sequence[str], length: int) -> list[str]:
    kind = _kind(attention, length)
    if 0 < kind.max_len < length:
        raise ConfigError(
            f'--attention={attention!r} reads at most {kind.max_len} tokens, --lengths has '
            f'{length}: {{T}} in a spec stands for the length'
        )
    if not kind.engines:
        return ['own']
    return [engine for engine in engines if not kind.incompatibility(Position(), engine)]


def _kind(attention: str, length: int) -> Attention:
    return spec.parse(attention.replace('{T}', str(length)), KINDS, '--attention')


def _point(
    attention: str, engine: str, length: int, direction: str, sizes: Sizes, timed: bool
) -> Point:
    attend, inputs = program(_kind(attention, length), engine, length, sizes)
    function = (
        attend
        if direction == 'forward'
        else jax.grad(lambda *inputs: attend(*inputs).sum(), (0, 1, 2))
    )
    flops = matmul_flops(jax.make_jaxpr(attend)(*inputs)) * (1 if direction == 'forward' else 3)
    compiled = jax.jit(function).lower(*inputs).compile()
    size = temporary_bytes(compiled)
    taken = None
    if timed and size < MEMORY_SHARE * _memory():
        jax.block_until_ready(compiled(*inputs))
        taken = min(seconds(lambda: compiled(*inputs)) for _ in range(REPEATS))
    return Point(attention, engine, length, direction, taken, flops, size)


def _memory() -> int:
    device = jax.devices()[0]
    stats = device.memory_stats()
    return stats['bytes_limit'] if stats else machine_memory()

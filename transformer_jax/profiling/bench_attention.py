"""What kinds of attention and their engines cost as the sequence grows:
`transformer-jax bench attention`.

Timed is `attend` alone, from projected queries and keys drawn at random to the mixed values, and
its gradient with respect to all of them (forward pass included). Memory is the peak of temporary
arrays that XLA plans for the compiled program: inputs and outputs, which grow with the length
whatever the kind, are not in it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from etils import epath
from matplotlib.figure import Figure

from transformer_jax import spec
from transformer_jax.attention import KINDS, Attention, AttentionInputs
from transformer_jax.attention.engines import ENGINES, require_platform
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.display.figures import save_figure
from transformer_jax.display.tables import result_table
from transformer_jax.errors import ConfigError
from transformer_jax.host_memory import machine_memory
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.blocks import PAST, Projection
from transformer_jax.positions import Position
from transformer_jax.profiling.flops import matmul_flops
from transformer_jax.profiling.timing import seconds
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
PASSES = ('forward', 'forward and backward')
MEASURES = ('seconds', 'temporary_bytes')
REPEATS = 3
FREE_SHARE = 0.6  # of the machine's memory: a program that needs more is compiled, not run


class Sizes(NamedTuple):
    """What stays the same while the length grows."""

    rows: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Point:
    """One program at one length."""

    attention: str
    engine: str
    length: int
    direction: str  # of PASSES
    seconds: float | None  # the least of `REPEATS`; None: not run
    flops: int  # of matrix products, recomputed ones left out
    temporary_bytes: int

    @property
    def flops_per_second(self) -> float | None:
        """None: not run."""
        return self.flops / self.seconds if self.seconds else None


@dataclasses.dataclass(frozen=True)
class AttentionBench:
    """All points, and how they grow: p of c·lengthᵖ for each attention, engine, pass
    and measure.
    """

    machine: dict[str, Any]
    sizes: Sizes
    points: tuple[Point, ...]
    slopes: tuple[dict[str, Any], ...]


def bench_attention(
    attentions: Sequence[str],
    engines: Sequence[str],
    lengths: Sequence[int],
    sizes: Sizes,
    log: Log,
    timed: bool = True,
) -> AttentionBench:
    """Compiles, and where `timed` runs, every attention with every engine that it has, at
    every length.

    An attention that can be causal is; the others see both ways.

    Raises:
        ConfigError: no spec of an attention, an unknown engine, or nothing that an engine could do.
    """
    machine, points = describe_machine(), []
    for engine in engines:
        if engine not in ENGINES:
            raise ConfigError(f'--engines: {engine!r} is unknown; {spec.nearest(engine, ENGINES)}')
        require_platform(engine)
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
    return AttentionBench(machine, sizes, tuple(points), tuple(_slopes(points)))


def program(
    kind: Attention, engine: str, length: int, sizes: Sizes
) -> tuple[Callable[..., jax.Array], tuple]:
    """(attend of inputs, the inputs): queries, keys and the kind's parameters at random."""
    heads = HeadDims(sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.head_dim)
    positions_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (sizes.rows, length))
    tokens = Tokens(positions_BT, jnp.ones_like(positions_BT))
    dtype = (
        jnp.bfloat16 if engine == 'cudnn' else jnp.float32
    )  # that kernel knows half precision only
    x_BTD = jax.ShapeDtypeStruct((sizes.rows, length, sizes.heads * sizes.head_dim), dtype)

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
    size = compiled.memory_analysis().temp_size_in_bytes
    taken = None
    if timed and size < FREE_SHARE * _memory():
        jax.block_until_ready(compiled(*inputs))
        taken = min(seconds(lambda: compiled(*inputs)) for _ in range(REPEATS))
    return Point(attention, engine, length, direction, taken, flops, size)


def _memory() -> int:
    device = jax.devices()[0]
    stats = device.memory_stats()
    return stats['bytes_limit'] if stats else machine_memory()


def _slopes(points: Sequence[Point]) -> list[dict[str, Any]]:
    slopes = []
    for key in dict.fromkeys((p.attention, p.engine, p.direction) for p in points):
        mine = [p for p in points if (p.attention, p.engine, p.direction) == key]
        fitted = {
            measure: _slope([(p.length, getattr(p, measure)) for p in mine if getattr(p, measure)])
            for measure in MEASURES
        }
        slopes.append(dict(zip(('attention', 'engine', 'direction'), key, strict=True)) | fitted)
    return slopes


def _slope(line: Sequence[tuple[int, float]]) -> float | None:
    return float(np.polyfit(*np.log(np.array(line, float).T), 1)[0]) if len(line) > 1 else None


def tables(bench: AttentionBench) -> tuple[rich.table.Table, ...]:
    """What a person reads: every point, then the slopes."""
    rows = [
        (
            p.attention,
            p.engine,
            f'{p.length:,}',
            p.direction,
            '' if p.seconds is None else f'{1e3 * p.seconds:,.1f}',
            '' if p.seconds is None else f'{1e-9 * p.flops_per_second:,.1f}',
            f'{p.temporary_bytes / 2**20:,.1f}',
        )
        for p in bench.points
    ]
    slopes = [
        (
            s['attention'],
            s['engine'],
            s['direction'],
            *('' if s[measure] is None else f'{s[measure]:.2f}' for measure in MEASURES),
        )
        for s in bench.slopes
    ]
    title = '{} rows, {} heads over {} key-value heads of {}'.format(*bench.sizes)
    return (
        result_table(
            title, ('attention', 'engine', 'T', 'pass', 'ms', 'GFLOP/s', 'temporary MiB'), rows
        ),
        result_table(
            'p of T^p', ('attention', 'engine', 'pass', 'time', 'temporary memory'), slopes
        ),
    )


def draw(bench: AttentionBench, path: epath.PathLike) -> epath.Path:
    """Draws time and temporary memory of forward and backward pass against the length, both axes
    logarithmic.

    Raises:
        ConfigError: a suffix that is no picture's.
    """
    titles = {'seconds': 'seconds', 'temporary_bytes': 'temporary MiB'}
    measures = [measure for measure in MEASURES if any(slope[measure] for slope in bench.slopes)]
    figure = Figure(figsize=(6 * len(measures), 5.5), dpi=120, layout='constrained')
    for axes, measure in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True
    ):
        for number, slope in enumerate(s for s in bench.slopes if s['direction'] == PASSES[-1]):
            key = slope['attention'], slope['engine'], PASSES[-1]
            line = np.array(
                [
                    (p.length, getattr(p, measure))
                    for p in bench.points
                    if (p.attention, p.engine, p.direction) == key and getattr(p, measure)
                ]
            ).reshape(-1, 2)
            if slope[measure] is not None:
                y = line[:, 1] / (2**20 if measure == 'temporary_bytes' else 1)
                axes.loglog(
                    line[:, 0],
                    y,
                    marker='o',
                    markersize=3,
                    color=f'C{number % 10}',
                    linestyle=('-', '--', ':')[number // 10 % 3],
                    label=f'{slope["attention"]} {slope["engine"]} (T^{slope[measure]:.2f})',
                )
        ticks = sorted({p.length for p in bench.points})
        axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set(title=f'{titles[measure]}, forward and backward', xlabel='sequence length T')
        axes.grid(alpha=0.3, which='both')
        axes.legend(frameon=False, fontsize=7)
        axes.spines[['top', 'right']].set_visible(False)
    return save_figure(figure, epath.Path(path))

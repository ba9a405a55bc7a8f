"""Engines: algorithms that compute the same attention with different time and memory.

- dense: all scores at once, O(T·S) time and memory. The reference for the others.
- chunked: the online softmax, O(T·S) time and O(T + S) memory.
- blocked: for windows, O(T·window) time and memory.
- cudnn: the fused kernel of NVIDIA GPUs.
- splash: the fused kernel of TPUs.
- ring: the online softmax where rows are cut over devices, which pass their keys on.
- allgather: the same with the keys of whole rows on each device, for what needs all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import backend

from transformer_jax.attention.engines import allgather, blocked, chunked, dense, fused, ring
from transformer_jax.attention.engines.tiles import SiteSpec
from transformer_jax.errors import ConfigError

__all__ = [
    'ENGINES',
    'KERNELS',
    'Engine',
    'SiteSpec',
    'is_available',
    'require_platform',
    'resolve_engine',
    'site_incompatibility',
]


def _no_incompatibility(kind: Any, site: SiteSpec) -> str:
    return ''


class Engine(NamedTuple):
    """An algorithm and its limits."""

    # (kind, queries, keys, inputs) -> o_BTNH
    attend: Callable[[Any, Any, Any, Any], jax.Array]
    # (kind, position encoding) -> why it cannot run them and what would work; '' where it can
    incompatibility: Callable[[Any, Any], str]
    # (kind, site) -> the same for the sizes, dtype and dropout of the place in the model
    site_incompatibility: Callable[[Any, SiteSpec], str] = _no_incompatibility
    platform: str = ''  # 'cuda' or 'tpu', which it needs; '': any
    cuts_rows: bool = False  # whether it runs where `parallel.mesh.context` cuts rows over devices


ENGINES: dict[str, Engine] = {
    'dense': Engine(dense.attend, dense.incompatibility),
    'chunked': Engine(chunked.attend, chunked.incompatibility),
    'blocked': Engine(
        blocked.attend, blocked.incompatibility, blocked.site_incompatibility, cuts_rows=True
    ),
    'cudnn': Engine(
        fused.cudnn, fused.cudnn_incompatibility, fused.cudnn_site_incompatibility, 'cuda'
    ),
    'splash': Engine(
        fused.splash, fused.splash_incompatibility, fused.splash_site_incompatibility, 'tpu'
    ),
    'ring': Engine(ring.attend, chunked.incompatibility, cuts_rows=True),
    'allgather': Engine(allgather.attend, dense.incompatibility, cuts_rows=True),
}
KERNELS = tuple(name for name, engine in ENGINES.items() if engine.platform)


def resolve_engine(
    engine: str, kind: Any, position: Any, site: SiteSpec, platform: str = ''
) -> str:
    """Return the engine that runs a kind at a site for a value of `model.engine`.

    'auto' chooses the kernel of the accelerator where there is one that can run the kind. The
    blocked engine comes first where a window limits self-attention and the kernel would compute
    every tile. Everything else is dense. Where rows are cut over devices, windows are blocked,
    what needs all keys of a row gathers them, and the rest goes round the ring.

    Args:
        engine: `model.engine`.
        kind: the attention kind.
        position: the position encoding.
        site: the place in the model.
        platform: that the program is compiled for, see `is_available`.

    Returns:
        a name of ENGINES, or 'own' for a kind that has its own algorithm.
    """
    if not kind.engines:
        return 'own'
    if engine != 'auto':
        return engine

    def can_run(name: str) -> bool:
        return (
            is_available(name, platform)
            and not kind.incompatibility(position, name)
            and not site_incompatibility(name, kind, site)
        )

    best = 'cudnn' if fused.skips_tiles(kind, site) else 'blocked'
    names = ('splash', best, 'blocked', 'cudnn', 'dense', 'ring', 'allgather')
    return next((name for name in names if can_run(name)), 'dense')


def site_incompatibility(engine: str, kind: Any, site: SiteSpec) -> str:
    """Explain why `model.engine` cannot run a kind at a site, whatever the position encoding.

    Returns:
        the reason; '' where it can, and for a kind that has its own algorithm.
    """
    if engine not in kind.engines:
        return ''
    if site.context > 1 and not ENGINES[engine].cuts_rows:
        able = ', '.join(name for name, row in ENGINES.items() if row.cuts_rows)
        return (
            f'it cannot cut rows over parallel.mesh.context={site.context} devices; engines that '
            f'can: auto, {able}'
        )
    return ENGINES[engine].site_incompatibility(kind, site)


def require_platform(engine: str, platform: str = '') -> None:
    """Check that a machine has the accelerator that `model.engine` needs.

    Args:
        engine: `model.engine`.
        platform: of that machine, see `is_available`.

    Raises:
        ConfigError: it has not.
    """
    if not is_available(engine, platform):
        needs = {'cuda': 'an NVIDIA GPU', 'tpu': 'a TPU'}[ENGINES[engine].platform]
        raise ConfigError(
            f'model.engine={engine!r} needs {needs}, the devices are '
            f'{platform or jax.default_backend()}: set model.engine=auto, which takes the best '
            'that a machine has'
        )


def is_available(engine: str, platform: str = '') -> bool:
    """Return whether a machine can run `model.engine`; 'auto' is available everywhere.

    Args:
        engine: `model.engine`.
        platform: 'cpu', 'cuda' or 'tpu', of a machine that need not be here; '': this machine.
    """
    needs = ENGINES[engine].platform if engine in ENGINES else ''
    if not needs or platform:
        return needs in ('', platform)
    # JAX calls every GPU 'gpu'; the version of its platform says whether it is a CUDA one.
    return needs == jax.default_backend() or needs in backend.get_backend().platform_version.split()

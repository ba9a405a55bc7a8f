"""Engines: ways through all tiles of a scored kind of attention; they differ in time and memory,
not in result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import backend

from transformer_jax.attention.engines import blocked, chunked, dense, fused
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


class Engine(NamedTuple):
    """A way through the tiles, and what it cannot do."""

    attend: Callable[[Any, Any, Any, Any], jax.Array]  # (kind, queries, keys, inputs) -> o_BTNH
    incompatibility: Callable[
        [Any, Any], str
    ]  # (kind, position) -> why it cannot, with what would work; '' where it can
    site_incompatibility: Callable[[Any, SiteSpec], str] = lambda kind, site: (
        ''
    )  # the same, of the place where it is to run
    platform: str = ''  # the one that has it; '': all


ENGINES: dict[str, Engine] = {
    'dense': Engine(dense.attend, dense.incompatibility),
    'chunked': Engine(chunked.attend, chunked.incompatibility),
    'blocked': Engine(blocked.attend, blocked.incompatibility, blocked.site_incompatibility),
    'cudnn': Engine(
        fused.cudnn, fused.cudnn_incompatibility, fused.cudnn_site_incompatibility, 'cuda'
    ),
    'splash': Engine(
        fused.splash, fused.splash_incompatibility, fused.splash_site_incompatibility, 'tpu'
    ),
}
KERNELS = tuple(name for name, engine in ENGINES.items() if engine.platform)


def resolve_engine(engine: str, kind: Any, position: Any, site: SiteSpec) -> str:
    """The engine that `model.engine` stands for at a place: what `auto` chooses.

    The accelerator's kernel where it has one that can do it, but the blocked engine where a window
    bounds what self-attention sees and the kernel would have to look at everything; else dense.
    Kinds that have one form of their own have that: 'own'.
    """
    if not kind.engines:
        return 'own'
    if engine != 'auto':
        return engine

    def can(name: str) -> bool:
        return (
            is_available(name)
            and not kind.incompatibility(position, name)
            and not site_incompatibility(name, kind, site)
        )

    best = 'cudnn' if fused.skips_tiles(kind, site) else 'blocked'
    return next((name for name in ('splash', best, 'blocked', 'cudnn') if can(name)), 'dense')


def site_incompatibility(engine: str, kind: Any, site: SiteSpec) -> str:
    """Why `model.engine` cannot run a kind at a place, whatever the position encoding; '' where
    it can.
    """
    return ENGINES[engine].site_incompatibility(kind, site) if engine in kind.engines else ''


def require_platform(engine: str) -> None:
    """Raises ConfigError where `model.engine` names a kernel that this machine does not have."""
    if not is_available(engine):
        needs = {'cuda': 'an NVIDIA GPU', 'tpu': 'a TPU'}[ENGINES[engine].platform]
        raise ConfigError(
            f'model.engine={engine!r} needs {needs}, this machine computes on {jax.default_backend()}: '
            'set model.engine=auto, which takes the best that a machine has'
        )


def is_available(engine: str) -> bool:
    """Whether this machine has what `model.engine` names."""
    needs = ENGINES[engine].platform if engine in ENGINES else ''
    # A GPU's platform is 'gpu', whoever made it.
    return (
        not needs
        or needs == jax.default_backend()
        or needs in backend.get_backend().platform_version.split()
    )

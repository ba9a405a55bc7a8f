"""A model's architecture: its configuration with every spec string resolved."""

import dataclasses
import math
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from transformer_jax.attention import Attention
from transformer_jax.attention.engines import SiteSpec
from transformer_jax.layers.feed_forward import Gated, Moe, Plain
from transformer_jax.layers.norms import NormKind, Placement, deepnorm
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.layers.recurrent import Recurrent
from transformer_jax.positions import Position


@dataclasses.dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer at one site."""

    kind: Attention
    position: Position
    engine: str  # a name of ENGINES, or 'own' where the kind has one form


class LayerScan(NamedTuple):
    """The layers of a stack that a scan runs: `repeats` times a pattern of `period` layers."""

    period: int
    repeats: int

    @property
    def layers(self) -> int:
        """How many layers are scanned; those after them are not."""
        return self.period * self.repeats


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Everything that decides what a model computes.

    Hashable, so that it can be a key of compiled programs. Fields that are not explained here mean
    the same as their key in `schema.ModelConfig`.
    """

    kind: str  # a row of MODELS
    vocab_size: int
    num_classes: int  # of a classifier, else 0
    d_model: int
    d_ff: int
    heads: HeadDims
    encoder_layers: int  # 0 where the model has no encoder
    decoder_layers: int  # 0 where the model has no decoder
    encoder_attention: tuple[LayerAttention, ...]  # by layer; () where there is none
    decoder_attention: tuple[LayerAttention, ...]
    cross_attention: tuple[LayerAttention, ...]
    position: Position
    norm: NormKind
    placement: Placement
    ffn: Plain | Gated | Moe
    cell: Recurrent  # of a recurrent model
    block: str
    attention_bias: str
    attention_dropout: bool
    tied: tuple[str, ...]  # the tables tied to the target embedding's: 'source', 'output'
    pooling: str
    towers: int
    embedding_scale: float
    embedding_norm: bool
    logit_softcap: float
    dropout: float
    dtype: str
    scan_layers: bool
    remat: str

    def scan(self, stack: str) -> LayerScan | None:
        """Return which layers of the 'encoder' or 'decoder' are scanned; None: none of them."""
        if not self.scan_layers:
            return None
        sites = [self.encoder_attention] if stack == 'encoder' else [self.decoder_attention]
        if stack == 'decoder' and self.cross_attention:
            sites.append(self.cross_attention)
        layers = list(zip(*sites, strict=True))
        for period in range(1, len(layers) // 2 + 1):
            if all(layers[n] == layers[n % period] for n in range(len(layers))):
                return LayerScan(period, len(layers) // period)
        return None

    def unscanned(self) -> 'Architecture':
        """Return the same architecture with its layers apart, and nothing computed again."""
        return dataclasses.replace(self, scan_layers=False, remat='none')

    @property
    def sites(self) -> tuple[tuple[str, int], ...]:
        """List (site, layer) of every attention layer; empty for a recurrent model."""
        return tuple(
            (site, layer)
            for site in ('encoder', 'decoder', 'cross')
            for layer in range(len(self._layers(site)))
        )

    def attention_at(self, site: str, layer: int) -> LayerAttention:
        """Return the attention of a layer, from 0, at a site: 'encoder', 'decoder' or 'cross'."""
        return self._layers(site)[layer]

    def site_spec(self, site: str, context: int = 1, seeds: int = 1) -> SiteSpec:
        """Describe a site for the choice of an engine.

        Args:
            site: 'encoder', 'decoder' or 'cross'.
            context: over how many devices `parallel.mesh.context` cuts a row.
            seeds: how many are trained side by side.
        """
        return SiteSpec(site, self.heads, self.dtype, self.attention_dropout, context, seeds)

    def residual_scales(self, stack: str) -> tuple[float, float]:
        """Return DeepNorm's (α, β) for the 'encoder' or 'decoder', see `norms.deepnorm`.

        Other placements of norms have (1, 1).
        """
        if not self.placement.deep:
            return 1.0, 1.0
        return deepnorm(stack, self.encoder_layers, self.decoder_layers)

    @property
    def max_length(self) -> float:
        """The longest sequence that attention and positions support; math.inf: no limit."""
        return self._reach(('encoder', 'decoder', 'cross'))

    @property
    def max_decoded(self) -> float:
        """The most positions of a decoder, those of a prompt included; math.inf: no limit."""
        return self._reach(('decoder',))

    def _reach(self, sites: tuple[str, ...]) -> float:
        limits = [layer.kind.max_len for site in sites for layer in self._layers(site)]
        if limits:
            limits.append(self.position.max_len)
        return min(filter(None, limits), default=math.inf)

    @property
    def prefix_length(self) -> int:
        """The longest prefix that a layer's mask shows to all tokens; 0 without a prefix mask."""
        return max(
            (
                self.attention_at(site, layer).kind.mask.prefix_length()
                for site, layer in self.sites
            ),
            default=0,
        )

    def engines(self) -> dict[str, str]:
        """Name the engines of each site: {'encoder': 'dense', 'decoder': '5*blocked, dense'}."""
        return {
            site: _pattern([layer.engine for layer in self._layers(site)])
            for site in ('encoder', 'decoder', 'cross')
            if self._layers(site)
        }

    def with_engines(self, choose: Callable[[str, LayerAttention], str]) -> 'Architecture':
        """Return the architecture with the engine `choose(site, layer)` in each layer."""
        return dataclasses.replace(
            self,
            **{
                f'{site}_attention': tuple(
                    dataclasses.replace(layer, engine=choose(site, layer))
                    for layer in self._layers(site)
                )
                for site in ('encoder', 'decoder', 'cross')
            },
        )

    def _layers(self, site: str) -> tuple[LayerAttention, ...]:
        """Return the attention of all layers at a site."""
        return {
            'encoder': self.encoder_attention,
            'decoder': self.decoder_attention,
            'cross': self.cross_attention,
        }[site]


def _pattern(names: list[str]) -> str:
    """Write names as a pattern of layers: '5*blocked, dense', or one name for all."""
    runs = [(name, len(list(run))) for name, run in groupby(names)]
    if len(runs) == 1:
        return runs[0][0]
    return ', '.join(name if count == 1 else f'{count}*{name}' for name, count in runs)

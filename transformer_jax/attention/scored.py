"""Attention by scores: what softmax, additive, differential, latent attention and the synthesizer
have in common.

The way of a tile: the kind's own scores, the softcap, the position encoding, the mask and
normalizer, dropout, the values. Engines go it for all keys at once or tile by tile.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax

from transformer_jax import spec
from transformer_jax.attention import masks, normalizers
from transformer_jax.attention.base import CAPABILITIES, Attention, AttentionInputs
from transformer_jax.attention.cache import GrowingCache, RingCache
from transformer_jax.attention.engines import ENGINES, dense
from transformer_jax.attention.masks import MASKS, Mask
from transformer_jax.attention.normalizers import NORMALIZERS, Normalizer
from transformer_jax.layers.functional import softcap
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions import Position, Tile


@dataclasses.dataclass(frozen=True)
class Scored(Attention):
    """The base of the kinds whose weights come from a score for each query and key."""

    mask: Mask = spec.nested(MASKS, masks.Full())
    normalizer: Normalizer = spec.nested(NORMALIZERS, normalizers.Softmax())
    softcap: float = 0.0  # c·tanh(score / c) before the position's bias (Gemma 2); 0: none
    engines: ClassVar[tuple[str, ...]] = tuple(ENGINES)
    has_queries_keys: ClassVar[bool] = True  # its tiles hold queries and keys

    def __post_init__(self):
        super().__post_init__()
        if self.softcap < 0:
            raise ValueError(f'softcap={self.softcap} must be positive, or 0 for none')

    def supports(self) -> frozenset[str]:
        # A prefix is seen before its turn.
        return frozenset(CAPABILITIES) - (
            {'causal', 'decode'} if self.mask.prefix_length() > 1 else set()
        )

    def incompatibility(self, position: Position, engine: str) -> str:
        if position.reads_queries_keys and not self.has_queries_keys:
            return 'it has no queries and keys that the position encoding could read; t5, alibi, kerple and fire work'
        return super().incompatibility(position, engine) or (
            '' if engine == 'auto' else ENGINES[engine].incompatibility(self, position)
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        return {'normalizer': self.normalizer.params(scope)}

    def tile(
        self, queries: Any, keys: Any, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        """The tile as a position encoding sees it: here of kinds that have q_BTNH and k_BSKH, with
        scale 1/√H.
        """
        *_, N, H = queries.q_BTNH.shape
        return Tile(
            inputs.query_tokens,
            inputs.key_tokens,
            allowed_BTS,
            queries.q_BTNH,
            keys.k_BSKH,
            (N, keys.k_BSKH.shape[2]),
            H**-0.5,
        )

    @abc.abstractmethod
    def raw_scores(self, queries: Any, keys: Any, tile: Tile, params: Any) -> jax.Array:
        """float32 scores_BKGTS of queries and keys, scaled."""

    def values(self, keys: Any) -> jax.Array:
        """v_BSKH of the keys."""
        return keys.v_BSKH

    def scores(self, queries: Any, keys: Any, tile: Tile, inputs: AttentionInputs) -> jax.Array:
        """float32 scores_BKGTS as the normalizer takes them."""
        scores_BKGTS = self.raw_scores(queries, keys, tile, inputs.params)
        scores_BKGTS = softcap(scores_BKGTS, self.softcap)
        _, ahead = inputs.mask.reach()
        tile = tile.replace(causal=ahead == 0)  # here, so that no kind can forget it
        return inputs.position.score(inputs.position_params, scores_BKGTS, tile)

    def postprocess_weights(self, weights_BKGTS: jax.Array, params: Any) -> jax.Array:
        """What happens to the weights between normalizer and values."""
        return weights_BKGTS

    def needs_all_keys(self) -> str:
        """The option that needs all keys of a row at once, as a message names it; '' where any tile
        of them will do.
        """
        return (
            f'normalizer={spec.text(self.normalizer, NORMALIZERS)}'
            if self.normalizer.needs_all_keys
            else ''
        )

    def kernel_incompatibility(self) -> str:
        """Why its scores are not q·k times the tile's scale, all that a fused kernel makes; ''
        where they are.
        """
        return 'its scores are not the products of queries and keys that the kernel makes'

    def expand_keys_values(
        self, queries: Any, keys: Any, inputs: AttentionInputs
    ) -> tuple[Any, Any]:
        """Queries and keys of whole rows as tiles read them."""
        return queries, keys

    def attend(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        return ENGINES[inputs.engine].attend(
            self, *self.expand_keys_values(queries, keys, inputs), inputs
        )

    def weights(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        weights_BKGTS, _ = dense.weigh(
            self, *self.expand_keys_values(queries, keys, inputs), inputs
        )
        return _by_head(weights_BKGTS)

    def logits(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        scores_BKGTS, _ = dense.score(self, *self.expand_keys_values(queries, keys, inputs), inputs)
        return _by_head(scores_BKGTS)

    def init_cache(self, keys: Any, length: int, mask: Mask) -> GrowingCache | RingCache:
        back, _ = mask.reach()
        return (
            RingCache.empty(keys, int(back) + 1)
            if back + 1 < length
            else GrowingCache.empty(keys, length)
        )

    def attend_decode(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        # Of a kernel's tile so few queries would leave most empty.
        return self.attend(queries, keys, inputs.replace(engine='dense'))


def _by_head(x_BKGTS: jax.Array) -> jax.Array:
    B, K, G, T, S = x_BKGTS.shape
    return x_BKGTS.reshape(B, K * G, T, S)

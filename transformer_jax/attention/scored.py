"""What the kinds that score each pair of query and key have in common.

These kinds are softmax, additive, differential, latent attention and the synthesizer. For a tile,
which is any part of the queries and keys, they compute in this order: the kind's own scores, the
softcap, the position encoding, the mask and the normalizer, dropout, the sum of the values. Engines
do this for all keys at once or tile by tile.
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
from transformer_jax.ranges import number

# The scopes of what is computed for each pair of query and key, in traces and for counting FLOPs.
PAIRS, CAUSAL_PAIRS = 'pairs', 'causal_pairs'


@dataclasses.dataclass(frozen=True)
class Scored(Attention):
    """The base class of the kinds that score each pair of query and key.

    A kind must define `project_queries`, `project_keys_values` and `raw_scores`, and `tile` where
    its queries and keys are not q_BTNH and k_BSKH.

    Options:
        mask: a mask of MASKS, or several combined with & and |.
        normalizer: from scores to weights, one of NORMALIZERS.
        softcap: c in c·tanh(score / c), before the position encoding (Gemma 2); 0: none.
    """

    mask: Mask = spec.nested(MASKS, masks.Full())
    normalizer: Normalizer = spec.nested(NORMALIZERS, normalizers.Softmax())
    softcap: float = number(0.0, low=0, high=1e9)
    engines: ClassVar[tuple[str, ...]] = tuple(ENGINES)
    has_queries_keys: ClassVar[bool] = True  # False: scores do not come from queries and keys

    def supports(self) -> frozenset[str]:
        # The tokens of a prefix see each other, so they cannot be decoded one by one.
        looks_ahead = self.mask.prefix_length() > 1
        return frozenset(CAPABILITIES) - ({'causal', 'decode'} if looks_ahead else set())

    def incompatibility(self, position: Position, engine: str) -> str:
        if position.reads_queries_keys and not self.has_queries_keys:
            return (
                'it has no queries and keys that the position encoding could read; t5, alibi, '
                'kerple and fire work'
            )
        return super().incompatibility(position, engine) or (
            '' if engine == 'auto' else ENGINES[engine].incompatibility(self, position)
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        return {'normalizer': self.normalizer.params(scope)}

    def tile(
        self, queries: Any, keys: Any, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        """Return the tile as a position encoding and an engine see it.

        The default is for kinds whose queries have q_BTNH and whose keys have k_BSKH, with the
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
        """Compute the scores of each query for each key.

        Args:
            queries: of the tile, leaves [B, T, …].
            keys: of the tile, leaves [B, S, …].
            tile: from `tile`.
            params: from `attention_params`.

        Returns:
            float32 scores_BKGTS with their scale; query head n is (k, g) with k = n // G. Masks and
            position encodings come later.
        """

    def values(self, keys: Any) -> jax.Array:
        """Return v_BSKH of the keys."""
        return keys.v_BSKH

    def scores(self, queries: Any, keys: Any, tile: Tile, inputs: AttentionInputs) -> jax.Array:
        """Return the float32 scores_BKGTS that the normalizer takes."""
        scores_BKGTS = self.raw_scores(queries, keys, tile, inputs.params)
        scores_BKGTS = softcap(scores_BKGTS, self.softcap)
        _, ahead = inputs.mask.reach()
        tile = dataclasses.replace(
            tile, causal=ahead == 0
        )  # set here, so that no kind can forget it
        return inputs.position.score(inputs.position_params, scores_BKGTS, tile)

    def postprocess_weights(self, weights_BKGTS: jax.Array, params: Any) -> jax.Array:
        """Return weights_BKGTS after what comes between the normalizer and the values."""
        return weights_BKGTS

    def needs_all_keys(self) -> str:
        """Return the option that needs all keys of a row at once, as a message names it.

        '' where weights can be computed in tiles of keys.
        """
        if not self.normalizer.needs_all_keys:
            return ''
        return f'normalizer={spec.text(self.normalizer, NORMALIZERS)}'

    def kernel_incompatibility(self) -> str:
        """Explain why the scores are not q·k times the scale of the tile.

        These are the only scores of a fused kernel. '' where the kind's scores are such.
        """
        return 'its scores are not the products of queries and keys that the kernel makes'

    def expand_keys_values(
        self, queries: Any, keys: Any, inputs: AttentionInputs
    ) -> tuple[Any, Any]:
        """Return (queries, keys) of whole rows in the form that `raw_scores` reads.

        Called once before the engine, for example to compute keys and values from latents.
        """
        return queries, keys

    def attend(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        queries, keys = self.expand_keys_values(queries, keys, inputs)
        _, ahead = inputs.mask.reach()
        with jax.named_scope(PAIRS if ahead else CAUSAL_PAIRS):
            return ENGINES[inputs.engine].attend(self, queries, keys, inputs)

    def weights(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        queries, keys = self.expand_keys_values(queries, keys, inputs)
        weights_BKGTS, _ = dense.weigh(self, queries, keys, inputs)
        return _merge_heads(weights_BKGTS)

    def logits(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        queries, keys = self.expand_keys_values(queries, keys, inputs)
        scores_BKGTS, _ = dense.score(self, queries, keys, inputs)
        return _merge_heads(scores_BKGTS)

    def init_cache(self, keys: Any, length: int, mask: Mask) -> GrowingCache | RingCache:
        back, _ = mask.reach()
        if back + 1 < length:
            return RingCache.empty(keys, int(back) + 1)
        return GrowingCache.empty(keys, length)

    def attend_decode(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        # The few queries of a step would leave most of a kernel's tile empty.
        return self.attend(queries, keys, dataclasses.replace(inputs, engine='dense'))


def _merge_heads(x_BKGTS: jax.Array) -> jax.Array:
    B, K, G, T, S = x_BKGTS.shape
    return x_BKGTS.reshape(B, K * G, T, S)

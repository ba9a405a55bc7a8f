"""Encodings of the relative position that depend on the content of queries."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions.absolute import sinusoids
from transformer_jax.positions.base import Position, Tile
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Shaw(Position):
    """Learned embeddings of the clipped offset j − i, added to keys and values.

    Shaw et al. 2018, section 3. All heads share the C = 2 `clip` + 1 embeddings. The product of a
    query with each embedding is computed once and then looked up by offset, so that no array of
    T·S·H numbers is needed.

    Options:
        clip: the largest distance that has its own embedding.
        values: whether there are embeddings for the values too.
    """

    clip: int = number(16, low=0, high=10_000_000)
    values: bool = True
    reads_queries_keys: ClassVar[bool] = True

    def params(self, scope: ParamScope) -> dict[str, jax.Array]:
        heads = scope.heads
        widths = {'keys': heads.head_dim} | ({'values': heads.value_dim} if self.values else {})
        return {
            name: scope.parameter(
                name,
                (2 * self.clip + 1, width),
                ('position', 'head_dim'),
                jax.nn.initializers.xavier_uniform(),
            )
            for name, width in widths.items()
        }

    def score(self, params: dict[str, jax.Array], scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        q_BTNH, _ = tile.queries_keys()
        q_BTKGH = tile.group_heads(q_BTNH * tile.scale)
        table_CH = params['keys'].astype(q_BTKGH.dtype)
        products_BKGTC = jnp.einsum(
            'BTKGH,CH->BKGTC', q_BTKGH, table_CH, preferred_element_type=jnp.float32
        )
        return scores_BKGTS + jnp.take_along_axis(
            products_BKGTC, self._rows_BTS(tile)[:, None, None], axis=-1
        )

    def value(
        self, params: dict[str, jax.Array], weights_BKGTS: jax.Array, tile: Tile
    ) -> jax.Array | None:
        if not self.values:
            return None
        table_CH = params['values']

        def by_offset(weights_SKG: jax.Array, rows_S: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(weights_SKG, rows_S, len(table_CH))

        weights_BTCKG = jax.vmap(jax.vmap(by_offset))(
            jnp.moveaxis(weights_BKGTS, (3, 4), (1, 2)), self._rows_BTS(tile)
        )
        return jnp.einsum('BTCKG,CH->BTKGH', weights_BTCKG, table_CH)

    def _rows_BTS(self, tile: Tile) -> jax.Array:
        return jnp.clip(-tile.offsets_BTS(), -self.clip, self.clip) + self.clip


@dataclasses.dataclass(frozen=True)
class TransformerXL(Position):
    """q·k + q·W R + u·k + v·W R, where R are the sinusoids of i − j (Dai et al. 2019, section 3.3).

    W, u and v are learned for each head. There are as many sinusoids as all heads have dimensions.
    Offsets may have either sign.
    """

    reads_queries_keys: ClassVar[bool] = True

    def params(self, scope: ParamScope) -> dict[str, jax.Array]:
        N, H = scope.heads.num_heads, scope.heads.head_dim
        E = N * H + N * H % 2  # sinusoids, an even number: sines and cosines
        w_init = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        normal = jax.nn.initializers.normal(0.02)
        return {
            'w_ENH': scope.parameter('kernel', (E, N, H), ('rank', 'heads', 'head_dim'), w_init),
            'u_NH': scope.parameter('content_bias', (N, H), ('heads', 'head_dim'), normal),
            'v_NH': scope.parameter('position_bias', (N, H), ('heads', 'head_dim'), normal),
        }

    def score(self, params: dict[str, jax.Array], scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        q_BTNH, k_BSKH = tile.queries_keys()
        w_ENH, u_NH, v_NH = (
            params[name].astype(q_BTNH.dtype) for name in ('w_ENH', 'u_NH', 'v_NH')
        )
        N, K = tile.heads
        u_KGH = u_NH.reshape(K, N // K, -1)
        content_BKGS = jnp.einsum(
            'KGH,BSKH->BKGS', u_KGH, k_BSKH, preferred_element_type=jnp.float32
        )
        qv_BTNH = q_BTNH + v_NH[None, None]
        z_BTNE = jnp.einsum('BTNH,ENH->BTNE', qv_BTNH, w_ENH, preferred_element_type=jnp.float32)
        z_BTKGE = tile.group_heads(
            _rotate_to_key_positions(z_BTNE, tile.query_tokens.positions_BT).astype(q_BTNH.dtype)
        )
        r_BSE = sinusoids(tile.key_tokens.positions_BT, len(w_ENH)).astype(q_BTNH.dtype)
        offset_BKGTS = jnp.einsum(
            'BTKGE,BSE->BKGTS', z_BTKGE, r_BSE, preferred_element_type=jnp.float32
        )
        return scores_BKGTS + tile.scale * (content_BKGS[:, :, :, None] + offset_BKGTS)


def _rotate_to_key_positions(z_BTNE: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Return z′ with z′·R_j = z·R_{i−j} for every j.

    So the sinusoids of each key position are enough, and those of each offset are not needed:
    a sin ω(i − j) + b cos ω(i − j) = (b sin ωi − a cos ωi) sin ωj + (a sin ωi + b cos ωi) cos ωj.

    Args:
        z_BTNE: the factors of sines and cosines, in pairs (a, b).
        positions_BT: i.
    """
    B, T, N, E = z_BTNE.shape
    a_BTNF, b_BTNF = jnp.moveaxis(z_BTNE.reshape(B, T, N, E // 2, 2), -1, 0)
    sin_BT1F, cos_BT1F = jnp.moveaxis(sinusoids(positions_BT, E).reshape(B, T, 1, E // 2, 2), -1, 0)
    rotated_BTNF2 = jnp.stack(
        [b_BTNF * sin_BT1F - a_BTNF * cos_BT1F, a_BTNF * sin_BT1F + b_BTNF * cos_BT1F], axis=-1
    )
    return rotated_BTNF2.reshape(B, T, N, E)

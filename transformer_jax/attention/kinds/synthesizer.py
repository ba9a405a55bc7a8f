"""Synthesizer (Tay et al. 2020): attention whose scores do not compare tokens.

Letters of this file: L and M positions, up to `max_len` each.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention import projections
from transformer_jax.attention.base import AttentionInputs
from transformer_jax.attention.kinds.softmax import dot_product_scores
from transformer_jax.attention.scored import Scored
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions import Position, Tile
from transformer_jax.ranges import number

FORMS = ('dense', 'random')


class Queries(NamedTuple):
    """What scores are computed from."""

    hidden_BTNH: jax.Array | None  # relu(W₁ x + b₁) of the dense form
    q_BTNH: jax.Array | None  # queries, with the option `mix`


class KeysValues(NamedTuple):
    """Projected values, and keys with the option `mix`."""

    k_BSKH: jax.Array | None
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Synthesizer(Scored):
    """The score of a query for each position of its segment, whatever token is at that position.

    Tay et al. 2020. The dense form is W₂ relu(W₁ x_t + b₁) + b₂, where W₁ gives d_k numbers in each
    head and W₂ the scores of `max_len` positions ("Dense Synthesizer"). The random form is a
    learned matrix [max_len, max_len] for each head, which no input changes ("Random Synthesizer").

    Options:
        form: dense or random.
        max_len: the most positions of a segment.
        mix: the scores are α₁ S₁ + α₂ S₂, where S₂ are those of dot products and α is the softmax
            of two learned logits in each head ("Mixture of Synthesizers").
    """

    form: str = 'dense'
    max_len: int = number(512, low=1, high=1_000_000)
    mix: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.form not in FORMS:
            raise ValueError(f'form={self.form!r}, it takes {", ".join(FORMS)}')

    @property
    def has_queries_keys(self) -> bool:
        """Return whether scores come from queries and keys too."""
        return self.mix

    def supports(self) -> frozenset[str]:
        return super().supports() - {'cross'}

    def incompatibility(self, position: Position, engine: str) -> str:
        if type(position).rotate is not Position.rotate and not self.mix:
            return (
                'it has no queries and keys to rotate; set its mix=True, or use none, sinusoidal, '
                'learned or a bias'
            )
        return super().incompatibility(position, engine)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = scope.heads
        hidden_BTNH = q_BTNH = None
        if self.form == 'dense':
            bias_NH = scope.parameter(
                'hidden_bias',
                (heads.num_heads, heads.head_dim),
                ('heads', 'head_dim'),
                jax.nn.initializers.zeros,
            )
            hidden_BTNH = scope.project_to_heads(
                'hidden', x_BTD, heads.num_heads, heads.head_dim, 'heads'
            )
            hidden_BTNH = jax.nn.relu(hidden_BTNH + bias_NH.astype(x_BTD.dtype)[None, None])
        if self.mix:
            q_BTNH = projections.queries(scope, x_BTD, tokens)
        return Queries(hidden_BTNH, q_BTNH)

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        if self.mix:
            return KeysValues(*projections.keys_values(scope, x_BSD, tokens))
        heads = scope.heads
        return KeysValues(
            None,
            scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads'),
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        N, H, L = scope.heads.num_heads, scope.heads.head_dim, self.max_len
        zeros, normal = jax.nn.initializers.zeros, jax.nn.initializers.normal
        if self.form == 'random':
            axes = ('position', 'read_position', 'heads')
            own = {'matrix_LMN': scope.parameter('matrix', (L, L, N), axes, normal(1.0))}
        else:
            axes = ('position', 'heads', 'head_dim')
            own = {
                'kernel_LNH': scope.parameter('kernel', (L, N, H), axes, normal(H**-0.5)),
                'bias_LN': scope.parameter('bias', (L, N), ('position', 'heads'), zeros),
            }
        if self.mix:
            logits_2N = scope.parameter('share', (2, N), ('norm', 'heads'), zeros)
            own['share_2N'] = jax.nn.softmax(logits_2N, axis=0)
        return super().attention_params(scope) | own

    def tile(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        table = inputs.params['matrix_LMN' if self.form == 'random' else 'bias_LN']
        heads = table.shape[-1], keys.v_BSKH.shape[2]
        scale = 1.0 if queries.q_BTNH is None else queries.q_BTNH.shape[-1] ** -0.5
        return Tile(
            inputs.query_tokens,
            inputs.key_tokens,
            allowed_BTS,
            queries.q_BTNH,
            keys.k_BSKH,
            heads,
            scale,
        )

    def raw_scores(self, queries: Queries, keys: KeysValues, tile: Tile, params: Any) -> jax.Array:
        B, T, S = tile.allowed_BTS.shape
        N, K = tile.heads
        if self.form == 'random':
            scores_BNTS = random_scores(params['matrix_LMN'], tile)
        else:
            assert queries.hidden_BTNH is not None, 'the dense form projects hidden units'
            scores_BNTS = dense_scores(
                queries.hidden_BTNH, params['kernel_LNH'], params['bias_LN'], tile
            )
        scores_BKGTS = scores_BNTS.reshape(B, K, N // K, T, S)
        if not self.mix:
            return scores_BKGTS
        assert queries.q_BTNH is not None, 'the option mix projects queries'
        assert keys.k_BSKH is not None, 'the option mix projects keys'
        own_KG11, dot_KG11 = params['share_2N'].reshape(2, K, N // K, 1, 1)
        dot_BKGTS = dot_product_scores(queries.q_BTNH * tile.scale, keys.k_BSKH)
        return own_KG11[None] * scores_BKGTS + dot_KG11[None] * dot_BKGTS


def dense_scores(
    hidden_BTNH: jax.Array, kernel_LNH: jax.Array, bias_LN: jax.Array, tile: Tile
) -> jax.Array:
    """Return float32 (W₂ hidden_t + b₂)_l as scores_BNTS, where l is the position of key s.

    Row l of W₂ takes the place of a key in a dot product.
    """
    k_BSNH = kernel_LNH.astype(hidden_BTNH.dtype)[tile.key_tokens.positions_BT]
    b_BN1S = jnp.moveaxis(bias_LN[tile.key_tokens.positions_BT], -1, 1)[:, :, None]
    return dot_product_scores(hidden_BTNH, k_BSNH)[:, :, 0] + b_BN1S


def random_scores(matrix_LMN: jax.Array, tile: Tile) -> jax.Array:
    """Return float32 R_lm as scores_BNTS; l and m are the positions of query t and key s."""
    scores_BTSN = matrix_LMN[
        tile.query_tokens.positions_BT[:, :, None], tile.key_tokens.positions_BT[:, None, :]
    ]
    return jnp.moveaxis(scores_BTSN, -1, 1)

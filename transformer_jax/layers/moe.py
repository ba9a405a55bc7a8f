"""Mixture of experts: which expert reads which token. Pure functions.

Z tokens of a microbatch, in the order of its rows; J choices of each; W = Z·J choices in all, those
of a token side by side; E experts; C places at each; L layers. `network` is E feed-forward networks
side by side, see `limited`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """The experts of each token, the most probable first (E at padding), and the weights of their
    outputs (0 there).
    """

    experts_ZJ: jax.Array
    gates_ZJ: jax.Array


class Load(NamedTuple):
    """What a layer did with the tokens of a microbatch, float32, padding apart."""

    loss: jax.Array  # what is added to the loss of each target token
    balance: jax.Array  # of `balance`
    chosen_E: jax.Array  # choices of each expert
    kept_E: jax.Array  # those that found a place

    def times(self, weight: jax.Array) -> 'Load':
        """The same with its means as sums over tokens of this `weight`."""
        return self._replace(loss=self.loss * weight, balance=self.balance * weight)


def route(logits_ZE: jax.Array, real_Z: jax.Array, choices: int) -> Routing:
    """The `choices` experts of the highest probability, softmax over all of them, for each
    real token.

    One choice is weighted by its probability (Fedus et al. 2021, equation 2), several by
    probabilities that sum to 1 over the chosen ones (Lepikhin et al. 2020, Algorithm 1).
    """
    gates_ZJ, experts_ZJ = jax.lax.top_k(jax.nn.softmax(logits_ZE, axis=-1), choices)
    if choices > 1:
        gates_ZJ /= gates_ZJ.sum(-1, keepdims=True)
    real_Z1 = real_Z[:, None]
    return Routing(
        jnp.where(real_Z1, experts_ZJ, logits_ZE.shape[1]), jnp.where(real_Z1, gates_ZJ, 0)
    )


def counts(experts: jax.Array, number: int) -> jax.Array:
    """How often each of a `number` of experts was chosen: int32 chosen_E."""
    return jnp.bincount(experts.reshape(-1), length=number + 1)[:number]


def balance(logits_ZE: jax.Array, chosen_E: jax.Array, real_Z: jax.Array) -> jax.Array:
    """E Σ f_e P_e: 1 where experts are chosen evenly, E where always the same one is (Fedus et al.
    2021, equation 4).

    f_e is the share of an expert in all choices and has no gradient, P_e its mean probability over
    real tokens.
    """
    E, tokens = logits_ZE.shape[1], jnp.maximum(real_Z.sum(), 1)
    share_E = chosen_E / jnp.maximum(chosen_E.sum(), 1)
    probability_E = (
        jnp.where(real_Z[:, None], jax.nn.softmax(logits_ZE, axis=-1), 0).sum(0) / tokens
    )
    return E * (share_E * probability_E).sum()


def z_loss(logits_ZE: jax.Array, real_Z: jax.Array) -> jax.Array:
    """The mean over real tokens of log² Σ exp(logits) (Zoph et al. 2022, equation 5)."""
    squares_Z = jnp.square(jax.nn.logsumexp(logits_ZE, axis=-1))
    return jnp.where(real_Z, squares_Z, 0).sum() / jnp.maximum(real_Z.sum(), 1)


def places(routing: Routing, experts: int, capacity: int) -> jax.Array:
    """The place among the E·C that each choice gets, E·C where its expert has none left:
    int32 places_ZJ.

    First come, first served, in the order of rows and tokens, so that what a token gets never
    depends on a later one of its row (serving all first choices before the second ones would).
    """
    chosen_W = routing.experts_ZJ.reshape(-1)
    chosen_WE = chosen_W[:, None] == jnp.arange(experts)[None]
    before_WE = jnp.cumsum(chosen_WE, axis=0) - chosen_WE
    rank_W = (before_WE * chosen_WE).sum(1)
    free_W = (chosen_W < experts) & (rank_W < capacity)
    places_W = jnp.where(free_W, chosen_W * capacity + rank_W, experts * capacity)
    return places_W.reshape(routing.experts_ZJ.shape)


def limited(
    x_ZD: jax.Array,
    routing: Routing,
    experts: int,
    capacity: float,
    network: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """(y_ZD, kept_E): the mixture where each expert has C = capacity · Z · J / E places, rounded
    up; Z counts padding.

    A choice without a place adds nothing.

    Args:
        x_ZD: tokens.
        routing: of the tokens.
        experts: E.
        capacity: places for each that an even load would fill.
        network: (x_ECD, matmul) → y_ECD, where `matmul(x_ECI, w_EIO, b_EO or None)` is an
            expert's linear map.
    """
    Z, J = routing.experts_ZJ.shape
    C = min(math.ceil(capacity * Z * J / experts), Z)
    places_ZJ = places(routing, experts, C)
    # An index of Z reads zeros: an empty place, a choice without one.
    tokens_W = jnp.repeat(jnp.arange(Z), J)
    token_P = (
        jnp.full((experts * C,), Z)
        .at[places_ZJ.reshape(-1)]
        .set(tokens_W, mode='drop', unique_indices=False)
    )
    x_PD = x_ZD.at[token_P].get(mode='fill', fill_value=0)

    def matmul(x_ECI, w_EIO, b_EO):
        y_ECO = jnp.einsum('ECI,EIO->ECO', x_ECI, w_EIO)
        return y_ECO if b_EO is None else y_ECO + b_EO[:, None]

    y_PD = network(x_PD.reshape(experts, C, -1), matmul).reshape(experts * C, -1)
    y_ZJD = y_PD.at[places_ZJ].get(mode='fill', fill_value=0)
    y_ZD = jnp.einsum('ZJD,ZJ->ZD', y_ZJD, routing.gates_ZJ.astype(x_ZD.dtype))
    return y_ZD, counts(places_ZJ // C, experts)


def dropless(
    x_ZD: jax.Array, routing: Routing, experts: int, network: Callable[..., jax.Array]
) -> jax.Array:
    """y_ZD: the mixture where every choice counts; arguments as `limited`, with W choices sorted by
    expert as x_1WD.
    """
    Z, J = routing.experts_ZJ.shape
    chosen_W = routing.experts_ZJ.reshape(-1)
    order_W = jnp.argsort(chosen_W, stable=True)  # padding last
    sizes_E, sorted_W = counts(chosen_W, experts), chosen_W[order_W]

    def matmul(x_1WI, w_EIO, b_EO):
        y_WO = jax.lax.ragged_dot(x_1WI[0], w_EIO, sizes_E)
        return (y_WO if b_EO is None else y_WO + b_EO.at[sorted_W].get(mode='clip'))[None]

    y_WD = network(x_ZD[order_W // J][None], matmul)[0]
    y_WD = jnp.where((sorted_W < experts)[:, None], y_WD, 0)
    y_ZJD = jnp.zeros_like(y_WD).at[order_W].set(y_WD, unique_indices=True).reshape(Z, J, -1)
    return jnp.einsum('ZJD,ZJ->ZD', y_ZJD, routing.gates_ZJ.astype(x_ZD.dtype))


def load_metrics(loads: Sequence[Load], tokens: jax.Array) -> dict[str, jax.Array]:
    """Scalars for the log from what layers summed up over microbatches of `tokens`; none
    without layers.

    balance: mean over layers; load_min, load_max: the choices of the least and the most wanted
    expert of any layer, where 1 is an even share; dropped: the share of choices without a place.
    """
    if not loads:
        return {}
    chosen_LE, kept_LE = (
        jnp.stack([getattr(load, name) for load in loads]) for name in ('chosen_E', 'kept_E')
    )
    load_LE = chosen_LE * chosen_LE.shape[1] / jnp.maximum(chosen_LE.sum(1, keepdims=True), 1)
    balances_L = jnp.stack([load.balance for load in loads])
    return {
        'experts_balance': balances_L.mean() / tokens,
        'experts_load_min': load_LE.min(),
        'experts_load_max': load_LE.max(),
        'experts_dropped': 1 - kept_LE.sum() / jnp.maximum(chosen_LE.sum(), 1),
    }

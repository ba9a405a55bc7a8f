"""Mixture of experts as pure functions: routing, capacity and auxiliary losses.

Letters of shapes: Z tokens of a microbatch, row by row; J choices of each token; W = Z·J choices in
all, those of a token next to each other; E experts; C slots, the tokens that an expert has room
for; P = E·C slots in all; I inputs and O outputs of an affine map; L layers. `network` is the E
feed-forward networks as one function, see `limited`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """The chosen experts of each token, the most probable first, with their weights."""

    experts_ZJ: jax.Array  # int32, from 0; E at padding
    gates_ZJ: jax.Array  # float32, the weight of the expert's output; 0 at padding


class Load(NamedTuple):
    """How a layer routed the tokens of a microbatch, without padding; float32."""

    loss: jax.Array  # the auxiliary losses, added to the loss of each target token
    balance: jax.Array  # see `balance`
    chosen_E: jax.Array  # how often each expert was chosen
    kept_E: jax.Array  # how many of these choices were within the capacity

    def times(self, weight: jax.Array) -> 'Load':
        """Turn the means over tokens into sums over tokens of total `weight`."""
        return self._replace(loss=self.loss * weight, balance=self.balance * weight)


def route(logits_ZE: jax.Array, real_Z: jax.Array, choices: int) -> Routing:
    """Choose the experts of the highest probability for each token; softmax over all E.

    A single choice is weighted by its probability (Fedus et al. 2021, equation 2), several by
    probabilities that are divided by their sum (Lepikhin et al. 2020, Algorithm 1).

    Args:
        logits_ZE: of the router, float32.
        real_Z: False at padding, which chooses no expert.
        choices: J.
    """
    gates_ZJ, experts_ZJ = jax.lax.top_k(jax.nn.softmax(logits_ZE, axis=-1), choices)
    if choices > 1:
        gates_ZJ /= gates_ZJ.sum(-1, keepdims=True)
    real_Z1 = real_Z[:, None]
    return Routing(
        jnp.where(real_Z1, experts_ZJ, logits_ZE.shape[1]), jnp.where(real_Z1, gates_ZJ, 0)
    )


def counts(experts: jax.Array, number: int) -> jax.Array:
    """Count how often each of a `number` of experts was chosen: int32 chosen_E."""
    return jnp.bincount(experts.reshape(-1), length=number + 1)[:number]


def balance(logits_ZE: jax.Array, chosen_E: jax.Array, real_Z: jax.Array) -> jax.Array:
    """Compute the load-balancing loss E Σ f_e P_e (Fedus et al. 2021, equation 4).

    f_e is the fraction of all choices that fell on expert e and has no gradient; P_e is the mean
    probability of e over real tokens. The loss is 1 where experts are chosen evenly and E where
    always the same one is.

    Args:
        logits_ZE: of the router, float32.
        chosen_E: how often each expert was chosen.
        real_Z: False at padding.
    """
    E, tokens = logits_ZE.shape[1], jnp.maximum(real_Z.sum(), 1)
    share_E = chosen_E / jnp.maximum(chosen_E.sum(), 1)
    probability_E = (
        jnp.where(real_Z[:, None], jax.nn.softmax(logits_ZE, axis=-1), 0).sum(0) / tokens
    )
    return E * (share_E * probability_E).sum()


def z_loss(logits_ZE: jax.Array, real_Z: jax.Array) -> jax.Array:
    """Compute the mean over real tokens of log² Σ exp(logits) (Zoph et al. 2022, equation 5)."""
    squares_Z = jnp.square(jax.nn.logsumexp(logits_ZE, axis=-1))
    return jnp.where(real_Z, squares_Z, 0).sum() / jnp.maximum(real_Z.sum(), 1)


def assign_slots(routing: Routing, experts: int, capacity: int) -> jax.Array:
    """Assign each choice one of the E·C slots, int32 slots_ZJ; E·C where its expert is full.

    Slots are given in the order of rows and tokens, so that the slot of a token never depends on a
    later token of its row. (It would if all first choices were served before all second ones.)

    Args:
        routing: of the tokens.
        experts: E.
        capacity: C.
    """
    chosen_W = routing.experts_ZJ.reshape(-1)
    chosen_WE = chosen_W[:, None] == jnp.arange(experts)[None]
    before_WE = jnp.cumsum(chosen_WE, axis=0) - chosen_WE
    rank_W = (before_WE * chosen_WE).sum(1)
    free_W = (chosen_W < experts) & (rank_W < capacity)
    slots_W = jnp.where(free_W, chosen_W * capacity + rank_W, experts * capacity)
    return slots_W.reshape(routing.experts_ZJ.shape)


def limited(
    x_ZD: jax.Array,
    routing: Routing,
    experts: int,
    capacity: float,
    network: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Compute the mixture where each expert has room for C tokens; choices beyond add nothing.

    C = capacity · Z · J / E, rounded up, and at most Z; Z counts padding.

    Args:
        x_ZD: tokens.
        routing: of the tokens.
        experts: E.
        capacity: the room of an expert as a multiple of an even load.
        network: (x_ECD, affine) → y_ECD, where `affine(x_ECI, w_EIO, b_EO or None)` is each
            expert's affine map x W + b.

    Returns:
        (y_ZD, kept_E): the outputs, and how many choices of each expert were served.
    """
    Z, J = routing.experts_ZJ.shape
    C = min(math.ceil(capacity * Z * J / experts), Z)
    slots_ZJ = assign_slots(routing, experts, C)
    # Reading at an index out of range gives zeros: index Z for an empty slot, E·C for a choice
    # without a slot.
    tokens_W = jnp.repeat(jnp.arange(Z), J)
    token_P = (
        jnp.full((experts * C,), Z)
        .at[slots_ZJ.reshape(-1)]
        .set(tokens_W, mode='drop', unique_indices=False)
    )
    x_PD = x_ZD.at[token_P].get(mode='fill', fill_value=0)

    def affine(x_ECI, w_EIO, b_EO):
        y_ECO = jnp.einsum('ECI,EIO->ECO', x_ECI, w_EIO)
        return y_ECO if b_EO is None else y_ECO + b_EO[:, None]

    y_PD = network(x_PD.reshape(experts, C, -1), affine).reshape(experts * C, -1)
    y_ZJD = y_PD.at[slots_ZJ].get(mode='fill', fill_value=0)
    y_ZD = jnp.einsum('ZJD,ZJ->ZD', y_ZJD, routing.gates_ZJ.astype(x_ZD.dtype))
    return y_ZD, counts(slots_ZJ // C, experts)


def dropless(
    x_ZD: jax.Array, routing: Routing, experts: int, network: Callable[..., jax.Array]
) -> jax.Array:
    """Compute the mixture y_ZD where every choice is served.

    Arguments as of `limited`, but `network` gets all choices, sorted by expert, as x_1WD.
    """
    Z, J = routing.experts_ZJ.shape
    chosen_W = routing.experts_ZJ.reshape(-1)
    order_W = jnp.argsort(chosen_W, stable=True)  # padding, expert E, comes last
    sizes_E, sorted_W = counts(chosen_W, experts), chosen_W[order_W]

    def affine(x_1WI, w_EIO, b_EO):
        y_WO = jax.lax.ragged_dot(x_1WI[0], w_EIO, sizes_E)
        return (y_WO if b_EO is None else y_WO + b_EO.at[sorted_W].get(mode='clip'))[None]

    y_WD = network(x_ZD[order_W // J][None], affine)[0]
    y_WD = jnp.where((sorted_W < experts)[:, None], y_WD, 0)
    y_ZJD = jnp.zeros_like(y_WD).at[order_W].set(y_WD, unique_indices=True).reshape(Z, J, -1)
    return jnp.einsum('ZJD,ZJ->ZD', y_ZJD, routing.gates_ZJ.astype(x_ZD.dtype))


def load_metrics(loads: Sequence[Load], tokens: jax.Array) -> dict[str, jax.Array]:
    """Compute the scalars for the log from the loads of all layers.

    Args:
        loads: of each layer, summed over microbatches, see `Load.times`.
        tokens: the target tokens of the microbatches.

    Returns:
        experts_balance: `balance`, the mean over layers.
        experts_load_min, experts_load_max: the choices of the least and of the most chosen expert
            of any layer, relative to an even share.
        experts_dropped: the fraction of choices that found no room.
        Without layers, an empty dictionary.
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

"""What the float64 references of scored kinds share: softmax over the keys a query may see,
in loops.
"""

from collections.abc import Callable

import jax
import numpy as np
from laws.contract import N, Site, packed

from transformer_jax.batch import Tokens

TOKENS = packed((7, 9), (20,), (3,))
MEMORY = packed((5, 11), (), (20,))  # Row 1 of cross-attention sees nothing.


def outputs_and_weights(at: Site, seed: int = 1) -> tuple[tuple, np.ndarray, np.ndarray]:
    """(x_BTD, tokens, x_BSD, key tokens) at random, and what the attention makes of them: (o_BTD,
    weights_BNTS).
    """
    arguments = at.arguments(seed, TOKENS, MEMORY)
    arguments = arguments if at.name == 'cross' else 2 * arguments

    @jax.jit
    def run(params, *arguments):
        return at.module.apply(
            {'params': params}, *arguments, method=at._attend, mutable=['intermediates']
        )

    o_BTD, variables = run(at.params, *arguments)
    return arguments, np.asarray(o_BTD), np.asarray(jax.tree.leaves(variables['intermediates'])[0])


def double(params: dict) -> dict:
    """Parameters in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def projected(x_BTD: np.ndarray, params: dict) -> np.ndarray:
    """x_BTNH."""
    return np.einsum('btd,dnh->btnh', x_BTD.astype(np.float64), params['kernel'])


def softmax_weights(
    score: Callable[[int, int, int, int], float], query: Tokens, key: Tokens, causal: bool
) -> np.ndarray:
    """weights_BNTS of score(b, n, t, s): over the keys of the query's segment, with `causal` none
    after it.
    """
    (B, T), S = query.segments_BT.shape, key.segments_BT.shape[1]
    weights_BNTS = np.zeros((B, N, T, S))
    for b, n, t in np.ndindex(B, N, T):
        seen = [
            s
            for s in range(S)
            if query.segments_BT[b, t] == key.segments_BT[b, s] != 0
            and not (causal and key.positions_BT[b, s] > query.positions_BT[b, t])
        ]
        if seen:
            scores = np.array([score(b, n, t, s) for s in seen])
            exponentials = np.exp(scores - scores.max())
            weights_BNTS[b, n, t, seen] = exponentials / exponentials.sum()
    return weights_BNTS


def mixed(weights_BNTS: np.ndarray, v_BSKH: np.ndarray) -> np.ndarray:
    """o_BTNH; head n reads values n // G."""
    B, _, T, _ = weights_BNTS.shape
    K, H = v_BSKH.shape[2:]
    o_BTNH = np.zeros((B, T, N, H))
    for b, n, t in np.ndindex(B, N, T):
        o_BTNH[b, t, n] = weights_BNTS[b, n, t] @ v_BSKH[b, :, n * K // N]
    return o_BTNH


def out(o_BTNH: np.ndarray, params: dict) -> np.ndarray:
    """o_BTD."""
    return np.einsum('btnh,nhd->btd', o_BTNH, params['out']['kernel'])


def rotated(x_BTNH: np.ndarray, positions_BT: np.ndarray) -> np.ndarray:
    """RoPE of base 10000 that pairs dimension i with i + H/2 (Su et al. 2021, equation 34)."""
    y_BTNH, H = np.zeros_like(x_BTNH), x_BTNH.shape[-1]
    for b, t, n, i in np.ndindex(*x_BTNH.shape[:-1], H // 2):
        angle, j = positions_BT[b, t] * 10000.0 ** (-2 * i / H), i + H // 2
        y_BTNH[b, t, n, i] = x_BTNH[b, t, n, i] * np.cos(angle) - x_BTNH[b, t, n, j] * np.sin(angle)
        y_BTNH[b, t, n, j] = x_BTNH[b, t, n, i] * np.sin(angle) + x_BTNH[b, t, n, j] * np.cos(angle)
    return y_BTNH

"""Recurrent cells, the values of `model.rnn`, and the loop over time.

Letters of shapes: D units of a layer, I inputs of a layer, Z gates of a cell.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.layers.linear import matmul
from transformer_jax.ranges import Ranged

ATTENTIONS = ('none', 'additive', 'multiplicative')
# The state of a layer: float32 [B, D] each; the first is the layer's output.
State = tuple[jax.Array, ...]


class Weights(NamedTuple):
    """The learned arrays of a layer in one direction."""

    input_IZD: jax.Array
    recurrent_DZD: jax.Array
    bias_4D: jax.Array  # the first Z are those of the gates

    def project(self, x_BTI: jax.Array) -> jax.Array:
        """Compute the inputs' part of all gates, x_BTZD, for all times in one matrix product."""
        x_BTZD = matmul(x_BTI, self.input_IZD, 1)
        return x_BTZD + self.bias_4D[None, None, : x_BTZD.shape[2]].astype(x_BTI.dtype)


@dataclasses.dataclass(frozen=True)
class Recurrent(Ranged, abc.ABC):
    """A recurrent encoder-decoder: its cell, and how the decoder reads the source.

    Attributes:
        attention: the score of a decoder state h and an encoder output m. 'additive':
            vᵀ tanh(W h + U m + b) (Bahdanau et al. 2015, section A.1.2). 'multiplicative': hᵀ W m
            (Luong et al. 2015, equation 8, general). 'none': the decoder gets the source as one
            vector, its first state (Cho et al. 2014, Sutskever et al. 2014).
        bidirectional: two layers read the source, one from each end.
        input_feeding: the decoder reads its last output together with the last token (Luong et al.
            2015, section 3.3), so that it knows what it attended to. Bahdanau et al. reach the same
            in another way.
        gates: Z, the number of gates of the cell.
        states: the number of arrays in a layer's `State`.

    Raises:
        ValueError: another name of `attention`, or `input_feeding` without attention.
    """

    attention: str = 'additive'
    bidirectional: bool = True
    input_feeding: bool = False
    gates: ClassVar[int]
    states: ClassVar[int]

    def __post_init__(self):
        super().__post_init__()
        if self.attention not in ATTENTIONS:
            raise ValueError(f'attention={self.attention!r}, it takes {", ".join(ATTENTIONS)}')
        if self.input_feeding and not self.attends:
            raise ValueError(
                'input_feeding=True feeds back what attention found, '
                "and attention='none' finds nothing"
            )

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.attention != 'none'

    def advance(self, weights: Weights, x_BZD: jax.Array, state: State) -> State:
        """Return the state after one more input, whose part of the gates is x_BZD.

        Args:
            weights: of the layer.
            x_BZD: one time of `Weights.project`.
            state: before the input.
        """
        h_BZD = matmul(state[0].astype(x_BZD.dtype), weights.recurrent_DZD, 1)
        return self.gate(
            x_BZD.astype(jnp.float32), h_BZD.astype(jnp.float32), weights.bias_4D, state
        )

    @abc.abstractmethod
    def gate(self, x_BZD: jax.Array, h_BZD: jax.Array, bias_4D: jax.Array, state: State) -> State:
        """Compute the next state.

        Args:
            x_BZD: the input's part of the gates, with their biases; float32.
            h_BZD: the last output's part of the gates; float32.
            bias_4D: all biases of the layer.
            state: before the input.
        """

    def initial_bias(self, rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        """Return bias_4D before training; zeros unless a cell says otherwise."""
        return jnp.zeros(shape, dtype)


class Lstm(Recurrent):
    """LSTM (Hochreiter & Schmidhuber 1997) with the forget gate of Gers et al. (2000).

    i, f, o = σ(W x + U h + b);  g = tanh(W x + U h + b);  c' = f ⊙ c + i ⊙ g;  h' = o ⊙ tanh(c').
    The gates are stored in the order i, f, g, o. There are no peepholes.
    """

    gates = 4
    states = 2

    def gate(self, x_BZD: jax.Array, h_BZD: jax.Array, bias_4D: jax.Array, state: State) -> State:
        z_BZD = x_BZD + h_BZD
        i_BD, f_BD, g_BD, o_BD = (z_BZD[:, row] for row in range(4))
        c_BD = jax.nn.sigmoid(f_BD) * state[1] + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
        return jax.nn.sigmoid(o_BD) * jnp.tanh(c_BD), c_BD

    def initial_bias(self, rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        # A forget gate that starts near 1 lets gradients reach far back (Jozefowicz et al. 2015).
        return jnp.zeros(shape, dtype).at[1].set(1)


class Gru(Recurrent):
    """GRU (Cho et al. 2014), with the reset gate applied after the matrix product, as in cuDNN.

    r, z = σ(W x + U h + b);  n = tanh(W x + b + r ⊙ (U h + b'));  h' = (1 − z) ⊙ n + z ⊙ h. The
    gates are stored in the order r, z, n; b' is the fourth bias. The paper's U (r ⊙ h) would need a
    second product that waits for the first.
    """

    gates = 3
    states = 1

    def gate(self, x_BZD: jax.Array, h_BZD: jax.Array, bias_4D: jax.Array, state: State) -> State:
        r_BD, z_BD = (jax.nn.sigmoid(x_BZD[:, row] + h_BZD[:, row]) for row in range(2))
        n_BD = jnp.tanh(x_BZD[:, 2] + r_BD * (h_BZD[:, 2] + bias_4D[None, 3]))
        return ((1 - z_BD) * n_BD + z_BD * state[0],)


def recur(
    cell: Recurrent,
    weights: Weights,
    x_BTI: jax.Array,
    segments_BT: jax.Array,
    initial_BTD: jax.Array | None = None,
    reverse: bool = False,
) -> jax.Array:
    """Run a layer over its inputs x_BTI, in either direction: its outputs h_BTD.

    Args:
        cell: of the layer.
        weights: of the layer.
        x_BTI: inputs.
        segments_BT, initial_BTD, reverse: see `over_time`.
    """

    def step(x_BZD, state):
        state = cell.advance(weights, x_BZD, state)
        return state, state[0].astype(x_BTI.dtype)

    return over_time(
        step,
        cell.states * (weights.recurrent_DZD.shape[0],),
        weights.project(x_BTI),
        segments_BT,
        initial_BTD,
        reverse,
    )


def over_time(
    step: Callable[[Any, Any], tuple[Any, Any]],
    sizes: Any,
    inputs: Any,
    segments_BT: jax.Array,
    initial_BTD: jax.Array | None = None,
    reverse: bool = False,
) -> Any:
    """Run `step` over time by `lax.scan`.

    The segments of a row do not influence one another: at the first token of a segment, in the
    order of reading, the state is set to the initial_BTD of that token, or to 0. Padding leaves the
    state as it is.

    Args:
        step: (inputs at t, state) → (state, output at t), for all rows at once.
        sizes: a pytree of integers, the size of each leaf of the state, float32 [B, size].
        inputs: a pytree whose leaves begin with batch and time.
        segments_BT: the tokens' segments, each without gaps.
        initial_BTD: float32, for every leaf of the state; all sizes are D then.
        reverse: whether to read from the last token to the first.

    Returns:
        the outputs of all times, a pytree whose leaves begin with batch and time.
    """
    previous_BT = jnp.pad(segments_BT, ((0, 0), (0, 1) if reverse else (1, 0)))
    previous_BT = previous_BT[:, 1:] if reverse else previous_BT[:, :-1]

    def body(state, inputs):
        x, real_B1, first_B1, initial_BD = inputs
        start = 0.0 if initial_BD is None else initial_BD
        state = jax.tree.map(lambda old_BD: jnp.where(first_B1, start, old_BD), state)
        new, output = step(x, state)
        return jax.tree.map(
            lambda new_BD, old_BD: jnp.where(real_B1, new_BD, old_BD), new, state
        ), output

    by_time = jax.tree.map(
        lambda a_BT: jnp.moveaxis(a_BT, 1, 0),
        (
            inputs,
            (segments_BT != 0)[..., None],
            (segments_BT != previous_BT)[..., None],
            initial_BTD,
        ),
    )
    zeros = jax.tree.map(lambda size: jnp.zeros((len(segments_BT), size), jnp.float32), sizes)
    _, outputs = jax.lax.scan(body, zeros, by_time, reverse=reverse)
    return jax.tree.map(lambda a_TB: jnp.moveaxis(a_TB, 0, 1), outputs)


RNNS: dict[str, type[Recurrent]] = {
    'lstm': Lstm,
    'gru': Gru,
}

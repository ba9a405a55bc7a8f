"""Recurrent cells and their loop over time: what `model.rnn` names.

D units of a layer, I inputs of it, Z gates of a cell.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.layers.linear import matmul

ATTENTIONS = ('none', 'additive', 'multiplicative')
State = tuple[
    jax.Array, ...
]  # of a layer: float32 [B, D] each; the first is what the layer puts out


class Weights(NamedTuple):
    """The learned arrays of a layer in one direction. Of its four biases a cell's gates have the
    first Z.
    """

    input_IZD: jax.Array
    recurrent_DZD: jax.Array
    bias_4D: jax.Array

    def project(self, x_BTI: jax.Array) -> jax.Array:
        """x_BTZD: what the gates take from the inputs, for all times in one matrix product."""
        x_BTZD = matmul(x_BTI, self.input_IZD, 1)
        return x_BTZD + self.bias_4D[None, None, : x_BTZD.shape[2]].astype(x_BTI.dtype)


@dataclasses.dataclass(frozen=True)
class Recurrent(abc.ABC):
    """A recurrent encoder-decoder: its cell, and how the decoder reads the source.

    attention: 'additive', whose score is vᵀ tanh(W h + U m + b) (Bahdanau et al. 2015, section
        A.1.2); 'multiplicative', with hᵀ W m (Luong et al. 2015, equation 8, general); or 'none':
        all that the decoder knows of the source is one vector, its first state (Cho et al. 2014,
        Sutskever et al. 2014).
    bidirectional: two layers read the source, one from each end.
    input_feeding: the decoder reads its last output beside the last token (Luong et al. 2015,
        section 3.3). What a token attends to is then known to the next; Bahdanau et al. have that
        in another form.
    """

    attention: str = 'additive'
    bidirectional: bool = True
    input_feeding: bool = False
    gates: ClassVar[int]
    states: ClassVar[int]

    def __post_init__(self):
        if self.attention not in ATTENTIONS:
            raise ValueError(f'attention={self.attention!r}, it takes {", ".join(ATTENTIONS)}')
        if self.input_feeding and not self.attends:
            raise ValueError(
                "input_feeding=True feeds back what attention found, and attention='none' finds nothing"
            )

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to the source."""
        return self.attention != 'none'

    def advance(self, weights: Weights, x_BZD: jax.Array, state: State) -> State:
        """The state after one more input, `Weights.project` of which is x_BZD."""
        h_BZD = matmul(state[0].astype(x_BZD.dtype), weights.recurrent_DZD, 1)
        return self.gate(
            x_BZD.astype(jnp.float32), h_BZD.astype(jnp.float32), weights.bias_4D, state
        )

    @abc.abstractmethod
    def gate(self, x_BZD: jax.Array, h_BZD: jax.Array, bias_4D: jax.Array, state: State) -> State:
        """The next state from what the gates take from the input, biases included, and from the
        last output.
        """

    def initial_bias(self, rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        """bias_4D before training."""
        return jnp.zeros(shape, dtype)


class Lstm(Recurrent):
    """Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000); no peepholes.

    i, f, o = σ(W x + U h + b) and g = tanh(W x + U h + b), a row each in the order i, f, g, o;
    c' = f ⊙ c + i ⊙ g;  h' = o ⊙ tanh(c').
    """

    gates = 4
    states = 2

    def gate(self, x_BZD: jax.Array, h_BZD: jax.Array, bias_4D: jax.Array, state: State) -> State:
        z_BZD = x_BZD + h_BZD
        i_BD, f_BD, g_BD, o_BD = (z_BZD[:, row] for row in range(4))
        c_BD = jax.nn.sigmoid(f_BD) * state[1] + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
        return jax.nn.sigmoid(o_BD) * jnp.tanh(c_BD), c_BD

    def initial_bias(self, rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        # Forgetting little at first is what lets gradients reach far back (Jozefowicz et al. 2015).
        return jnp.zeros(shape, dtype).at[1].set(1)


class Gru(Recurrent):
    """Cho et al. (2014), with the reset gate behind the matrix product, as in cuDNN.

    r, z = σ(W x + U h + b);  n = tanh(W x + b + r ⊙ (U h + b'));  h' = (1 − z) ⊙ n + z ⊙ h, a row each in the order
    r, z, n; b' is the fourth bias. The paper's U (r ⊙ h) would need a second product that waits for
    the first.
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
    """h_BTD of a layer that reads its inputs from the first to the last, or the other way; see
    `over_time`.
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
    """The outputs of `step(inputs at t, state) -> (state, output at t)` for all t, by `lax.scan`.

    No segment of a row knows of another: with the first token of each, in the order of reading, all
    leaves of the state start from the initial_BTD of that token, or from 0. Padding leaves the
    state as it is.

    Args:
        step: one token of all rows.
        sizes: of the state's leaves, float32 [B, size], as a pytree of integers.
        inputs: a pytree whose leaves, like those of the outputs, have batch and time in front.
        segments_BT: the tokens' segments, each without gaps.
        initial_BTD: float32; then all sizes are D.
        reverse: whether to read from the last token to the first.
    """
    neighbours_BT = jnp.pad(segments_BT, ((0, 0), (0, 1) if reverse else (1, 0)))
    neighbours_BT = neighbours_BT[:, 1:] if reverse else neighbours_BT[:, :-1]

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
            (segments_BT != neighbours_BT)[..., None],
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

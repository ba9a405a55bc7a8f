"""The modules that own the parameters of recurrent models: layers of cells, and attention.

Letters of shapes: D units of a layer and size of an embedding; E size of the memory, which is D, or
2 D where two layers read the source from both ends; I inputs of a layer; Z gates of a cell; C = E +
D.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.parameters import parameter
from transformer_jax.layers.recurrent import Recurrent, Weights

GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')

GLOROT_GATES = nn.initializers.variance_scaling(
    1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=2, batch_axis=1
)

# Logical axes of kernels [inputs, gates, units]: a device has all gates of its units.
GATES = ('embed', 'rank', 'mlp')


class Layer(nn.Module):
    """The parameters of a recurrent layer in one direction.

    Attributes:
        cell: of the layer.
        units: D.
    """

    cell: Recurrent
    units: int

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        """Return the weights of a layer with `inputs` inputs, I."""
        Z, D = self.cell.gates, self.units
        return Weights(
            parameter(self, 'input_kernel', (inputs, Z, D), GATES, GLOROT_GATES),
            parameter(self, 'recurrent_kernel', (D, Z, D), GATES, _orthogonal),
            parameter(self, 'bias', (4, D), ('rank', 'mlp'), self.cell.initial_bias),
        )


def _orthogonal(rng: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
    """Draw an orthogonal matrix for each gate (Bahdanau et al. 2015, section B.1)."""
    D, Z, _ = shape
    gates = [nn.initializers.orthogonal()(key, (D, D), dtype) for key in jax.random.split(rng, Z)]
    return jnp.stack(gates, axis=1)


class Alignment(nn.Module):
    """The parameters of attention, and of the output layer after it.

    Attributes:
        score: 'additive' or 'multiplicative', see `Recurrent`.
        units: D.
    """

    score: str
    units: int

    @nn.compact
    def __call__(self, memory_size: int) -> dict[str, jax.Array]:
        """Return the arrays by name; only the additive score has arrays of a query.

        Args:
            memory_size: E.
        """
        E, D = memory_size, self.units
        arrays = {
            'key_ED': parameter(self, 'key_kernel', (E, D), ('embed', 'mlp'), GLOROT),
            'out_CD': parameter(self, 'out_kernel', (E + D, D), ('embed', 'mlp'), GLOROT),
        }
        if self.score == 'additive':
            normal, zeros = nn.initializers.normal(D**-0.5), nn.initializers.zeros
            arrays |= {
                'query_ID': parameter(self, 'query_kernel', (D, D), ('embed', 'mlp'), GLOROT),
                'query_bias_D': parameter(self, 'query_bias', (D,), ('mlp',), zeros),
                'score_D': parameter(self, 'score', (D,), ('mlp',), normal),
            }
        return arrays

"""The loss of a model on a batch, as sums over its target tokens."""

from typing import cast

import flax.linen as nn
import jax

from transformer_jax.batch import Batch
from transformer_jax.layers.moe import Load
from transformer_jax.losses.chunks import split_rows
from transformer_jax.losses.cross_entropy import TokenSums, cross_entropy


def loss_sums(
    model: nn.Module,
    params: dict,
    batch: Batch,
    smoothing: jax.Array | float = 0.0,
    dropout: jax.Array | float | None = None,
    rng: jax.Array | None = None,
) -> tuple[TokenSums, list[Load]]:
    """Sum the loss of a batch over its target tokens.

    The loss of a mixture of experts is a mean over all tokens of the microbatch and not linear in
    them. It counts once for each target token, so that dividing by their number over all
    microbatches leaves the mean of the microbatches' losses.

    Args:
        model: of the parameters.
        params: unboxed.
        batch: rows [B, T].
        smoothing: ε of label smoothing; may be traced.
        dropout: the rate in training; may be traced. None: evaluation, nothing is dropped.
        rng: the key of dropout, in training.

    Returns:
        the sums, and the load of every mixture of experts in training.
    """
    variables = {'params': params}
    x_BTD, state = model.apply(
        variables,
        batch,
        dropout,
        method='features',
        mutable=['load'],
        rngs=None if rng is None else {'dropout': rng},
    )
    w_VD = cast(jax.Array, model.apply(variables, method='output_table'))
    x_RTD, targets_RT, weights_RT = map(split_rows, (x_BTD, batch.targets_BT, batch.weights_BT))
    sums = cross_entropy(
        x_RTD, w_VD, targets_RT, weights_RT, smoothing, model.architecture.logit_softcap
    )
    loads = [
        load.times(sums.weight)
        for load in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Load))
    ]
    return sums._replace(loss=sum((load.loss for load in loads), sums.loss)), loads

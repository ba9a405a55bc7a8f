"""FLOPs of a model, counted without making arrays or using a device.

FLOPs are those of matrix products alone, 2·m·n·k each, counted in the traced forward pass, so that
the count is right for every kind of attention. Masked scores are counted like others, recomputed
ones are not, and a `while` loop counts once.

`model_flops` is what MFU takes (Chowdhery et al. 2022, appendix B): there a causal score counts
half, since half of the pairs need no computing, whether or not an engine computes them.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from transformer_jax.attention.engines import ENGINES, KERNELS, site_incompatibility
from transformer_jax.attention.scored import CAUSAL_PAIRS
from transformer_jax.models import abstract_params, build_model, dummy_batch
from transformer_jax.models.architecture import Architecture, LayerAttention


@functools.lru_cache(maxsize=256)
def model_flops(architecture: Architecture, length: int) -> int:
    """Count the model FLOPs of a training step for each row: three times those forward.

    Padding counts. The number is the same on every machine and with every engine.

    Args:
        architecture: of the model.
        length: tokens of the source, and of the target.
    """
    model = build_model(portable(architecture))
    params = nn.meta.unbox(abstract_params(model))
    return 3 * forward_flops(model, params, 1, length, halve_causal=True)


def traceable(architecture: Architecture) -> Architecture:
    """Replace kernels by the chunked engine, which has the same products; for tracing only.

    A trace does not show the products inside a kernel, and without the kernel's accelerator the
    model could not even be traced.
    """
    return architecture.with_engines(
        lambda site, layer: 'chunked' if layer.engine in KERNELS else layer.engine
    )


def portable(architecture: Architecture) -> Architecture:
    """Replace kernels, and engines that cut rows, by those that `auto` chooses on one CPU.

    So the counts are the same on every machine, and a window is counted as the keys that it shows.
    """

    def choose(site: str, layer: LayerAttention) -> str:
        row = ENGINES.get(layer.engine)
        if row is None or not (row.platform or row.cuts_rows):
            return layer.engine
        refused = layer.kind.incompatibility(layer.position, 'blocked') or site_incompatibility(
            'blocked', layer.kind, architecture.site_spec(site)
        )
        return 'dense' if refused else 'blocked'

    return architecture.with_engines(choose)


def forward_flops(
    model: nn.Module, params: Any, rows: int, length: int, halve_causal: bool = False
) -> int:
    """Count the FLOPs from a batch to its logits.

    Args:
        model: the model.
        params: its parameters, arrays or abstract ones.
        rows: of the batch.
        length: tokens of the source, and of the target.
        halve_causal: see `matmul_flops`.
    """
    batch = jax.eval_shape(lambda: dummy_batch(model.architecture, rows, length))
    forward = jax.make_jaxpr(lambda params, batch: model.apply({'params': params}, batch))
    return matmul_flops(forward(params, batch), halve_causal)


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr, halve_causal: bool = False) -> int:
    """Sum 2·m·n·k over the matrix products of a traced function.

    Products in inner functions count, those in a scan as often as it runs, and of the branches of a
    `cond` the one with most.

    Args:
        jaxpr: of the function.
        halve_causal: count products over pairs of tokens half where attention is causal.
    """
    total = 0
    for equation in jaxpr.eqns:
        if halve_causal and CAUSAL_PAIRS in str(equation.source_info.name_stack):
            total += _equation_flops(equation, halve_causal=False) // 2
        else:
            total += _equation_flops(equation, halve_causal)
    return total


def _equation_flops(equation: Any, halve_causal: bool) -> int:
    inner = [
        leaf
        for leaf in jax.tree.leaves(list(equation.params.values()))
        if isinstance(leaf, Jaxpr | ClosedJaxpr)
    ]
    counts = [matmul_flops(each, halve_causal) for each in inner]
    match equation.primitive.name:
        case 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            shape = _shape(equation.invars[0])
            contractions = math.prod(shape[axis] for axis in contracted)
            return 2 * math.prod(_shape(equation.outvars[0])) * contractions
        case 'ragged_dot_general':  # Each row is multiplied by one of the matrices.
            return 2 * math.prod(_shape(equation.outvars[0])) * _shape(equation.invars[0])[-1]
        case 'scan':
            return equation.params['length'] * sum(counts)
        case 'cond':
            return max(counts)
        case _:
            return sum(counts)


def _shape(variable: Any) -> tuple[int, ...]:
    """Return the shape of a variable of a jaxpr."""
    return variable.aval.shape

"""Stacks of layers: parameters that are stacked for a scan, and what is kept for the backward pass.

A scan compiles one period of a pattern of layers, so that compile time does not grow with depth.
Its parameters are stacked: `decoder_0`, `decoder_1`, … become `decoder_layers/block_0` with a
leading axis 'layers'. Checkpoints have them apart, whether a model is scanned or not.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens
from transformer_jax.layers.moe import Load
from transformer_jax.models.architecture import Architecture
from transformer_jax.models.blocks import Block

AXIS = 'layers'  # the logical axis of stacked parameters

_policies = jax.checkpoint_policies
# What the backward pass finds stored; it computes the rest again. `model.remat` names a row.
REMATS: dict[str, Callable[..., Any] | None] = {
    'none': None,
    'full': _policies.nothing_saveable,
    'dots': _policies.dots_saveable,
    'dots_no_batch': _policies.dots_with_no_batch_dims_saveable,
    'offload': _policies.offload_dot_with_no_batch_dims('device', 'pinned_host'),
}


def stack_layers(tree: Any, architecture: Architecture) -> Any:
    """Stack the parameters of the layers that a model scans.

    Args:
        tree: parameters by layer, or a pytree of such trees (a train state); boxed or not.
        architecture: of the model; without a scan the tree is returned as it is.
    """
    return _convert(tree, architecture, '{}_0', _stack_node)


def split_layers(tree: Any, architecture: Architecture) -> Any:
    """Undo `stack_layers`: give every layer its parameters by name."""
    return _convert(tree, architecture, '{}_layers', _split_node)


def _convert(tree: Any, architecture: Architecture, mark: str, convert: Callable) -> Any:
    stacks = [stack for stack in ('encoder', 'decoder') if architecture.scan(stack)]
    marks = {mark.format(stack) for stack in stacks}

    def has_layers(node: Any) -> bool:
        return isinstance(node, Mapping) and not marks.isdisjoint(node)

    def one(node: Any) -> Any:
        if has_layers(node):
            for stack in stacks:
                node = convert(dict(node), stack, architecture.scan(stack))
        return node

    return jax.tree.map(one, tree, is_leaf=has_layers) if stacks else tree


def _stack_node(node: dict, stack: str, scan: Any) -> dict:
    layers = [node.pop(f'{stack}_{n}') for n in range(scan.layers)]
    node[f'{stack}_layers'] = {
        f'block_{n}': jax.tree.map(_stacked, *layers[n :: scan.period], is_leaf=_is_boxed)
        for n in range(scan.period)
    }
    return node


def _split_node(node: dict, stack: str, scan: Any) -> dict:
    blocks = node.pop(f'{stack}_layers')
    for n in range(scan.layers):
        take = functools.partial(_taken, index=n // scan.period)
        node[f'{stack}_{n}'] = jax.tree.map(
            take, blocks[f'block_{n % scan.period}'], is_leaf=_is_boxed
        )
    return node


def _is_boxed(node: Any) -> bool:
    return isinstance(node, nn.LogicallyPartitioned)


def _stacked(*leaves: Any) -> Any:
    if not _is_boxed(leaves[0]):
        return jnp.stack(leaves)
    values = jnp.stack([leaf.value for leaf in leaves])
    return leaves[0].replace(value=values, names=(AXIS, *leaves[0].names))


def _taken(leaf: Any, index: int) -> Any:
    if not _is_boxed(leaf):
        return leaf[index]
    return leaf.replace(value=leaf.value[index], names=leaf.names[1:])


def with_layers_apart(method: Callable) -> Callable:
    """Let a method of a scanned model see its layers apart, as decoding wants them."""

    @functools.wraps(method)
    def call(self: nn.Module, *arguments: Any) -> Any:
        architecture: Architecture = self.architecture
        if not (architecture.scan('encoder') or architecture.scan('decoder')):
            return method(self, *arguments)
        apart = self.clone(architecture=architecture.unscanned(), parent=None)
        params = split_layers(self.variables['params'], architecture)
        return apart.apply({'params': params}, *arguments, method=method.__name__)

    return call


def run_layers(
    model: nn.Module,
    stack: str,
    blocks: list[Block],
    x_BTD: jax.Array,
    tokens: Tokens,
    rate: jax.Array | None,
    **others: Any,
) -> jax.Array:
    """Process all tokens by all layers of a stack, scanned or rematerialized as the model asks.

    Scanned layers draw other dropout masks than the same layers apart.

    Args:
        model: that owns the blocks; its architecture says how they run.
        stack: 'encoder' or 'decoder'.
        blocks: by layer.
        x_BTD: the input of the first block.
        tokens: of x_BTD.
        rate: dropout's; None: no dropout.
        **others: further arguments of every block.
    """
    architecture: Architecture = model.architecture
    scan = architecture.scan(stack)
    if model.is_initializing() or (scan is None and architecture.remat == 'none'):
        for block in blocks:
            x_BTD = block(x_BTD, tokens, rate, **others)
        return x_BTD
    collections = ['load'] if model.is_mutable_collection('load') else []

    def run(blocks: list[Block], x_BTD: jax.Array, layers: list[Any]) -> tuple[jax.Array, Any]:
        sown = []
        for block, (params, rngs) in zip(blocks, layers, strict=True):
            x_BTD, state = block.apply(
                {'params': params}, x_BTD, tokens, rate, **others, rngs=rngs, mutable=collections
            )
            sown += jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Load))
        return x_BTD, sown

    params, loads = stack_layers(model.variables['params'], architecture), []
    if scan:
        free = [block.clone(parent=None) for block in blocks[: scan.period]]
        stacked = [params[f'{stack}_layers'][f'block_{n}'] for n in range(scan.period)]
        rngs = [{}] * scan.period
        if rate is not None:
            keys = jax.random.split(model.make_rng('dropout'), (scan.period, scan.repeats))
            rngs = [{'dropout': key} for key in keys]
        body = _rematerialized(functools.partial(run, free), architecture.remat, in_loop=True)
        x_BTD, sown = jax.lax.scan(body, x_BTD, list(zip(stacked, rngs)))
        loads = [_at(load, n) for n in range(scan.repeats) for load in sown]
    for n in range(scan.layers if scan else 0, len(blocks)):
        body = functools.partial(run, [blocks[n].clone(parent=None)])
        rngs = {} if rate is None else {'dropout': _scope(blocks[n]).rngs['dropout']}
        layer = [(params[f'{stack}_{n}'], rngs)]
        x_BTD, sown = _rematerialized(body, architecture.remat)(x_BTD, layer)
        loads += sown
    for load in loads:
        model.sow('load', 'load', load)
    return x_BTD


def _scope(block: Block) -> Any:
    assert block.scope is not None, 'the blocks belong to a model that is being applied'
    return block.scope


def _at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda a: a[index], tree)


def _rematerialized(body: Callable, remat: str, in_loop: bool = False) -> Callable:
    if remat == 'none':
        return body
    # In a loop the compiler cannot undo the rematerialization anyway.
    return jax.checkpoint(body, policy=REMATS[remat], prevent_cse=not in_loop)

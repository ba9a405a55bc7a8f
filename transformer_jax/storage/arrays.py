"""Names, dtypes and shapes of the arrays in a pytree, and their comparison."""

from collections.abc import Mapping
from typing import Any

import jax

from transformer_jax.errors import ConfigError


def named_leaves(tree: Any) -> dict[str, Any]:
    """Flatten a pytree to {'params/encoder/kernel': leaf, …}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def describe_arrays(tree: Any) -> dict[str, str]:
    """Return name, dtype and shape of every array: {'params/encoder/…': 'float32[8, 16]'}."""
    return {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in named_leaves(tree).items()}


def abstract_tree(described: Mapping[str, str], part: str) -> dict[str, Any]:
    """Build the tree of shapes and dtypes of one part of what `describe_arrays` returned.

    Args:
        described: {'params/encoder/…': 'float32[8, 16]'}.
        part: 'params'.
    """
    tree: dict[str, Any] = {}
    for name, text in described.items():
        if name.startswith(f'{part}/'):
            _, *folders, last = name.split('/')
            dtype, _, shape = text.rstrip(']').partition('[')
            inner = tree
            for folder in folders:
                inner = inner.setdefault(folder, {})
            sizes = [int(size) for size in shape.split(',') if size]
            inner[last] = jax.ShapeDtypeStruct(sizes, dtype)
    return tree


def check_same_arrays(step: int, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compare the arrays of a checkpoint with those that a model expects.

    Args:
        step: the step of the checkpoint, for the message.
        stored: the arrays of the checkpoint, as `describe_arrays` returns them.
        expected: those of the model.

    Raises:
        ConfigError: a name, shape or dtype differs; the message names the first such array.
    """
    for name in sorted(stored.keys() | expected.keys()):
        in_checkpoint, in_model = stored.get(name, 'absent'), expected.get(name, 'absent')
        if in_checkpoint != in_model:
            raise ConfigError(
                f'{name} is {in_checkpoint} in the checkpoint of step {step} and {in_model} in '
                'this model: use the configuration, JAX_DEFAULT_PRNG_IMPL and JAX_ENABLE_X64 that '
                'the checkpoint was written with'
            )

"""Optimizers: frozen dataclasses named by spec strings, mathematics by optax.

What an optimizer does to an array depends on what the array is, which its logical axes and its name
tell: see `Role`.
"""

import dataclasses
import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from transformer_jax.optim.roles import Role


class Optimizer(Protocol):
    """A rule that turns gradients into the direction of the update."""

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """The direction of the update, before learning rate and weight decay, of arrays of
        these `roles`.
        """

    def rule(self, role: Role) -> str:
        """What updates an array, in a word."""


@dataclasses.dataclass(frozen=True)
class Adam:
    """Kingma & Ba (2015); with `optim.weight_decay`, which is decoupled, AdamW
    (Loshchilov & Hutter 2019).
    """

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """The direction of the update, before learning rate and weight decay, of arrays of
        these `roles`.
        """
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def rule(self, role: Role) -> str:
        """What updates an array, in a word."""
        return 'adam'


@dataclasses.dataclass(frozen=True)
class Lion:
    """The sign of an interpolated momentum (Chen et al. 2023, Algorithm 2); a rate below Adam's
    suits it.
    """

    b1: float = 0.9
    b2: float = 0.99

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """As Adam's."""
        return optax.scale_by_lion(self.b1, self.b2)

    def rule(self, role: Role) -> str:
        """As Adam's."""
        return 'lion'


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Second moments kept as the rows' and the columns' means of a matrix (Shazeer & Stern 2018,
    Algorithm 4).

    Step n forgets 1 / n^`decay` of them. An update whose root mean square is above `clip` is scaled
    down to it. `relative`: updates are in units of their array's root mean square, at least 0.001.
    A kernel of heads is the matrix it stands for; a matrix with a side below `min_size`, and what
    is no matrix, keeps the moments of all its elements. Moments are not cut over devices: rows and
    columns are few.
    """

    decay: float = 0.8
    clip: float = 1.0
    relative: bool = True
    min_size: int = 128

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """As Adam's."""
        factored = optax.scale_by_factored_rms(
            decay_rate=self.decay, min_dim_size_to_factor=self.min_size
        )
        own_scale = optax.scale_by_param_block_rms() if self.relative else optax.identity()
        return optax.chain(
            _on_matrices(factored, roles), optax.clip_by_block_rms(self.clip), own_scale
        )

    def rule(self, role: Role) -> str:
        """As Adam's."""
        sides = role.matrix() if role.group == 'kernel' else (0, *role.shape)
        return (
            'adafactor' if sorted(sides)[-2:][0] >= self.min_size else 'adafactor without factors'
        )


def _on_matrices(
    transform: optax.GradientTransformation, roles: Any
) -> optax.GradientTransformation:
    """`transform` as it acts on kernels that are matrices; its state has no logical axes."""

    def matrices(tree):
        return jax.tree.map(Role.matrices, roles, nn.meta.unbox(tree))

    def update(updates, state, params=None):
        updates, state = transform.update(matrices(updates), state, matrices(params))
        return jax.tree.map(Role.whole, roles, updates), state

    return optax.GradientTransformation(lambda params: transform.init(matrices(params)), update)


@dataclasses.dataclass(frozen=True)
class Muon:
    """Kernels by their momentum made orthogonal (Jordan et al. 2024), all other arrays by Adam
    (`b1`, `b2`, `eps`).

    `steps` iterations of Newton and Schulz bring the singular values of Nesterov's momentum
    (`beta`) near 1. Times `rms` · √max(rows, columns) the update has a root mean square of about
    `rms`, as Adam's has, so that one learning rate and one weight decay suit both (Liu et al. 2025,
    equation 4); `rms=0`: times √max(1, columns / rows), as first published. A kernel of heads is
    one matrix, a kernel of experts is one for each.
    """

    beta: float = 0.95
    steps: int = 5
    rms: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """As Adam's."""

        def layout(role):  # without one, optax leaves an array of more than two dimensions to Adam
            return (
                MuonDimensionNumbers(role.inputs, role.outputs)
                if role.group == 'kernel'
                else optax.MaskedNode()
            )

        layouts = jax.tree.map(layout, roles)
        orthogonal = scale_by_muon(
            ns_steps=self.steps, beta=self.beta, weight_dimension_numbers=lambda _: layouts
        )

        def scaled(updates, _):
            return jax.tree.map(
                lambda role, a: self._scale(role) * a if role.group == 'kernel' else a,
                roles,
                updates,
            )

        rules = {
            'muon': optax.chain(orthogonal, optax.stateless(scaled)),
            'adam': optax.scale_by_adam(self.b1, self.b2, self.eps),
        }
        return optax.partition(rules, jax.tree.map(self.rule, roles))

    def rule(self, role: Role) -> str:
        """As Adam's."""
        return 'muon' if role.group == 'kernel' else 'adam'

    def _scale(self, role: Role) -> float:
        rows, columns = role.matrix()
        return self.rms * max(rows, columns) ** 0.5 if self.rms else max(1, columns / rows) ** 0.5


def summary(optimizer: Any, roles: Any, decayed: Any) -> str:
    """One line: which rule updates how many arrays of which group, and where weight decay acts.

    Args:
        optimizer: one of OPTIMIZERS.
        roles: a tree of Role.
        decayed: the same tree of booleans.
    """
    sizes: dict[tuple[str, str, bool], list[int]] = {}
    for role, decays in zip(jax.tree.leaves(roles), jax.tree.leaves(decayed), strict=True):
        sizes.setdefault((optimizer.rule(role), role.group, decays), []).append(
            math.prod(role.shape)
        )
    return '; '.join(
        f'{rule}{" with weight decay" if decays else ""}: {len(arrays)} {group}{"s"[: len(arrays) - 1]} '
        f'({sum(arrays):,} numbers)'
        for (rule, group, decays), arrays in sorted(sizes.items())
    )


OPTIMIZERS: dict[str, type[Optimizer]] = {
    'adam': Adam,
    'adafactor': Adafactor,
    'lion': Lion,
    'muon': Muon,
}

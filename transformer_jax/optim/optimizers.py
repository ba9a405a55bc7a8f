"""Optimizers: frozen dataclasses named by spec strings; optax does the mathematics.

What an optimizer does to an array depends on the array's `Role`, which follows from its name and
its logical axes.
"""

import abc
import dataclasses
import math
from collections.abc import Hashable
from typing import Any, cast

import flax.linen as nn
import jax
import optax
from optax import FactoredState
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from transformer_jax.optim.roles import Role
from transformer_jax.ranges import Ranged, number


class Optimizer(Ranged, abc.ABC):
    """A rule that turns gradients into the direction of the update."""

    @abc.abstractmethod
    def transform(self, roles: Any) -> optax.GradientTransformation:
        """Make the transformation of gradients, before learning rate and weight decay.

        Args:
            roles: the Role of every array, a tree like the parameters.
        """

    @abc.abstractmethod
    def rule(self, role: Role) -> str:
        """Name the rule that updates an array of this role, in a word."""


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015).

    `optim.weight_decay` is decoupled: with it this is AdamW (Loshchilov & Hutter 2019).
    """

    b1: float = number(0.9, low=0, below=1)
    b2: float = number(0.98, low=0, below=1)
    eps: float = number(1e-9, low=1e-30, high=1)

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """Make Adam's transformation; it is the same for all roles."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)

    def rule(self, role: Role) -> str:
        """Name the rule of every array, Adam."""
        return 'adam'


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, Algorithm 2).

    It needs a lower learning rate than Adam.
    """

    b1: float = number(0.9, low=0, below=1)
    b2: float = number(0.99, low=0, below=1)

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """Make Lion's transformation; it is the same for all roles."""
        return optax.scale_by_lion(self.b1, self.b2)

    def rule(self, role: Role) -> str:
        """Name the rule of every array, Lion."""
        return 'lion'


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor: second moments stored as the row and column means of a matrix.

    Shazeer & Stern (2018), Algorithm 4. Step n replaces a fraction 1 / n^`decay` of the moments. An
    update whose root mean square is above `clip` is scaled down to it. `relative`: updates are
    multiplied by the root mean square of their array, at least 0.001. A kernel of heads counts as
    one matrix. A matrix with a side below `min_size`, and any other array, keeps the moments of all
    its elements. Row and column means are small, so every device holds all of them.
    """

    decay: float = number(0.8, above=0, high=1)
    clip: float = number(1.0, low=1e-6, high=1e9)
    relative: bool = True
    min_size: int = number(128, low=1, high=1_000_000_000)

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """Make Adafactor's transformation; kernels are matrices to it."""
        factored = optax.scale_by_factored_rms(
            decay_rate=self.decay, min_dim_size_to_factor=self.min_size
        )
        scale = [optax.scale_by_param_block_rms()] if self.relative else []
        return optax.chain(
            _factored(factored, roles),
            *(_by_layer(own, roles) for own in (optax.clip_by_block_rms(self.clip), *scale)),
        )

    def rule(self, role: Role) -> str:
        """Name the rule: Adafactor with or without factored moments."""
        sides = role.matrix() if role.group == 'kernel' else (0, *role.shape[role.stacked :])
        factored = sorted(sides)[-2:][0] >= self.min_size  # the second largest side
        return 'adafactor' if factored else 'adafactor without factors'


def _factored(transform: optax.GradientTransformation, roles: Any) -> optax.GradientTransformation:
    """Apply factored moments to each array by itself, kernels as matrices, stacked layers apart.

    The state, an `optax.FactoredState`, has no logical axes.
    """
    layers: Any = FactoredState(cast(Any, None), 0, 0, 0)  # the axis of each part that counts them

    def init(params):
        def one(role, param):
            begin = jax.vmap(transform.init, out_axes=layers) if role.stacked else transform.init
            return begin(role.matrices(param))

        return _join(jax.tree.map(one, roles, nn.meta.unbox(params)), roles)

    def update(updates, state, params=None):
        def one(role, update, *arrays):
            parts = FactoredState(state.count, *arrays[:-1])
            step = transform.update
            if role.stacked:
                step = jax.vmap(step, in_axes=(0, layers, 0), out_axes=(0, layers))
            found, parts = step(role.matrices(update), parts, role.matrices(arrays[-1]))
            return role.whole(found), parts

        pairs = jax.tree.map(one, roles, updates, state.v_row, state.v_col, state.v, params)
        found, states = (jax.tree.map(lambda _, pair, n=n: pair[n], roles, pairs) for n in (0, 1))
        return found, _join(states, roles)

    return optax.GradientTransformation(init, update)


def _join(states: Any, roles: Any) -> FactoredState:
    """Make one state of the states of all arrays, a tree like `roles`; their counts are equal."""
    parts = [jax.tree.map(lambda _, state, n=n: state[n], roles, states) for n in range(4)]
    return FactoredState(jax.tree.leaves(parts[0])[0], *parts[1:])


def _by_layer(transform: optax.GradientTransformation, roles: Any) -> optax.GradientTransformation:
    """Apply a `transform` without a state to each array of a layer by itself, stacked or not."""

    def update(updates, state, params=None):
        def one(role, update, param):
            def own(update, param):
                return transform.update(update, state, param)[0]

            return (jax.vmap(own) if role.stacked else own)(update, param)

        return jax.tree.map(one, roles, updates, params), state

    return optax.GradientTransformation(transform.init, update)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon: kernels are updated by their orthogonalized momentum (Jordan et al. 2024).

    All other arrays are updated by Adam (`b1`, `b2`, `eps`). `steps` Newton-Schulz iterations bring
    the singular values of Nesterov's momentum (`beta`) near 1. The factor `rms` · √max(rows,
    columns) gives the update a root mean square of about `rms`, close to Adam's, so that one
    learning rate and one weight decay suit both (Liu et al. 2025, equation 4). `rms=0`: the factor
    is √max(1, columns / rows), as first published. A kernel of heads counts as one matrix, a kernel
    of experts as one matrix for each expert.
    """

    beta: float = number(0.95, low=0, below=1)
    steps: int = number(5, low=1, high=100)
    rms: float = number(0.2, low=0, high=1_000)
    b1: float = number(0.9, low=0, below=1)
    b2: float = number(0.95, low=0, below=1)
    eps: float = number(1e-8, low=1e-30, high=1)

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """Make the transformation: Muon's for kernels, Adam's for the other arrays."""

        def layout(role):
            # Without a layout, optax would leave an array of more than two dimensions to Adam.
            if role.group != 'kernel':
                return optax.MaskedNode()
            return MuonDimensionNumbers(role.inputs, role.outputs)

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

        rules: dict[Hashable, optax.GradientTransformation] = {
            'muon': optax.chain(orthogonal, optax.stateless(scaled)),
            'adam': optax.scale_by_adam(self.b1, self.b2, self.eps),
        }
        return optax.partition(rules, jax.tree.map(self.rule, roles))

    def rule(self, role: Role) -> str:
        """Name the rule: Muon for kernels, Adam for the other arrays."""
        return 'muon' if role.group == 'kernel' else 'adam'

    def _scale(self, role: Role) -> float:
        """Compute the factor on the orthogonalized momentum of a kernel."""
        rows, columns = role.matrix()
        return self.rms * max(rows, columns) ** 0.5 if self.rms else max(1, columns / rows) ** 0.5


def summary(optimizer: Optimizer, roles: Any, decayed: Any) -> str:
    """Describe in one line which rule updates which arrays, and which of them decay.

    Args:
        optimizer: of the run.
        roles: the Role of every array, a tree.
        decayed: whether weight decay acts on the array, the same tree of booleans.
    """
    sizes: dict[tuple[str, str, bool], list[int]] = {}
    for role, decays in zip(jax.tree.leaves(roles), jax.tree.leaves(decayed), strict=True):
        sizes.setdefault((optimizer.rule(role), role.group, decays), []).append(
            math.prod(role.shape)
        )
    parts = []
    for (rule, group, decays), arrays in sorted(sizes.items()):
        decay = ' with weight decay' if decays else ''
        plural = '' if len(arrays) == 1 else 's'
        parts.append(f'{rule}{decay}: {len(arrays)} {group}{plural} ({sum(arrays):,} numbers)')
    return '; '.join(parts)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    'adam': Adam,
    'adafactor': Adafactor,
    'lion': Lion,
    'muon': Muon,
}

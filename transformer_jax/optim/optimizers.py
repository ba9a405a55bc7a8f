"""Optimizers and learning-rate schedules: frozen dataclasses named by spec strings, mathematics
by optax.

What an optimizer does to an array depends on what the array is, which its logical axes and its name
tell: see `Role`.
"""

import dataclasses
import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

TABLE_AXES = ('vocab', 'position')  # of what is looked up by token or by place
INPUT_AXES = ('embed', 'rank')  # every kernel has one of these


@dataclasses.dataclass(frozen=True)
class Role:
    """What an array of a model is to an optimizer.

    group: 'kernel' maps vectors to vectors; 'embedding' is a table of tokens or places; 'vector' is
    all else: norms, biases, numbers of a head.
    batch, inputs, outputs: of a kernel, the dimensions that count its copies (experts), that it
    sums over and that it makes: (1, 2) for the outputs of [D, N, H], (0, 1) for the inputs of [N,
    H, D].
    """

    shape: tuple[int, ...]
    group: str
    batch: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of a kernel."""
        rows, columns = (
            math.prod(self.shape[i] for i in dims) for dims in (self.inputs, self.outputs)
        )
        return rows, columns

    def matrices(self, a: jax.Array) -> jax.Array:
        """A kernel as a stack of matrices, its copies in front; another array as it is."""
        if self.group != 'kernel':
            return a
        return a.transpose(self.batch + self.inputs + self.outputs).reshape(-1, *self.matrix())

    def whole(self, a: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        if self.group != 'kernel':
            return a
        order = self.batch + self.inputs + self.outputs
        return a.reshape([self.shape[i] for i in order]).transpose(
            [order.index(i) for i in range(len(order))]
        )


def roles(boxed: Any) -> Any:
    """The Role of every array of a tree, whose arrays are boxed with their logical axes where they
    have any.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if isinstance(leaf, nn.meta.AxisMetadata):
            return _role(name, leaf.names, leaf.value.shape)
        return _role(name, INPUT_AXES[:1] * leaf.ndim, leaf.shape)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )


def _role(name: str, axes: tuple[str, ...], shape: tuple[int, ...]) -> Role:
    batch = (0,) if axes[:1] == ('experts',) else ()
    dims = tuple(range(len(batch), len(axes)))
    if len(dims) < 2 or name.endswith('bias') or not set(axes) & {*TABLE_AXES, *INPUT_AXES}:
        return Role(shape, 'vector')
    if set(axes) & set(TABLE_AXES):
        return Role(shape, 'embedding')
    back = (
        axes[-1] == 'embed' and axes[dims[0]] != 'embed'
    )  # to the model's dimension, from all others
    cut = len(dims) - 1 if back else 1
    return Role(shape, 'kernel', batch, dims[:cut], dims[cut:])


class Optimizer(Protocol):
    """A rule that turns gradients into the direction of the update."""

    def transform(self, roles: Any) -> optax.GradientTransformation:
        """The direction of the update, before learning rate and weight decay, of arrays of
        these `roles`.
        """

    def rule(self, role: Role) -> str:
        """What updates an array, in a word."""


class Schedule(Protocol):
    """The learning rate over the steps of a run."""

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        """The factor on `optim.learning_rate` in step n ≥ 1 of `steps`."""


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


@dataclasses.dataclass(frozen=True)
class Paper:
    """d_model^-0.5 · min(n^-0.5, n · warmup^-1.5) (Vaswani et al. 2017, equation 3)."""

    warmup: int = 4000

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return d_model**-0.5 * jnp.minimum(n**-0.5, n * self.warmup**-1.5)


@dataclasses.dataclass(frozen=True)
class InverseSqrt:
    """A linear rise to 1 over `warmup` steps, then √(warmup / n)."""

    warmup: int = 4000

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return jnp.minimum(n / self.warmup, (self.warmup / n) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear rise to 1 over `warmup` steps, then a linear fall to `end` at the last step."""

    warmup: int = 0
    end: float = 0.0

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return _warm(n, self.warmup, 1 + (self.end - 1) * _progress(n, self.warmup, steps))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A linear rise to 1 over `warmup` steps, then half a cosine to `end`
    (Loshchilov & Hutter 2017).
    """

    warmup: int = 0
    end: float = 0.0

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        fall = 0.5 * (1 + jnp.cos(jnp.pi * _progress(n, self.warmup, steps)))
        return _warm(n, self.warmup, self.end + (1 - self.end) * fall)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A linear rise to 1 over `warmup` steps, then 1."""

    warmup: int = 0

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return _warm(n, self.warmup, jnp.ones_like(n))


def _warm(n: jax.Array, warmup: int, after: jax.Array) -> jax.Array:
    return jnp.where(n < warmup, n / max(warmup, 1), after)


def _progress(n: jax.Array, warmup: int, steps: int) -> jax.Array:
    return jnp.clip((n - warmup) / max(steps - warmup, 1), 0, 1)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    'adam': Adam,
    'adafactor': Adafactor,
    'lion': Lion,
    'muon': Muon,
}
SCHEDULES: dict[str, type[Schedule]] = {
    'paper': Paper,
    'inverse_sqrt': InverseSqrt,
    'linear': Linear,
    'cosine': Cosine,
    'constant': Constant,
}

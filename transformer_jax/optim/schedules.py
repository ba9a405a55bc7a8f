"""Learning-rate schedules: frozen dataclasses named by spec strings."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp


class Schedule(Protocol):
    """The learning rate over the steps of a run."""

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        """The factor on `optim.learning_rate` in step n ≥ 1 of `steps`."""


@dataclasses.dataclass(frozen=True)
class Noam:
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


SCHEDULES: dict[str, type[Schedule]] = {
    'noam': Noam,
    'inverse_sqrt': InverseSqrt,
    'linear': Linear,
    'cosine': Cosine,
    'constant': Constant,
}

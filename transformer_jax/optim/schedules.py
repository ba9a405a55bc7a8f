"""Learning-rate schedules: frozen dataclasses named by spec strings."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.ranges import Ranged, number


class Schedule(Ranged, abc.ABC):
    """A learning rate as a function of the step.

    `uses_steps`: it depends on the number of steps of the whole run, so that this cannot grow.
    """

    uses_steps: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        """Compute the factor on `optim.learning_rate`.

        Args:
            n: float32, the step, from 1.
            steps: of the whole run.
            d_model: D of the model.
        """


@dataclasses.dataclass(frozen=True)
class Noam(Schedule):
    """The paper's schedule d_model^-0.5 · min(n^-0.5, n · warmup^-1.5).

    Vaswani et al. (2017), equation 3; known by the name of its second author, Noam Shazeer.
    """

    warmup: int = number(4000, low=1, high=1_000_000_000)
    uses_steps: ClassVar[bool] = False

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return d_model**-0.5 * jnp.minimum(n**-0.5, n * self.warmup**-1.5)


@dataclasses.dataclass(frozen=True)
class InverseSqrt(Schedule):
    """A linear rise to 1 over `warmup` steps, then √(warmup / n); `warmup=1` is √(1 / n) alone."""

    warmup: int = number(4000, low=1, high=1_000_000_000)
    uses_steps: ClassVar[bool] = False

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return jnp.minimum(n / self.warmup, (self.warmup / n) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A linear rise to 1 over `warmup` steps, then a linear fall to `end` at the last step."""

    warmup: int = number(0, low=0, high=1_000_000_000)
    end: float = number(0.0, low=0, high=1)

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return _warm_up(n, self.warmup, 1 + (self.end - 1) * _progress(n, self.warmup, steps))


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """A linear rise to 1 over `warmup` steps, then half a period of a cosine down to `end`.

    Loshchilov & Hutter (2017), without restarts.
    """

    warmup: int = number(0, low=0, high=1_000_000_000)
    end: float = number(0.0, low=0, high=1)

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        fall = 0.5 * (1 + jnp.cos(jnp.pi * _progress(n, self.warmup, steps)))
        return _warm_up(n, self.warmup, self.end + (1 - self.end) * fall)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """A linear rise to 1 over `warmup` steps, then 1."""

    warmup: int = number(0, low=0, high=1_000_000_000)
    uses_steps: ClassVar[bool] = False

    def __call__(self, n: jax.Array, steps: int, d_model: int) -> jax.Array:
        return _warm_up(n, self.warmup, jnp.ones_like(n))


def _warm_up(n: jax.Array, warmup: int, after: jax.Array) -> jax.Array:
    """Rise linearly from 0 to 1 over `warmup` steps, then follow `after`."""
    return jnp.where(n < warmup, n / max(warmup, 1), after)


def _progress(n: jax.Array, warmup: int, steps: int) -> jax.Array:
    """Compute the fraction, from 0 to 1, of the steps after warmup that are done."""
    return jnp.clip((n - warmup) / max(steps - warmup, 1), 0, 1)


SCHEDULES: dict[str, type[Schedule]] = {
    'noam': Noam,
    'inverse_sqrt': InverseSqrt,
    'linear': Linear,
    'cosine': Cosine,
    'constant': Constant,
}

"""Variants of equal size, for a comparison at equal parameters or at equal FLOPs.

The size that is solved for is `model.d_ff`; in a mixture of experts it is the size of each expert,
and the parameters of all experts count. A recurrent model has no `model.d_ff`: there it is
`model.d_model`, which is the size of its embeddings too. Embeddings grow with it and do not count,
tied or not, as in other models; in FLOPs the product that makes the logits counts for all models.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from transformer_jax import config as config_lib
from transformer_jax.ablation.seed_values import Reference, references_of
from transformer_jax.config import Components
from transformer_jax.errors import ConfigError
from transformer_jax.models import MODELS
from transformer_jax.profiling import flops as costs
from transformer_jax.schema import ExperimentConfig

MEASURES: dict[str, tuple[str, Callable[[Components], float]]] = {
    'params': ('non-embedding parameters', costs.non_embedding_params),
    'flops': ('forward FLOPs per target token', costs.flops_per_token),
}
EVEN = 8  # multiples of it are fast on devices
TOLERANCE = 0.01  # share of the target: how far the count of a multiple of 8 may be from it


@dataclasses.dataclass(frozen=True)
class Matched:
    """A variant at the size of its reference.

    Attributes:
        config: with that size.
        chosen: what was solved for, {'model.d_ff': 1984}; {}: nothing.
        value: the parameters or FLOPs that the variant has; 0: not measured.
        target: those of the reference.
    """

    config: ExperimentConfig
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    value: float = 0
    target: float = 0

    @property
    def residual(self) -> float:
        """The relative error, (value − target) / target."""
        return (self.value - self.target) / self.target if self.target else 0.0


def match_sizes(
    configs: Mapping[str, ExperimentConfig], reference: Reference, kind: str
) -> dict[str, Matched]:
    """Solve the size of every variant so that it has as much as its reference.

    The reference stays as it is. A size that a variant sets itself is replaced, unless it is right
    already. Among sizes within 1% of the target, the best multiple of 8 is taken.

    Args:
        configs: the variants, by name.
        reference: one of them, or that of each.
        kind: 'params', those outside embeddings; 'flops', see `flops.flops_per_token`; 'none':
            nothing is solved.

    Raises:
        ConfigError: variants have more than their reference even at size 1; all of them are listed.
    """
    if kind == 'none':
        return {name: Matched(config) for name, config in configs.items()}
    what, count = MEASURES[kind]

    def measure(config: ExperimentConfig) -> float:
        return count(config_lib.resolve(config))

    references, matched, reasons = references_of(configs, reference), {}, []
    targets = {home: measure(configs[home]) for home in dict.fromkeys(references.values())}
    for name, home in references.items():
        config, target = configs[name], targets[home]
        try:
            matched[name] = (
                Matched(config, {}, target, target)
                if name == home
                else _solved(config, target, measure)
            )
        except _TooLarge as error:
            least = error.args[0]
            reasons.append(
                f'{name}: {least:,.0f} {what} with model.{_key(config)}=1 already, '
                f'{least - target:,.0f} ({least / target - 1:.1%}) more than the {target:,.0f} of '
                f'{home}'
            )
    if reasons:
        raise ConfigError(
            f'match={kind!r}: variants that cannot be as small as their reference; make them '
            'smaller otherwise, or compare without match:\n  ' + '\n  '.join(reasons)
        )
    return matched


class _TooLarge(Exception):
    """Raised with what a variant has at size 1, where that is more than the target."""


def _solved(
    config: ExperimentConfig, target: float, measure: Callable[[ExperimentConfig], float]
) -> Matched:
    key = _key(config)

    @functools.cache
    def count(size: int) -> float:
        return measure(_resized(config, size))

    size, value = getattr(config.model, key), measure(config)
    if value != target:
        # A count traces the model, which takes a second. It is affine in d_ff (gated layers: up to
        # a whole number of ⅔ d_ff), and quadratic in d_model: two or three counts give all others.
        law = through({n: count(n) for n in ((3, 48) if key == 'd_ff' else (3, 24, 48))})
        if law(1) > target:
            raise _TooLarge(count(1))
        size = closest(law, target)
        if not math.isclose(count(size), law(size), rel_tol=1e-9):
            size = closest(count, target, size)
        value = count(size)
    resized = config_lib.replace(config, model=_resized(config, size).model)
    return Matched(resized, {f'model.{key}': size}, value, target)


def _key(config: ExperimentConfig) -> str:
    return MODELS[config.model.kind].size_key


def _resized(config: ExperimentConfig, size: int) -> ExperimentConfig:
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, **{_key(config): size})
    )


def through(points: Mapping[int, float]) -> Callable[[int], float]:
    """Return the polynomial of the lowest degree through {x: y} (Lagrange), without rounding."""

    def value(x: int) -> float:
        return float(
            sum(
                Fraction(y) * math.prod(Fraction(x - b, a - b) for b in points if b != a)
                for a, y in points.items()
            )
        )

    return value


def closest(count: Callable[[int], float], target: float, start: int = 1) -> int:
    """Find the size, 1 or more, whose count is nearest to the target.

    A multiple of 8 is preferred where its count is within 1% of the target.

    Args:
        count: of a size; it never falls as the size grows.
        target: what the count should be.
        start: where to begin, best near the answer.
    """
    low = high = start
    while low > 1 and count(low) >= target:
        low = max(low - 2 * (start - low) - 1, 1)
    while count(high) < target:
        high += 2 * (high - start) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)

    def distance(size: int) -> float:
        return abs(count(size) - target)

    exact = min(low, high, key=distance)
    even = min((max(exact // EVEN + n, 1) * EVEN for n in (0, 1)), key=distance)
    return even if distance(even) < TOLERANCE * target else exact

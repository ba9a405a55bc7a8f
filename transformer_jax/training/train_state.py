"""The state of a training run, and how it begins."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from transformer_jax.config.components import Components
from transformer_jax.models import abstract_params, init_params
from transformer_jax.models.architecture import Architecture
from transformer_jax.optim import optimizers as optim
from transformer_jax.optim.roles import roles
from transformer_jax.schema import ExperimentConfig


@flax.struct.dataclass
class Hyper:
    """Numbers that may change without recompiling: float32 scalars."""

    learning_rate: jax.Array
    dropout: jax.Array
    label_smoothing: jax.Array
    weight_decay: jax.Array


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
        step: steps taken, skipped ones included; int32.
        params: float32 parameters, nested dictionaries.
        opt_state: of the optimizer, see `optimizer`.
        hyper: numbers that may change without recompiling.
        rng: the key that dropout's keys are folded from.
        skipped: steps whose update was not finite and was not applied; int32.
        ema: the moving average of the parameters, where `train.ema` is not 0.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    hyper: Hyper
    rng: jax.Array
    skipped: jax.Array
    ema: Any = None

    @property
    def eval_params(self) -> Any:
        """The parameters that evaluation and decoding use."""
        return self.params if self.ema is None else self.ema


def init_state(
    components: Components, model: nn.Module, key: jax.Array | None = None
) -> TrainState:
    """Make the state before the first step.

    Args:
        components: of the experiment.
        model: of the experiment.
        key: in place of that of `train.seed`; may be traced, so that one program serves all seeds.

    Returns:
        the state, its parameters boxed with their logical axes (`nn.meta.unbox` opens them).
    """
    config = components.config
    params_rng, rng = jax.random.split(
        jax.random.PRNGKey(config.train.seed) if key is None else key
    )
    params = init_params(model, params_rng)
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema else None
    opt_state = optimizer(components, model).init(params)
    return TrainState(zero, params, opt_state, make_hyper(config), rng, zero, ema)


def make_hyper(config: ExperimentConfig) -> Hyper:
    """Collect the numbers of a configuration that may change without recompiling."""
    values = (
        config.optim.learning_rate,
        config.model.dropout,
        config.train.label_smoothing,
        config.optim.weight_decay,
    )
    return Hyper(*(jnp.asarray(value, jnp.float32) for value in values))


def dropout_rate(architecture: Architecture, hyper: Hyper) -> jax.Array | float:
    """Return the dropout rate of training.

    It is the constant 0.0, for which no masks are drawn, where the architecture has no dropout.
    """
    return hyper.dropout if architecture.dropout else 0.0


def optimizer(components: Components, model: nn.Module) -> optax.GradientTransformation:
    """Build the map from gradients of the mean loss to the direction of the update.

    Learning rate and weight decay are applied by `train_step`, since they are traced.
    """
    direction, norm = components.optimizer.transform(_roles(model)), components.config.optim.clip
    clip = optax.clip_by_global_norm(norm) if norm else optax.identity()
    return optax.chain(clip, direction)


def decay_mask(config: ExperimentConfig, model: nn.Module) -> Any:
    """Mark the arrays that weight decay acts on: a tree of booleans."""
    groups = ('kernel', 'embedding') if config.optim.decay_embeddings else ('kernel',)
    return jax.tree.map(lambda role: role.group in groups, _roles(model))


def optimizer_summary(components: Components, model: nn.Module) -> str:
    """Describe in one line for the log which rule updates which arrays."""
    weight_decay = components.config.optim.weight_decay > 0
    decays = jax.tree.map(
        lambda decays: decays and weight_decay, decay_mask(components.config, model)
    )
    return optim.summary(components.optimizer, _roles(model), decays)


@functools.lru_cache(maxsize=8)
def _roles(model: nn.Module) -> Any:
    """Map every array of a model to its `Role`."""
    return roles(abstract_params(model))

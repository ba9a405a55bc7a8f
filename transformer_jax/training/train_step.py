"""One training step and one evaluation step: pure functions, the same on one device and on many."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from transformer_jax.batch import Batch
from transformer_jax.config.components import Components
from transformer_jax.layers.moe import Load, load_metrics
from transformer_jax.losses.cross_entropy import Sums, cross_entropy
from transformer_jax.models import dummy_batch
from transformer_jax.models.architecture import Architecture
from transformer_jax.optim import optimizers as optim
from transformer_jax.schema import ExperimentConfig


@flax.struct.dataclass
class Hyper:
    """Numbers that may vary without recompiling: float32 scalars."""

    learning_rate: jax.Array
    dropout: jax.Array
    label_smoothing: jax.Array
    weight_decay: jax.Array


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes. `step` counts steps taken, the skipped ones included."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    hyper: Hyper
    rng: jax.Array
    skipped: jax.Array
    ema: dict | None = None  # the moving average of params, where `train.ema` is not 0

    @property
    def evaluated(self) -> dict:
        """The parameters that evaluation and decoding use."""
        return self.params if self.ema is None else self.ema


@functools.lru_cache(maxsize=8)
def roles(model: nn.Module) -> Any:
    """What each array of a model is to an optimizer: a tree of `optim.Role`."""
    batch = dummy_batch(model.architecture)
    return optim.roles(jax.eval_shape(model.init, jax.random.PRNGKey(0), batch)['params'])


def optimizer(components: Components, model: nn.Module) -> optax.GradientTransformation:
    """Gradients of the mean loss to the direction of the update, before learning rate and
    weight decay.
    """
    direction, norm = components.optimizer.transform(roles(model)), components.config.optim.clip
    clip = optax.clip_by_global_norm(norm) if norm else optax.identity()
    return optax.chain(clip, direction)


def decayed(config: ExperimentConfig, model: nn.Module) -> Any:
    """Whether weight decay acts on an array: a tree of booleans."""
    groups = ('kernel', 'embedding') if config.optim.decay_embeddings else ('kernel',)
    return jax.tree.map(lambda role: role.group in groups, roles(model))


def optimizer_summary(components: Components, model: nn.Module) -> str:
    """One line for the log: what updates which arrays."""
    config = components.config
    return optim.summary(
        components.optimizer,
        roles(model),
        jax.tree.map(
            lambda decays: decays and config.optim.weight_decay > 0, decayed(config, model)
        ),
    )


def hyper(config: ExperimentConfig) -> Hyper:
    """The numbers of a configuration that may vary without recompiling."""
    return Hyper(
        *(
            jnp.asarray(value, jnp.float32)
            for value in (
                config.optim.learning_rate,
                config.model.dropout,
                config.train.label_smoothing,
                config.optim.weight_decay,
            )
        )
    )


def dropout_rate(architecture: Architecture, hyper: Hyper) -> jax.Array | float:
    """The rate in training; 0.0, for which no masks are drawn, where the configuration says so."""
    return hyper.dropout if architecture.dropout else 0.0


def init_state(
    components: Components, model: nn.Module, key: jax.Array | None = None
) -> TrainState:
    """The state before the first step, its parameters boxed with their logical axes
    (`nn.meta.unbox` opens them).

    `key`: that of `train.seed` where it is traced, so that one program serves all seeds.
    """
    config = components.config
    params_rng, rng = jax.random.split(
        jax.random.PRNGKey(config.train.seed) if key is None else key
    )
    params = model.init(params_rng, dummy_batch(model.architecture))['params']
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params) if config.train.ema else None
    return TrainState(
        zero, params, optimizer(components, model).init(params), hyper(config), rng, zero, ema
    )


def loss_sums(
    model: nn.Module,
    params: dict,
    batch: Batch,
    smoothing: jax.Array,
    dropout: jax.Array | float | None = None,
    rng: jax.Array | None = None,
) -> Sums:
    """The loss of a batch as sums over its target tokens; `dropout` is the rate in training,
    None evaluates.
    """
    return _routed_sums(model, params, batch, smoothing, dropout, rng)[0]


def _routed_sums(
    model: nn.Module,
    params: dict,
    batch: Batch,
    smoothing: jax.Array,
    dropout: jax.Array | float | None,
    rng: jax.Array | None,
) -> tuple[Sums, list[Load]]:
    """The sums, and the load of every mixture of experts in training.

    The loss of a mixture is a mean over all tokens of the microbatch and not linear in them. It
    counts once for each target token, so that dividing by their number over all microbatches leaves
    the mean of the microbatches' losses.
    """
    variables = {'params': params}
    x_BTD, state = model.apply(
        variables,
        batch,
        dropout,
        method='features',
        mutable=['load'],
        rngs=None if rng is None else {'dropout': rng},
    )
    w_VD = model.apply(variables, method='output_table')
    sums = cross_entropy(
        x_BTD, w_VD, batch.targets_BT, batch.weights_BT, smoothing, model.architecture.logit_softcap
    )
    loads = [
        load.times(sums.weight)
        for load in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Load))
    ]
    return sums._replace(loss=sum((load.loss for load in loads), sums.loss)), loads


def eval_step(model: nn.Module, params: dict, batch: Batch, smoothing: jax.Array) -> Sums:
    """The sums of a batch without dropout."""
    return loss_sums(model, params, batch, smoothing)


def predict(model: nn.Module, params: dict, batch: Batch) -> jax.Array:
    """The most likely token at each target place, given the true ones before it: int32
    predicted_BT.
    """
    x_BTD = model.apply({'params': params}, batch, method='features')
    return model.apply({'params': params}, x_BTD, method='logits').argmax(-1).astype(jnp.int32)


def train_step(
    model: nn.Module,
    components: Components,
    state: TrainState,
    batch: Batch,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from `train.accumulate` microbatches.

    Gradients of the summed loss are summed over microbatches, and over the mapped `axis` where
    there is one, then divided once by the number of target tokens. Where loss, gradient or update
    is not finite the parameters and the optimizer's state stay as they were.

    Returns:
        the next state, and scalars: loss and nll in nats per token, accuracy, tokens, grad_norm,
            learning_rate, finite.
    """
    config = components.config
    hyper, dropout = state.hyper, dropout_rate(model.architecture, state.hyper)
    rng = jax.random.fold_in(state.rng, state.step)
    if axis:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))

    def objective(params, microbatch, rng):
        sums, loads = _routed_sums(model, params, microbatch, hyper.label_smoothing, dropout, rng)
        return sums.loss, (sums, loads)

    gradient = jax.grad(objective, has_aux=True)
    if config.train.accumulate == 1:
        grads, (sums, loads) = gradient(state.params, batch, rng)
    else:

        def body(carry, inputs):
            return jax.tree.map(jnp.add, carry, gradient(state.params, *inputs)), None

        microbatches = jax.tree.map(lambda a: _interleave(a, config.train.accumulate), batch)
        rngs = jax.random.split(rng, config.train.accumulate)
        first = jax.tree.map(lambda a: a[0], (microbatches, rngs))
        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, state.params, *first)
        )
        (grads, (sums, loads)), _ = jax.lax.scan(body, zeros, (microbatches, rngs))
    if axis:
        grads, sums, loads = jax.lax.psum((grads, sums, loads), axis)

    tokens = jnp.maximum(sums.weight, 1)
    grads = jax.tree.map(lambda g: g / tokens, grads)
    direction, opt_state = optimizer(components, model).update(grads, state.opt_state, state.params)
    rate = hyper.learning_rate * components.schedule(
        state.step + 1.0, config.train.steps, config.model.d_model
    )
    updates = jax.tree.map(
        lambda decays, d, p: -rate * (d + hyper.weight_decay * p if decays else d),
        decayed(config, model),
        direction,
        state.params,
    )
    grad_norm = optax.tree.norm(grads)
    finite = (
        jnp.isfinite(sums.loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    )

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    params = keep(optax.apply_updates(state.params, updates), state.params)
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + (1 - finite.astype(jnp.int32)),
        ema=state.ema and keep(_moved(state.ema, params, config.train.ema, state.step), state.ema),
    )
    metrics = {
        'loss': sums.loss / tokens,
        'nll': sums.nll / tokens,
        'accuracy': sums.correct / tokens,
        'tokens': sums.weight,
        'grad_norm': grad_norm,
        'learning_rate': rate,
        'finite': finite,
    }
    return new_state, metrics | load_metrics(loads, tokens)


def replica_step(
    model: nn.Module, components: Components, state: TrainState, batch: Batch, live: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step` of one run among several: one that is not `live`, or that has diverged, keeps
    its state for good.
    """
    new_state, metrics = train_step(model, components, state, batch)
    if components.config.train.on_nonfinite == 'stop':
        live &= state.skipped == 0
    return jax.tree.map(lambda new, old: jnp.where(live, new, old), new_state, state), metrics


def _moved(ema: dict, params: dict, decay: float, step: jax.Array) -> dict:
    # A young average forgets faster, or the first parameters would weigh most for
    # 1 / (1 − decay) steps.
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, ema, params)


def _interleave(a_BT: jax.Array, parts: int) -> jax.Array:
    # Microbatch i takes rows i, i + parts, …: each device keeps the rows it has.
    return jnp.moveaxis(a_BT.reshape(a_BT.shape[0] // parts, parts, *a_BT.shape[1:]), 1, 0)

"""The functions that `import transformer_jax` offers to notebooks and to programs of your own.

They load a configuration, build a model and its training step, train, and open a run. Each is
imported when it is first used, see `transformer_jax.__init__`.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
from etils import epath

from transformer_jax import config as config_lib
from transformer_jax import data, models
from transformer_jax.ablation import config_file
from transformer_jax.batch import Batch
from transformer_jax.config.arguments import checked
from transformer_jax.data import Data
from transformer_jax.errors import ConfigError
from transformer_jax.inference.run import Run
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.schema import ExperimentConfig
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training import programs, train_state
from transformer_jax.training import train_step as train_steps
from transformer_jax.training.programs import TrainProgram
from transformer_jax.training.train import train as train_to_the_end
from transformer_jax.training.train_state import TrainState

Log = Callable[[str], None]


def load_config(
    source: str | os.PathLike | ml_collections.ConfigDict,
    overrides: Mapping[str, Any] | None = None,
) -> ExperimentConfig:
    """Load a configuration, replace some of its keys, and check it.

    Args:
        source: 'FILE.py' or 'FILE.py:ARGUMENT', as `--config` takes it; a relative path is looked
            for in the current directory, then in the root of the source. Or a ConfigDict, such as
            `transformer_jax.config.default_config()` returns.
        overrides: keys to replace, as {'train.steps': 100}.

    Raises:
        ConfigError: there is no such file, it fails, a key is unknown or of the wrong type, or the
            experiment cannot run; the message is that of the command line.

    Example:
        >>> config = load_config('configs/number_words.py:en-de', {'train.steps': 100})
    """
    loaded = config_file(str(source)) if isinstance(source, str | os.PathLike) else source
    if not isinstance(loaded, ml_collections.ConfigDict):
        raise ConfigError(f'{source}: this is a {type(loaded).__name__}, not a ConfigDict')
    values = loaded.to_dict()
    for key, value in (overrides or {}).items():
        if not isinstance(key, str) or not key:
            raise ConfigError(f"overrides: {key!r} is no key: write it as 'train.steps'")
        if isinstance(value, Mapping):
            keys = ', '.join(repr(f'{key}.{name}') for name in value)
            raise ConfigError(f'{key}={value!r} is a section: override its keys, {keys}')
        section, _, name = key.rpartition('.')
        part = values
        for each in section.split('.') if section else ():
            part = part.setdefault(each, {})
            if not isinstance(part, dict):
                raise ConfigError(f'{key}: {each} is a key and no section')
        part[name] = value
    return config_lib.from_dict(values)


@checked
def build_model(config: ExperimentConfig) -> nn.Module:
    """Build the Flax module of an experiment.

    `model.init(key, batch)` makes parameters, boxed with the names of their axes
    (`flax.linen.meta.unbox` opens them); `model.apply({'params': params}, batch)` gives float32
    logits_BTV of the targets of a `transformer_jax.batch.Batch`.

    Example:
        >>> model = build_model(config)
        >>> logits_BTV = model.apply({'params': state.params}, batch)
    """
    return models.build_model(config_lib.resolve(config).architecture)


@checked
def init_state(config: ExperimentConfig, seed: int | None = None) -> TrainState:
    """Make the state before the first step: parameters, optimizer, dropout's key.

    Args:
        config: of the experiment.
        seed: in place of `train.seed`.

    Returns:
        a pytree of arrays on the first device; `.params` are the parameters, nested dictionaries
        of float32 arrays. The numbers are those that `train` starts from.

    Example:
        >>> state = init_state(config)
    """
    return _init_state(config, jax.random.PRNGKey(config.train.seed if seed is None else seed))


@functools.partial(jax.jit, static_argnums=0)
def _init_state(config: ExperimentConfig, key: jax.Array) -> TrainState:
    components = config_lib.resolve(config)
    model = models.build_model(components.architecture)
    return nn.meta.unbox(train_state.init_state(components, model, key))


def train_step(
    config: ExperimentConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Update a state once: a pure function, to be compiled with `jax.jit`, for one device.

    `make_program` has the same step compiled for all devices of this machine.

    Args:
        config: of the experiment; static.
        state: before the step.
        batch: rows [B, T]; B is a multiple of `train.accumulate`.

    Returns:
        the next state, and scalars: loss and nll in nats per target token, accuracy, tokens,
        grad_norm, learning_rate, finite. Where loss, gradient or update is not finite, parameters
        and optimizer stay as they were.

    Example:
        >>> step = jax.jit(functools.partial(train_step, config))
        >>> state, metrics = step(state, batch)
    """
    components = config_lib.resolve(config)
    model = models.build_model(components.architecture)
    return train_steps.train_step(model, components, state, batch)


@checked
def make_program(config: ExperimentConfig) -> TrainProgram:
    """Compile initialization and training step for the devices of this machine.

    Returns:
        a program with `model`; `init_state(seed=None)`, the state laid out on the devices;
        `batches(data)`, the training batches of `load_data`, placed, without end;
        `place(batch)`, which places a batch of your own; and `train_step(state, batch)`, which
        returns the next state and metrics as `transformer_jax.train_step` does. It consumes the
        given state: use the returned one.

    Raises:
        ConfigError: this machine does not have `model.engine`, or cannot fill `parallel.mesh`.

    Example:
        >>> program, data = make_program(config), load_data(config, 'runs/mine')
        >>> state = program.init_state()
        >>> for batch in itertools.islice(program.batches(data), 100):
        ...     state, metrics = program.train_step(state, batch)
    """
    return programs.make_program(config_lib.resolve(config))


@checked
def load_data(
    config: ExperimentConfig,
    workdir: epath.PathLike,
    splits: Sequence[str] = ('train',),
    log: Log = print,
) -> Data:
    """Read the data of an experiment, with its tokenizer.

    Args:
        config: of the experiment.
        workdir: where the tokenizer is read from, or stored once it was learned from the training
            text; nothing else is written.
        splits: what is read at once, of 'train', 'validation' and 'test'; others than 'train' are
            read when they are asked for.
        log: receives remarks.

    Returns:
        the data: `tokenizer`, `task`, `steps_per_epoch`, `shapes` (rows, length) of the batches,
        and `eval_batches(split, …)`; `make_program` shows how to train on it.

    Raises:
        DataError, ConfigError: the data, or the keys that describe it, cannot be used.

    Example:
        >>> load_data(config, 'runs/mine').tokenizer.encode(['twenty-four'])
    """
    components = config_lib.resolve(config)
    return data.load_data(components.pipeline, Workdir(workdir).tokenizer_path, log, splits)


@checked
def train(config: ExperimentConfig, workdir: epath.PathLike, log: Log = print) -> Run:
    """Train to `train.steps`, or continue from what the workdir holds, and open the run.

    The same as the command `train`: an interrupted call (the stop button of a notebook) saves its
    state, and the same call continues from there.

    Args:
        config: of the experiment.
        workdir: the directory of all files of the run; it is made if it does not exist.
        log: receives a line every `train.log_every` steps and for each evaluation.

    Returns:
        the run at its best checkpoint, or the last where none was evaluated. With
        `train.num_seeds` > 1 that of the first seed; `open_run(f'{workdir}/{seed}')` opens others.

    Raises:
        ConfigError: the workdir was made with another configuration, or the data cannot be used
            with this one.
        DataError: the data cannot be read.
        WorkdirError: the directory is in use by another run, read-only, full or damaged.
        Diverged: the loss became infinite or NaN.
        Stopped: by an interrupt; the state is saved.

    Example:
        >>> run = train(config, 'runs/notebook')
        >>> run.metrics('train')['loss']
    """
    train_to_the_end(config, workdir, log)
    alone = config.train.num_seeds == 1
    return open_run(workdir if alone else epath.Path(workdir) / str(config.train.seed), log=log)


@checked
def open_run(
    workdir: epath.PathLike, checkpoint: str | int = '', log: Log = print, mesh: str = ''
) -> Run:
    """Open a run that `train`, the command `train` or an ablation made, from its workdir alone.

    Args:
        workdir: of the run; it may still be training.
        checkpoint: 'best', 'last', 'avg:N' (the mean of the newest N) or a step; by default the
            best, or the last where none was evaluated. It is verified before it is used.
        log: receives remarks.
        mesh: of the devices here, such as 'fsdp=8', as the flag `--mesh`; by default that of the
            run where it fits, else all rows over all devices.

    Raises:
        ConfigError: the directory holds no run or several seeds, has no such checkpoint, or the
            mesh does not fit the devices.
        WorkdirError: a file of the workdir is damaged.
        DataError: the tokenizer cannot be read, or is not that of training.

    Example:
        >>> run = open_run('runs/demo', 'avg:3')
        >>> run.translate(['seven', 'twenty-four'])
    """
    return Run(TrainedRun(workdir, str(checkpoint), log, {}, mesh=mesh))

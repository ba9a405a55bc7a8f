"""Begin a run with the parameters of another one: `train.init_from`."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from transformer_jax.data.tokenizers import Tokenizer, load_tokenizer
from transformer_jax.errors import ConfigError
from transformer_jax.schema import DataConfig
from transformer_jax.storage.arrays import named_leaves
from transformer_jax.storage.seed_checkpoints import open_checkpoints
from transformer_jax.storage.selection import select_steps
from transformer_jax.storage.workdir import Workdir
from transformer_jax.training.train_state import TrainState

SOURCE = re.compile('(?P<workdir>.*?)(:(?P<choice>best|last|avg:[0-9]+|[0-9]+))?')
SHOWN = 8  # names of arrays in a line of the log


def parse_source(source: str) -> tuple[str, str]:
    """Split a value of `train.init_from` into the workdir and the choice of a checkpoint, or ''."""
    match = SOURCE.fullmatch(source)
    assert match is not None, 'the pattern takes every text'
    return match['workdir'], match['choice'] or ''


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Let errors about another run name the key, in place of the flags that others give it by."""
    try:
        yield
    except ConfigError as error:
        problem = re.sub('^(--workdir|checkpoint)=', '', str(error))
        raise ConfigError(f'train.init_from={source!r}: {problem}') from error


def copy_tokenizer(source: str, directory: epath.Path, data: DataConfig) -> None:
    """Take the tokenizer of the other run, where it has one.

    Its parameters have a meaning for that vocabulary alone.

    Args:
        source: the value of `train.init_from`.
        directory: where this run keeps its tokenizer.
        data: the section of this run's configuration.

    Raises:
        ConfigError: there is no other run, or its tokenizer is of another kind or size.
    """
    with _naming(source):
        workdir = Workdir(parse_source(source)[0])
        workdir.read_config()  # Says so where there is no run.
    if not (workdir.tokenizer_path / 'tokenizer.json').exists():
        return
    tokenizer = load_tokenizer(workdir.tokenizer_path)
    if tokenizer.kind != data.tokenizer:
        raise ConfigError(
            f'train.init_from={source!r} has a tokenizer of {tokenizer.kind}: set '
            f'data.tokenizer={tokenizer.kind!r}, it is {data.tokenizer!r}'
        )
    if tokenizer.vocab_size != data.vocab_size:
        raise ConfigError(
            f'data.vocab_size={data.vocab_size}, but train.init_from={source!r} has a vocabulary '
            f'of {tokenizer.vocab_size}: set data.vocab_size={tokenizer.vocab_size}'
        )
    tokenizer.save(directory)


def start_from(
    source: str, state: TrainState, tokenizer: Tokenizer, log: Callable[[str], None]
) -> TrainState:
    """Replace the parameters of a fresh state by those of another run, by their names.

    Parameters that the other run lacks keep their random start; those that this model lacks are
    left out. Both are logged. A moving average begins at the same parameters.

    Args:
        source: the value of `train.init_from`.
        state: of one run, or of seeds side by side, which all begin with the same parameters.
        tokenizer: of this run.
        log: receives one line.

    Raises:
        ConfigError: there is no such run or checkpoint, its vocabulary is another, a parameter has
            another shape, or none has the same name.
        WorkdirError: the checkpoint is damaged.
    """
    path, choice = parse_source(source)
    with _naming(source):
        workdir = Workdir(path)
        checkpoints = open_checkpoints(workdir)
        best = checkpoints.best_step() is not None
        steps = select_steps(checkpoints, choice or ('best' if best else 'last'))
    record = checkpoints.record(steps[0])
    if record['meta']['tokenizer'] != tokenizer.sha256:
        raise ConfigError(
            f'train.init_from={source!r} has another vocabulary than this run: its parameters have '
            'no meaning here'
        )
    part = 'ema' if any(name.startswith('ema/') for name in record['arrays']) else 'params'
    abstract = checkpoints.abstract_part(steps[0], part)
    theirs = named_leaves(checkpoints.params(abstract, steps, part))
    ours = named_leaves(state.params)
    _require_same_shapes(source, theirs, state)
    common = theirs.keys() & ours.keys()
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _placed(theirs.get(_name(path)), leaf), state.params
    )
    log(
        f'parameters of {workdir.path}, step {", ".join(map(str, steps))}: {len(common)} arrays'
        + _listed('new', ours.keys() - common)
        + _listed('left out', theirs.keys() - common)
    )
    ema = None if state.ema is None else jax.tree.map(lambda a: a.copy(), params)
    return dataclasses.replace(state, params=params, ema=ema)


def _require_same_shapes(source: str, theirs: dict[str, Any], state: TrainState) -> None:
    ours, seeds = named_leaves(state.params), state.step.ndim  # A group has an axis of seeds.
    shapes = {name: leaf.shape[seeds:] for name, leaf in ours.items()}
    if not theirs.keys() & shapes.keys():
        raise ConfigError(f'train.init_from={source!r} has no parameter of this model')
    wrong = [
        f'{name} is {list(theirs[name].shape)} there and {list(shapes[name])} here'
        for name in sorted(theirs.keys() & shapes.keys())
        if theirs[name].shape != shapes[name]
    ]
    if wrong:
        raise ConfigError(
            f'train.init_from={source!r} has parameters of other shapes: {"; ".join(wrong[:3])}'
            + (f' and {len(wrong) - 3} more' if len(wrong) > 3 else '')
        )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _placed(theirs: Any, ours: jax.Array) -> jax.Array:
    """Lay an array out as ours is; ours may have an axis of seeds in front."""
    if theirs is None:
        return ours
    whole = np.broadcast_to(np.asarray(theirs).astype(ours.dtype), ours.shape)
    return jax.make_array_from_callback(ours.shape, ours.sharding, lambda index: whole[index])


def _listed(title: str, names: Any) -> str:
    if not names:
        return ''
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return f'; {title}: {", ".join(sorted(names)[:SHOWN])}{more}'

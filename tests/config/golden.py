"""Golden configs: what each shipped configuration resolves to, and the parameters of its model,
as text.

`make golden` writes them anew; each line that changes wants its
reason in the commit.
"""

import functools
import re
import runpy
from pathlib import Path

import jax
from helpers.build import build

from transformer_jax import config as config_lib
from transformer_jax.config import resolve
from transformer_jax.training import train_state

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / 'golden'
# Every file of configs/ with the arguments that it takes.
CONFIGS = (
    'number_words:en-de',
    'number_words_rnn:en-de,lstm',
    'number_words_rnn:en-de,gru',
    'multi30k:en-de',
    'multi30k_cpu:en-de',
    'wmt14:en-de,base',
    'wmt14:en-de,big',
    'tiny_shakespeare:cpu',
    'tiny_shakespeare:gpu',
    'listops:small',
    'listops:lra,linear',
    'generated:copy',
    'generated:mqar',
    'generated:addition,decoder_only',
    'generated:parity',
    'lm1b:softmax',
    'lm1b:1b',
    'imdb:softmax',
    'cifar10:softmax',
    'cifar10:linear',
)


def load(name: str) -> config_lib.ExperimentConfig:
    """The experiment of 'file:argument'."""
    file, _, argument = name.partition(':')
    return config_lib.from_config_dict(
        runpy.run_path(str(ROOT / 'configs' / f'{file}.py'))['get_config'](argument)
    )


def path_of(name: str) -> Path:
    """Where the golden text of a configuration lies."""
    return FOLDER / f'{re.sub(r"[^a-z0-9_]+", "-", name)}.txt'


def describe(name: str) -> str:
    """Every key with its value, then every parameter with type, shape and logical axes; layers that
    are alike once.
    """
    config = load(name)
    lines = [f'{key} = {value!r}' for key, value in config_lib.flatten(config).items()]
    boxed = jax.eval_shape(
        functools.partial(train_state.init_state, resolve(config), build(config))
    ).params
    layers = {}
    for path, box in jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: hasattr(leaf, 'names')
    ):
        text = jax.tree_util.keystr(path, simple=True, separator='.')
        shape = ', '.join(
            f'{axis} {size}' for axis, size in zip(box.names, box.value.shape, strict=True)
        )
        layer = re.sub(r'_\d+(?=\.)', '_*', text)
        layers.setdefault((layer, f'{box.value.dtype}[{shape}]'), []).append(text)
    lines += [
        '',
        *(
            f'{layer}: {array}' + (f' × {len(paths)}' if len(paths) > 1 else '')
            for (layer, array), paths in layers.items()
        ),
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    FOLDER.mkdir(exist_ok=True)
    for name in CONFIGS:
        path_of(name).write_text(describe(name))

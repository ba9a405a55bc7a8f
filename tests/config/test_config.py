"""The configuration: strict conversion, one clear message for whatever cannot run, and no key that
nothing reads.
"""

import ast
import dataclasses
import json
from pathlib import Path

import ml_collections
import pytest

from transformer_jax import config as config_lib
from transformer_jax.config import (
    default_config,
    flatten,
    from_config_dict,
    from_dict,
    resolve,
    to_dict,
)
from transformer_jax.config.resolve import SPECS
from transformer_jax.config.values import CHOICES, RANGES
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.schema import ExperimentConfig

PACKAGE = Path(config_lib.__file__).parents[1]
DEFAULTS = flatten(ExperimentConfig())


def changed(**changes):
    """The default dictionary with other values: `changed(train__steps=3)`; a value of `...` removes
    the key.
    """
    values = to_dict(ExperimentConfig())
    for key, value in changes.items():
        *sections, name = key.split('__')
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
        if value is ...:
            del section[name]
    return values


def message(**changes):
    """What is said of a changed default configuration."""
    with pytest.raises(ConfigError) as caught:
        from_dict(changed(**changes))
    return str(caught.value)


def test_the_defaults_are_the_papers_base_model():
    config = from_config_dict(default_config())
    assert config == ExperimentConfig()
    model, decode = config.model, config.decode
    assert (model.encoder_layers, model.decoder_layers, model.d_model, model.d_ff) == (
        6,
        6,
        512,
        2048,
    )
    assert heads() == HeadDims(8, 8, 64, 64)
    assert (model.dropout, config.train.label_smoothing) == (0.1, 0.1)
    assert (model.norm_placement, model.position, model.ffn) == ('post', 'sinusoidal', 'relu')
    assert model.tie_embeddings == 'all'
    assert (config.optim.optimizer, config.optim.schedule) == (
        'adam(b1=0.9, b2=0.98, eps=1e-9)',
        'noam(warmup=4000)',
    )
    assert (decode.beam, decode.length_penalty, decode.max_extra_tokens) == (4, 0.6, 50)


def test_a_config_survives_json():
    config = from_dict(
        changed(train__steps=7, model__num_kv_heads=2, parallel__mesh__fsdp=4, data__source='fr')
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert flatten(config)['parallel.mesh.fsdp'] == 4
    assert flatten(config) == flatten(to_dict(config))


def test_a_config_dict_is_locked_and_typed():
    config = default_config()
    with pytest.raises(AttributeError):
        config.train.stepz = 3
    with pytest.raises(TypeError):
        config.train.steps = 'many'
    config.train.steps = 3
    assert from_config_dict(config).train.steps == 3


def test_an_unknown_key_is_refused_with_the_nearest_name():
    assert (
        message(train__stepz=3) == "train.stepz: unknown configuration key; did you mean 'steps'?"
    )
    assert message(trian={}) == "trian: unknown configuration key; did you mean 'train'?"
    assert message(parallel__mesh__tensors=1).startswith(
        'parallel.mesh.tensors: unknown configuration key; did you'
    )
    assert 'valid: context, data, fsdp, tensor' in message(parallel__mesh__zzz=1)


@pytest.mark.parametrize(
    ('key', 'said'),
    [
        ('trian.steps', "trian: unknown configuration key; did you mean 'train'?"),
        ('train.stepz', "train.stepz: unknown configuration key; did you mean 'steps'?"),
        ('train.steps.more', 'train.steps.more: steps is no section of the configuration'),
    ],
)
def test_an_unknown_key_is_no_override(key, said):
    with pytest.raises(ConfigError, match=said.replace('?', r'\?')):
        config_lib.override(ExperimentConfig(), {key: 3})


def test_a_missing_key_is_named():
    assert message(train__steps=...).startswith('missing configuration key train.steps;')
    assert message(optim=...).startswith('missing configuration key optim;')


@pytest.mark.parametrize('key', DEFAULTS)
def test_every_key_refuses_another_type(key):
    wrong = 'x' if type(DEFAULTS[key]) is not str else 3
    said = message(**{key.replace('.', '__'): wrong})
    given, taken = type(wrong).__name__, type(DEFAULTS[key]).__name__
    assert said == f'{key}={wrong!r} is of type {given}, it takes {taken}'
    assert f'{key}=None is of type NoneType' in message(**{key.replace('.', '__'): None})


def test_types_are_converted_only_where_nothing_is_lost():
    assert type(from_dict(changed(optim__learning_rate=1)).optim.learning_rate) is float
    assert message(train__steps=1.0) == 'train.steps=1.0 is of type float, it takes int'
    assert message(train__steps=True) == 'train.steps=True is of type bool, it takes int'
    assert message(train=3) == 'train=3 is no section: it holds the keys of TrainConfig'


# Choices that only some configurations can have.
NEEDED = {
    'parallel': {'model__norm_placement': 'pre'},
    'blocked': {'model__attention': 'softmax(mask=window(4))', 'model__cross_attention': 'linear'},
    'cudnn': {'model__dtype': 'bfloat16'},
    'splash': {'model__head_dim': 128},
    'decoder_only': {'data__task': 'text_file'},
    'classifier': {
        'data__task': 'parity',
        'data__vocab_size': 6,
        'data__batching': 'buckets(lengths=(64,))',
    },
}


@pytest.mark.parametrize('key', CHOICES)
def test_choices_name_what_is_valid(key):
    assert (
        message(**{key.replace('.', '__'): 'zzzz'})
        == f"{key}='zzzz': valid: {', '.join(sorted(CHOICES[key]))}"
    )
    nearly = CHOICES[key][-1] + 'x'
    assert message(**{key.replace('.', '__'): nearly}).startswith(f'{key}={nearly!r}: ')
    for choice in CHOICES[key]:
        from_dict(changed(**NEEDED.get(choice, {}) | {key.replace('.', '__'): choice}))


@pytest.mark.parametrize('key', SPECS)
def test_a_malformed_spec_is_refused_with_its_key_and_place(key):
    said = message(**{key.replace('.', '__'): 'zzz(1)'})
    assert said.startswith(f"{key}='zzz(1)' names the unknown 'zzz': ")
    assert said.endswith('\n  zzz(1)\n  ^')


@pytest.mark.parametrize(
    'site', ['attention', 'encoder_attention', 'decoder_attention', 'cross_attention']
)
def test_an_unknown_kind_of_attention_is_refused_at_its_site(site):
    said = message(**{f'model__{site}': 'sofmax'})
    assert said.startswith(
        f"model.{site}='sofmax' names the unknown 'sofmax': did you mean 'softmax'?"
    )


NUMBERS = [key for key, value in DEFAULTS.items() if type(value) in (int, float)]


def test_every_number_has_a_range():
    assert set(NUMBERS) == set(RANGES)


@pytest.mark.parametrize('key', NUMBERS)
def test_ranges(key):
    interval = RANGES[key]
    low, high = interval.low, interval.high
    if type(DEFAULTS[key]) is int:
        bad = [low - 1 - 2 * len(interval.also), high + 1, 10**30]
    else:
        bad = [-0.5, 2e9 if high is None else 2.0 * high, float('nan'), float('inf'), 10.0**300]
    for value in bad:
        assert message(**{key.replace('.', '__'): value}).endswith(
            f'{key}={value} is outside {interval}'
        )


def heads(**changes):
    return resolve(from_dict(changed(**changes))).architecture.heads


def test_heads_must_divide():
    assert message(model__d_model=500) == (
        'model.d_model=500 is not divisible by model.num_heads=8; '
        'set model.head_dim, or for example model.num_heads=10'
    )
    assert heads(model__d_model=500, model__head_dim=64) == HeadDims(8, 8, 64, 64)
    assert (
        message(model__num_kv_heads=3)
        == 'model.num_heads=8 is not divisible by model.num_kv_heads=3'
    )
    assert heads(model__num_kv_heads=2, model__value_dim=16) == HeadDims(8, 2, 64, 16)


def test_sines_and_cosines_come_in_pairs():
    odd = {'model__d_model': 27, 'model__num_heads': 3}
    assert message(**odd).startswith("model.d_model=27 is odd: model.position='sinusoidal'")
    from_dict(changed(**odd, model__position='none'))


def test_positions_must_reach_as_far_as_the_text():
    said = message(model__position='learned(max_len=100)')
    assert said.startswith(
        "model.position='learned(max_len=100)' ends before the text, at 100 tokens: "
    )
    assert 'decode.max_extra_tokens=50' in said
    assert said.endswith('it must reach to 178')  # 128 in the longest bucket, 50 beyond
    from_dict(changed(model__position='learned(max_len=178)'))


@pytest.mark.parametrize(
    ('mesh', 'end'),
    [
        ({'data': 0}, 'mesh.data=0 is outside -1 or 1 ≤ value ≤ 1,000,000'),
        ({'fsdp': -2}, 'mesh.fsdp=-2 is outside -1 or 1 ≤ value ≤ 1,000,000'),
        ({'data': -1, 'tensor': -1}, 'at most one size may be -1 (the rest)'),
    ],
)
def test_a_mesh_has_positive_sizes_and_one_rest(mesh, end):
    said = message(**{f'parallel__mesh__{axis}': size for axis, size in mesh.items()})
    assert said.startswith('parallel.mesh')
    assert said.endswith(end)


def test_pmap_is_data_parallel_only():
    said = message(parallel__mode='pmap', parallel__mesh__tensor=2)
    assert said.startswith("parallel.mode='pmap' is data parallel only: set parallel.mesh.fsdp=1")


# Read by a name made at run time: `getattr(model, f'{site}_attention')`.
READ_BY_NAME = {'encoder_attention', 'decoder_attention', 'cross_attention'}


def reads(tree):
    """The attributes that a module reads, save in functions that only check."""
    checks = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name.lstrip('_').startswith('check')
        for node in ast.walk(function)
    }
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and id(node) not in checks
    }


def test_every_key_is_read():
    read = set().union(*(reads(ast.parse(path.read_text())) for path in PACKAGE.rglob('*.py')))
    unread = [key for key in DEFAULTS if key.rpartition('.')[2] not in read | READ_BY_NAME]
    assert not unread, f'nothing reads {unread}'
    sections = {field.name for field in dataclasses.fields(ExperimentConfig)}
    assert sections <= read


@pytest.mark.parametrize(
    'path', sorted((PACKAGE.parent / 'configs').glob('*.py')), ids=lambda path: path.stem
)
def test_config_files_are_valid_and_explain_themselves(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    scope = {}
    exec(compile(tree, path, 'exec'), scope)  # as `--config` does
    config = scope['get_config']()
    assert isinstance(config, ml_collections.ConfigDict)
    from_config_dict(config)

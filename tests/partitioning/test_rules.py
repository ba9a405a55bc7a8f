"""Logical axes to mesh axes: every parameter has a rule, and what cannot be cut is refused before
anything compiles.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers.build import build_model
from jax.sharding import PartitionSpec

from transformer_jax.config.resolve import parse_components, resolve
from transformer_jax.errors import ConfigError
from transformer_jax.partitioning.mesh import mesh_sizes
from transformer_jax.partitioning.rules import RULES, parse_rules, partition_specs
from transformer_jax.schema import ExperimentConfig, MeshConfig, ParallelConfig
from transformer_jax.training import train_state

ONE = {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1}
VARIANTS = {
    'paper': {},
    'all axes': {
        'norm_placement': 'pre',
        'tie_embeddings': 'none',
        'position': 'learned(max_len=16)',
    },
    'grouped': {'num_kv_heads': 2, 'head_dim': 8},
}


def boxed_state(model_config, vocab_size=32):
    config = ExperimentConfig(model=model_config)
    model = build_model(model_config, vocab_size)
    return jax.eval_shape(lambda: train_state.init_state(parse_components(config), model))


def boxed(names, shape):
    """A tree with one parameter, `layer.kernel`."""
    return {
        'layer': {
            'kernel': nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
        }
    }


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_has_a_rule_and_its_moments_follow_it(variant, tiny):
    state = boxed_state(tiny(**VARIANTS[variant]))
    specs = partition_specs(state, ONE | {'fsdp': 2, 'tensor': 2})
    boxes = jax.tree.leaves(state.params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    assert all(
        isinstance(box, nn.meta.AxisMetadata) and set(box.names) <= set(RULES) for box in boxes
    )
    adam = next(
        s
        for s in jax.tree.leaves(specs.opt_state, is_leaf=lambda s: hasattr(s, 'mu'))
        if hasattr(s, 'mu')
    )
    assert adam.mu == adam.nu == specs.params
    assert specs.step == specs.rng == specs.hyper.learning_rate == PartitionSpec()


def test_the_layout_of_the_papers_model(tiny):
    params = partition_specs(boxed_state(tiny()), ONE).params
    layer = params['decoder_0']
    fsdp, tensor = ('fsdp',), ('tensor',)
    assert params['target_embedding']['table'] == PartitionSpec(('tensor', 'fsdp'), None)
    assert layer['attention']['queries']['query']['kernel'] == PartitionSpec(fsdp, tensor, None)
    assert layer['cross']['out']['kernel'] == PartitionSpec(tensor, None, fsdp)
    assert layer['ffn']['in_kernel'] == PartitionSpec(fsdp, tensor)
    assert layer['ffn']['in_bias'] == PartitionSpec(tensor)
    assert layer['ffn']['out_kernel'] == PartitionSpec(tensor, fsdp)
    assert layer['ffn_connection']['norm']['scale'] == PartitionSpec(None)


@pytest.mark.parametrize(
    ('config', 'devices', 'expected'),
    [
        ((-1, 1, 1), 8, (8, 1, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 1, 2)),
        ((1, -1, 4), 8, (1, 2, 1, 4)),
        ((2, 2, 2), 8, (2, 2, 1, 2)),
        ((-1, 1, 1, 4), 8, (2, 1, 4, 1)),
        ((-1, 1, 1), 1, (1, 1, 1, 1)),
    ],
)
def test_a_mesh_is_filled_with_the_devices_there_are(config, devices, expected):
    assert tuple(mesh_sizes(MeshConfig(*config), devices).values()) == expected


@pytest.mark.parametrize(
    ('config', 'devices', 'message'),
    [
        ((2, 2, 1), 8, 'needs 4 devices, there are 8'),
        ((4, 4, 1), 8, 'needs 16 devices, there are 8'),
        ((-1, 3, 1), 8, 'needs a multiple of 3 devices, there are 8'),
        ((-1, 16, 1), 8, 'needs a multiple of 16 devices, there are 8'),
    ],
)
def test_a_mesh_that_does_not_match_is_refused(config, devices, message):
    with pytest.raises(ConfigError) as caught:
        mesh_sizes(MeshConfig(*config), devices)
    assert str(caught.value).endswith(message)
    assert "parallel.mesh={'data': " in str(caught.value)


def test_an_unknown_axis_is_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"^layer\.kernel: no sharding rule for .* 'embd'; did you mean 'embed'"
    ):
        partition_specs(boxed(('embd', 'mlp'), (16, 32)), ONE)


@pytest.mark.parametrize('size', [1, 2])  # JAX refuses it on one device too
def test_a_mesh_axis_cannot_cut_two_dimensions(size):
    with pytest.raises(
        ConfigError, match=r"^layer\.kernel: mesh axis 'tensor' would cut both 'heads' and 'mlp'$"
    ):
        partition_specs(boxed(('heads', 'mlp'), (16, 32)), ONE | {'tensor': size})


def test_two_dimensions_cannot_share_a_name():
    with pytest.raises(
        ConfigError, match=r'layer\.kernel: dimensions need names of their own: norm, norm'
    ):
        partition_specs(boxed(('norm', 'norm'), (4, 4)), ONE)


@pytest.mark.parametrize(('size', 'fits'), [(6, '4 or 8'), (3, '4'), (9, '8 or 12')])
def test_a_dimension_that_does_not_divide_is_refused_with_sizes_that_do(size, fits):
    with pytest.raises(ConfigError) as caught:
        partition_specs(boxed(('embed', 'mlp'), (16, size)), ONE | {'tensor': 4})
    assert str(caught.value) == (
        f"layer.kernel: dimension 'mlp' of size {size} cannot be split over 4 devices "
        f'(mesh tensor); sizes that fit: {fits}'
    )


def test_the_message_names_the_parameter_of_a_model(tiny):
    with pytest.raises(
        ConfigError, match=r"params\..*\.key\.kernel: dimension 'kv_heads' of size 2 "
    ):
        partition_specs(boxed_state(tiny(num_kv_heads=2)), ONE | {'tensor': 4})
    with pytest.raises(
        ConfigError, match=r"embedding\.table: dimension 'vocab' of size 30 .*: 28 or 32$"
    ):
        partition_specs(boxed_state(tiny(), vocab_size=30), ONE | {'tensor': 2, 'fsdp': 2})


def test_rules_name_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= {'seed', *ONE}


def test_rules_of_the_user_replace_those_of_the_table():
    rules = parse_rules('experts=data, vocab = fsdp+tensor,embed=none')
    changed = {'experts': ('data',), 'vocab': ('fsdp', 'tensor'), 'embed': ()}
    assert rules == {**RULES, **changed}
    assert parse_rules('') == RULES
    specs = partition_specs(boxed(('experts', 'mlp'), (4, 8)), ONE | {'data': 4}, rules)
    assert specs['layer']['kernel'] == PartitionSpec(('data',), ('tensor',))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('experts', "'experts' is no NAME=VALUE, as in experts=data"),
        ('experts=', "'experts=' is no NAME=VALUE"),
        ('expert=data', "no logical axis 'expert'; did you mean 'experts'?"),
        ('experts=dta', "no mesh axis 'dta'; did you mean 'data'?"),
        ('experts=data+data', "'experts' names the mesh axis 'data' twice"),
        ('experts=data, experts=fsdp', "'experts' comes twice"),
        ('batch=data', "'batch' is cut as parallel.mesh says"),
        ('experts=data,', "'' is no NAME=VALUE"),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_rules(text)
    assert str(caught.value).startswith(f'parallel.rules={text!r}: {message}')
    assert '\n' not in str(caught.value)


def test_a_rule_that_does_not_suit_an_array_is_named():
    sizes = ONE | {'data': 4, 'tensor': 2}
    with pytest.raises(ConfigError, match=r'sizes that fit: 4 or 8; parallel.rules has experts='):
        partition_specs(boxed(('experts',), (6,)), sizes, parse_rules('experts=data'))
    twice = parse_rules('experts=tensor')
    with pytest.raises(ConfigError, match=r"'tensor' would cut both 'experts' and 'mlp'"):
        partition_specs(boxed(('experts', 'mlp'), (4, 8)), sizes, twice)


def test_rules_are_refused_where_parameters_stay_whole():
    config = ExperimentConfig(parallel=ParallelConfig('pmap', rules='experts=data'))
    with pytest.raises(ConfigError, match=r"rules='experts=data': parallel\.mode='pmap'"):
        resolve(config)
